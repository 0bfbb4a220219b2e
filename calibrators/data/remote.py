"""Files of other machines: whatever fsspec reaches by a URL, read in blocks and never kept whole.

A store that gives no parts of a file, or does not tell its size, has it copied to a temporary file.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import IO, Any

from trtq import lazy
from trtq.calibrators.data.files import Listed, StoredFile, find_all, is_pattern
from trtq.calibrators.data.tries import NoPartsError, describe_change, persist
from trtq.errors import DataError, MissingDependency, quote
from trtq.models.address import find_scheme, show_address

_BLOCK_BYTES = 1 << 22
_BLOCKS_KEPT = 16
"""Of an open file: the arrays of an .npz are read in turns, each at its own place."""
_SILENCE_S = 60
_MAKES_TEXT = re.compile(r"(?:^|::)reference(?:::|://)", re.IGNORECASE)
"""What fills templates out of a file, in older versions of fsspec without a sandbox."""
_CHECKSUMS = (
    "ETag", "etag", "sha256", "md5", "md5Hash", "crc32c", "content_md5", "Content-MD5", "Digest", "blob_id",
    "sha", "generation", "version_id", "VersionId",
)  # fmt: skip
_TIMES = (
    "LastModified",
    "last_modified",
    "Last-Modified",
    "mtime",
    "modified",
    "updated",
    "modify",
    "modificationTime",
    "created",
)


def open_remote(source: str) -> StoredFile | RemoteFolder | Listed:
    """Returns the file, the folder, or the files of a pattern that a URL names.

    Raises:
        DataError: There is none, it may not be read, or the store does not answer.
        MissingDependency: The package that reaches this store is not installed.
    """
    store = _open_store(source)
    if not store.is_pattern(store.path):
        if store.is_web and store.path.endswith("/"):
            return RemoteFolder(store, store.path)
        info = store.find(store.path, show_address(source))
        if info.get("type") == "directory":
            return RemoteFolder(store, store.path)
        return store.make_file(store.path, info)
    found = find_all(store.path, store.expand, store.show)
    files = [store.make_file(path, info) for path, info in found.items()]
    if not files:
        raise DataError(f"there is nothing at {show_address(source)}; make the pattern fit")
    return Listed(show_address(source), files)


@dataclass(frozen=True, slots=True)
class _Store:
    """A file system of fsspec, with the path that was asked for."""

    system: Any
    path: str
    is_web: bool

    def show(self, path: str) -> str:
        return show_address(self.system.unstrip_protocol(path))

    def is_pattern(self, path: str) -> bool:
        """Returns whether a path stands for several; `?` and `[` mean something else on the web."""
        return is_pattern(path) and (not self.is_web or "*" in path or "{" in path)

    def find(self, path: str, name: str) -> Mapping[str, Any]:
        """Returns what the store tells of a path."""

        def ask() -> Mapping[str, Any]:
            info: Mapping[str, Any] = self.system.info(path)
            return info

        return persist(ask, name)

    def expand(self, path: str) -> Mapping[str, Mapping[str, Any]]:
        """Returns the files that a pattern names, in order, and what is told of them; a path names itself."""
        if not self.is_pattern(path):
            return {path: {}}

        def ask() -> Mapping[str, Mapping[str, Any]]:
            found: Mapping[str, Mapping[str, Any]] = self.system.glob(path, detail=True)
            return found

        found = persist(ask, self.show(path))
        return {name: info for name, info in sorted(found.items()) if info.get("type") != "directory"}

    def make_file(self, path: str, info: Mapping[str, Any]) -> RemoteFile:
        """Returns a file; a listing may tell nothing of it, as a page of links does."""
        info = info if info.get("size") is not None else self.find(path, self.show(path))
        return RemoteFile(self, path, self.show(path), info)


def _open_store(source: str) -> _Store:
    work, shown = f"reading {show_address(source)}", show_address(source)
    if _MAKES_TEXT.search(source):
        raise DataError(f"{shown} is not read: a file of references may hold code; give what it refers to")
    fsspec = lazy.require("fsspec", "data", work)
    is_web = find_scheme(source) in ("http", "https")
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if is_web:
        aiohttp = lazy.require("aiohttp", "data", work)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        options["client_kwargs"] = {"timeout": timeout}

    def ask() -> tuple[Any, str]:
        try:
            system, path = fsspec.core.url_to_fs(source, **options)
        except ImportError as error:
            raise MissingDependency(f"{work} needs a package that is not here: {quote(error)}") from error
        return system, path

    return _Store(*persist(ask, shown), is_web)


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """What lies below an address."""

    store: _Store
    path: str

    @property
    def name(self) -> str:
        """See `StoredFolder`."""
        return self.store.show(self.path)

    def list(self, *, deep: bool = False) -> Sequence[StoredFile]:
        """See `StoredFolder`; one listing tells the digests of all where the store has them."""

        def ask() -> Mapping[str, Mapping[str, Any]]:
            found: Mapping[str, Mapping[str, Any]] = self.store.system.find(
                self.path, maxdepth=None if deep else 1, detail=True
            )
            return found

        found = persist(ask, self.name)
        paths = sorted(found, key=lambda path: path.split("/"))
        return [self.store.make_file(path, found[path]) for path in paths]


@dataclass(frozen=True, eq=False)
class RemoteFile:
    """A file that a store keeps.

    Attributes:
        store: Where it lies.
        path: Its path there.
        name: See `StoredFile`.
        info: What the store told of it when it was found.
    """

    store: _Store
    path: str
    name: str
    info: Mapping[str, Any]
    _copies: list[_Copy] = field(default_factory=list, init=False, repr=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    @property
    def base(self) -> str:
        """See `StoredFile`."""
        return self.name.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        """See `StoredFile`."""
        return False

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """See `StoredFile`."""
        source = _Blocks(self)
        try:
            with io.BufferedReader(source, 1 << 16) as stream:
                yield stream
        except Exception:
            if not source.is_cut_off:
                self.refuse_change()  # of which the damage comes
            raise
        self.refuse_change()

    def hash(self) -> str:
        """See `StoredFile`: by what the store tells; where it tells nothing, of the bytes of a copy."""
        checksums, times = _pick(self.info, _CHECKSUMS), _pick(self.info, _TIMES)
        if not checksums and not times:
            return self.copy().sha256
        told = (self.name, self.info.get("size"), checksums or times)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def has_copy(self) -> bool:
        """Whether it was copied, so that the store is not asked any more."""
        return bool(self._copies)

    def copy(self) -> _Copy:
        """Returns its only copy, made when it is first needed."""
        with self._lock:
            if not self._copies:
                copied = persist(lambda: _copy(self), self.name)
                weakref.finalize(self, copied.file.close)
                self._copies.append(copied)
            return self._copies[0]

    def refuse_change(self) -> None:
        """Refuses a file that is another one than when it was found; one with a copy is read no more.

        Raises:
            DataError: It has changed, or is gone.
        """
        if self.has_copy:
            return
        now = self.store.find(self.path, self.name)
        for keys in (("size",), _CHECKSUMS, _TIMES):
            before, after = _pick(self.info, keys), _pick(now, keys)
            common = before.keys() & after.keys()
            if any(before[key] != after[key] for key in common):
                raise describe_change(self.name)
            if common and keys is _CHECKSUMS:
                return  # a listing may tell times more exactly than a file's own answer


def _pick(info: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    lfs = info.get("lfs")
    whole = {**info, **(lfs if isinstance(lfs, Mapping) else {})}
    return {key: str(whole[key]) for key in keys if whole.get(key) not in (None, "")}


@dataclass(frozen=True, slots=True)
class _Copy:
    """A temporary file without a name, that is gone when nobody uses it."""

    file: IO[bytes]
    size: int
    sha256: str
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def read(self, start: int, stop: int) -> bytes:
        with self._lock:  # several may read it, and it has one place
            self.file.seek(start)
            return self.file.read(stop - start)


def _copy(remote: RemoteFile) -> _Copy:
    sha, size, wanted = hashlib.sha256(), 0, remote.info.get("size")
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        stream = stack.enter_context(remote.store.system.open(remote.path, "rb", block_size=0))
        while block := stream.read(_BLOCK_BYTES):
            file.write(block)
            sha.update(block)
            size += len(block)
        if wanted is not None and size != wanted:
            raise EOFError(f"cut short: {size} of {wanted} bytes")
        file.flush()
        stack.pop_all()
        stream.close()
    return _Copy(file, size, sha.hexdigest())


class _Blocks(io.RawIOBase):
    """A remote file as a stream of blocks, of which the last ones are kept.

    Attributes:
        is_cut_off: Whether the store has failed to give one.
    """

    def __init__(self, remote: RemoteFile) -> None:
        super().__init__()
        self.is_cut_off = False
        self._remote = remote
        self._handle: Any = None
        self._place = 0
        size = remote.info.get("size")
        gives_parts = size is not None and remote.info.get("partial") is not False
        self._size: int = size if gives_parts and size is not None else remote.copy().size
        self._read_block = lru_cache(_BLOCKS_KEPT)(self._fetch)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"there is nothing before the first byte: {start + offset}")
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        if self._place >= self._size:
            return 0
        index, start = divmod(self._place, _BLOCK_BYTES)
        part = self._read_block(index)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        self._let_go()
        self._read_block.cache_clear()
        super().close()

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _fetch(self, index: int) -> bytes:
        start = index * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self._size)
        if not self._remote.has_copy:
            try:
                return persist(lambda: self._fetch_range(start, stop), self._remote.name)
            except NoPartsError:
                self._let_go()
            except DataError:
                self.is_cut_off = True
                raise
        return self._remote.copy().read(start, stop)

    def _fetch_range(self, start: int, stop: int) -> bytes:
        """Returns these bytes, from a handle that is used as long as it works."""
        remote = self._remote
        try:
            if self._handle is None:
                self._handle = remote.store.system.open(remote.path, "rb", cache_type="none")
            self._handle.seek(start)
            content: bytes = self._handle.read(stop - start)
            if len(content) != stop - start:
                remote.refuse_change()
                raise EOFError(f"cut short: {len(content)} of {stop - start} bytes from {start} on")
        except Exception as error:
            self._let_go()
            if "range request" in str(error):
                raise NoPartsError from error
            raise
        return content
