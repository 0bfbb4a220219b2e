"""Batches out of .npy and .npz files, read piece by piece."""

from __future__ import annotations

import hashlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError
from trtq.files import hash_file
from trtq.workers import start_in_background

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,  # a damaged header may ask for any number of bytes
    OverflowError,
    RuntimeError,  # zipfile's, for encryption and unknown compression
    tokenize.TokenError,  # numpy's, for a damaged header
    zipfile.BadZipFile,
    zlib.error,
)


def open_array_file(path: Path, names: Sequence[str], batch_size: int) -> Batches:
    """Returns the samples of one .npz, or .npy for a model with one input, in batches.

    Args:
        path: A file whose arrays have a leading sample axis of the same length.
        names: The model's inputs; an .npy, which has no names, is the first.
        batch_size: Samples a batch; the last one may be smaller.

    Raises:
        DataError: It is no such file, or the arrays disagree about the number of samples.
    """
    shapes, in_fortran_order = _headers(path, names)
    scalars = [name for name, shape in shapes.items() if not shape]
    if scalars:
        raise DataError(
            f"array {scalars[0]!r} of {path} has no sample axis; for inputs without one give a folder of "
            f".npz files, each one feed as the model takes it"
        )
    if in_fortran_order:
        raise DataError(
            f"array {in_fortran_order[0]!r} of {path} is in Fortran order, in which a sample cannot be read "
            f"alone; save it with numpy.ascontiguousarray"
        )
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"the arrays of {path} have different numbers of samples: {counts}")
    if not counts or not next(iter(counts.values())):
        raise DataError(f"{path} holds no samples; give at least one")
    num_samples = next(iter(counts.values()))

    def read() -> Iterator[Feed]:
        with ExitStack() as stack:
            readers = _open(path, names, stack)
            for start in range(0, num_samples, batch_size):
                stop = min(start + batch_size, num_samples)
                try:
                    arrays = {name: reader.rows(stop - start) for name, reader in readers.items()}
                except _UNREADABLE as error:
                    raise DataError(f"{path} is damaged near sample {start}: {error}") from error
                yield Feed(arrays, f"{path}, samples {start} to {stop - 1}", stop - start)

    digest = start_in_background(lambda: f"{hash_array_file(path)}/{batch_size}")
    return Batches(read, str(path), num_samples, digest, feed_samples=batch_size)


def open_feed_folder(folder: Path) -> Batches:
    """Returns the .npz files of a folder in the order of their names, each one feed with its batch axis."""
    paths = sorted(folder.glob("*.npz"))

    def read() -> Iterator[Feed]:
        for path in paths:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive.files}
            except _UNREADABLE as error:
                raise DataError(f"{path} cannot be read as .npz: {error}") from error
            yield Feed(arrays, str(path), count_samples(arrays))

    sizes = sum(_leading(path) for path in paths)
    digest = start_in_background(lambda: hash_folder(paths))
    return Batches(read, f"{folder} ({len(paths)} feeds)", sizes, digest)


def count_samples(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Returns the length of the leading axes if all arrays agree on it, else 1: a feed is one sample."""
    return _leading_axis([array.shape for array in arrays.values()])


def _leading_axis(shapes: Iterable[tuple[int, ...]]) -> int:
    lengths = {shape[0] for shape in shapes if shape}
    return lengths.pop() or 1 if len(lengths) == 1 else 1


def hash_array_file(path: Path) -> str:
    """Returns the SHA-256 of a file, as hex.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; make it readable or leave it out") from error


def hash_folder(paths: Sequence[Path]) -> str:
    """Returns a digest of the names and contents of files, as hex."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(f"{path.name}\0{hash_array_file(path)}\n".encode())
    return sha.hexdigest()


class _Rows:
    """Reads an array of .npy format from front to back, some rows at a time."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"unknown .npy version {version}")
        self.shape, fortran, self._dtype = read_header(stream)
        self.is_fortran_order = fortran and len(self.shape) > 1
        if self._dtype.hasobject:
            raise DataError(f"{where} holds Python objects, not numbers; save plain arrays")
        self._stream = stream

    def rows(self, count: int) -> NDArray[Any]:
        """Returns the next rows: shape (count, *shape[1:])."""
        shape = (count, *self.shape[1:])
        wanted = math.prod(shape) * self._dtype.itemsize
        content = self._stream.read(wanted)
        if len(content) < wanted:
            raise ValueError(f"cut short: {len(content)} of {wanted} bytes")
        return np.frombuffer(content, self._dtype).reshape(shape)


def _open(path: Path, names: Sequence[str], stack: ExitStack) -> dict[str, _Rows]:
    try:
        if path.suffix == ".npy":
            if len(names) != 1:
                raise DataError(
                    f"{path} holds one array without a name and the model has {len(names)} inputs "
                    f"({', '.join(names)}); save an .npz with these names"
                )
            return {names[0]: _Rows(stack.enter_context(path.open("rb")), str(path))}
        archive = stack.enter_context(zipfile.ZipFile(path))
        return {
            member.removesuffix(".npy"): _Rows(stack.enter_context(archive.open(member)), f"{path}:{member}")
            for member in archive.namelist()
        }
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as {path.suffix}: {error}") from error


def _headers(path: Path, names: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Returns the shapes of the arrays, and the names of those that are in Fortran order."""
    with ExitStack() as stack:
        readers = _open(path, names, stack)
        shapes = {name: reader.shape for name, reader in readers.items()}
        return shapes, [name for name, reader in readers.items() if reader.is_fortran_order]


def _leading(path: Path) -> int:
    return _leading_axis(_headers(path, ())[0].values())
