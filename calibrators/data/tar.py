"""Tar archives of samples as WebDataset writes them, read from front to back."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.arrays import check_archive, refuse_more
from trtq.calibrators.data.files import StoredFile, find_suffix
from trtq.calibrators.data.pictures import find_picture_input
from trtq.calibrators.data.samples import Sample, Wanted, refuse_missing
from trtq.errors import DataError
from trtq.files import refuse_damage
from trtq.models.preprocess import SUFFIXES, Preprocess
from trtq.workers import Threads

TAR_SUFFIXES = (".tar", ".tgz")
_GZIP = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 30
_CLASS = "cls"


def is_tar(file: StoredFile) -> bool:
    """Returns whether a file is called like a tar archive, compressed or not."""
    return find_suffix(file) in TAR_SUFFIXES or file.base.lower().endswith(".tar.gz")


def read_tar(shard: StoredFile, wanted: Wanted, steps: Preprocess) -> Iterator[Sample]:
    """Yields the samples of an archive: the members that follow each other with the same key.

    The key is a member's path up to the first dot of its name; what follows says what it holds. Nothing is
    written to the disk, and what no input and no label is called is passed over.

    Raises:
        DataError: It is no tar archive, is cut short or damaged, holds a link, or a sample does not fit.
    """
    with _open_members(shard) as members:
        groups = groupby(members, lambda member: member.key)
        found = ((f"{shard.name}, {key}", [*group]) for key, group in groups)
        yield from Threads().map(lambda item: _make_sample(*item, wanted, steps), found)


def tar_has_pictures(shard: StoredFile) -> bool:
    """Returns whether the first sample of an archive holds a picture; an archive that is damaged has none."""
    with suppress(DataError), _open_members(shard) as members:
        first = next(groupby(members, lambda member: member.key), ("", iter(())))[1]
        return any(f".{member.rest.lower()}".endswith(SUFFIXES) for member in first)
    return False


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of an archive: its key, what stands behind it, and the bytes."""

    key: str
    rest: str
    content: bytes


class _Header(tarfile.TarInfo):
    """The header of a member; a damaged one is no end of the archive, for which Python's reader takes it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Returns a header.

        Raises:
            HeaderError: This is the empty block of an archive's end.
            ReadError: It is damaged, or the file ends here.
        """
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without an empty block: it is cut short") from error
            if any(buf):
                raise tarfile.ReadError(f"a member's header is damaged: {error}") from error
            raise


@contextmanager
def _open_members(shard: StoredFile) -> Iterator[Iterator[_Member]]:
    """Opens an archive, compressed or not, and gives its members from front to back."""
    with refuse_damage(DataError, f"{shard.name} cannot be read as a tar archive"), shard.open() as stream:
        is_compressed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        content: Any = gzip.GzipFile(fileobj=stream) if is_compressed else stream
        with tarfile.open(fileobj=content, mode="r:", tarinfo=_Header) as archive:
            yield _read_members(archive, content, shard.name)


def _read_members(archive: tarfile.TarFile, content: IO[bytes], name: str) -> Iterator[_Member]:
    for info in archive:
        path = PurePosixPath(info.name)
        key, dot, rest = path.name.partition(".")
        if not dot or not key or info.isdir():
            continue
        if not info.isreg():
            raise DataError(
                f"{name}, {info.name} is a link or no file; pack what a link leads to, with tar "
                f"--dereference --hard-dereference"
            )
        if info.size > _MOST_BYTES:
            raise DataError(f"{name}, {info.name} has {info.size:,} bytes; a member may have {_MOST_BYTES:,}")
        member = archive.extractfile(info)
        assert member is not None
        yield _Member(str(path.with_name(key)), rest, member.read())
    while block := content.read(_BLOCK_BYTES):  # to the end, where the checksum of what is compressed stands
        if block.strip(b"\0"):
            raise DataError(f"{name} has more data after the end of the archive; give each archive alone")


def _make_sample(source: str, members: Iterable[_Member], wanted: Wanted, steps: Preprocess) -> Sample:
    arrays: dict[str, NDArray[Any]] = {}
    held: dict[str, str] = {}
    rests = []
    for member in members:
        where = f"{source}.{member.rest}"
        with refuse_damage(DataError, f"{where} cannot be read"):
            found = _decode(member, where, wanted, steps)
        for name in found.keys() & {*wanted.names}:
            if name in held:
                raise DataError(
                    f"{source} has array {name!r} twice, in .{held[name]} and in .{member.rest}; leave one "
                    f"out"
                )
            arrays[name], held[name] = found[name], member.rest
        rests.append(f".{member.rest}")
    ordered = {name: arrays[name] for name in wanted.names if name in arrays}
    advice = "name members <key>.<input>.npy, or put all inputs into <key>.npz"
    return refuse_missing(Sample(ordered, source), wanted, rests, advice)


def _decode(member: _Member, where: str, wanted: Wanted, steps: Preprocess) -> Mapping[str, NDArray[Any]]:
    """Returns the arrays in a member; none where it is of another kind."""
    own, _, suffix = member.rest.lower().rpartition(".")
    named = member.rest[: len(own)]
    stream = io.BytesIO(member.content)
    if suffix == "npz":
        with np.load(stream, allow_pickle=False) as archive:
            check_archive(archive.zip)
            return dict(archive.items())
    if suffix == "npy":
        only = wanted.inputs[0].name if len(wanted.inputs) == 1 else ""
        array = np.lib.format.read_array(stream, allow_pickle=False)
        refuse_more(stream)
        return {named or only: array}
    if f".{suffix}" in SUFFIXES:
        taken = find_picture_input(wanted.inputs, steps, named)
        return {taken.spec.name: taken.read(stream, where)} if taken is not None else {}
    if suffix == "json":
        values = json.loads(member.content)
        held = values if isinstance(values, Mapping) else {named: values}
        return {name: wanted.fit(name, value) for name, value in held.items() if name in wanted.names}
    return {_CLASS: np.array(int(member.content))} if suffix == _CLASS else {}
