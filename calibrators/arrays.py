"""Batches out of .npy and .npz files, read piece by piece."""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import ONE_BATCH_EACH, Batches, Feed
from trtq.calibrators.data.files import StoredFile, find_suffix, hash_files
from trtq.errors import DataError
from trtq.files import refuse_damage
from trtq.numbers import format_count
from trtq.workers import start_in_background


def open_array_file(file: StoredFile, names: Sequence[str], batch_size: int) -> Batches:
    """Returns the samples of one .npz, or .npy for a model with one input, in batches; the last may be small.

    `names` are the model's inputs; an .npy, which has no names, is the first.

    Raises:
        DataError: It is no such file, or its arrays have no leading sample axis of the same length.
    """
    num_samples = _check_sample_axis(file, names)

    def read() -> Iterator[Feed]:
        with _open_readers(file, names) as readers:
            for start in range(0, num_samples, batch_size):
                stop = min(start + batch_size, num_samples)
                with refuse_damage(DataError, f"{file.name} is damaged near sample {start}"):
                    arrays = {name: reader.read_rows(stop - start) for name, reader in readers.items()}
                yield Feed(arrays, f"{file.name} ({_name_samples(start, stop)})", stop - start)
            with refuse_damage(DataError, f"{file.name} is damaged at its end"):
                for reader in readers.values():
                    reader.refuse_more()

    digest = start_in_background(lambda: f"{file.hash()}/{batch_size}")
    return Batches(read, file.name, num_samples, digest, feed_samples=batch_size)


def _check_sample_axis(file: StoredFile, names: Sequence[str]) -> int:
    """Returns the number of samples that all arrays of a file have along their first axis."""
    with _open_readers(file, names) as readers:
        for name, reader in readers.items():
            if not reader.shape:
                raise DataError(f"array {name!r} of {file.name} has no sample axis; {ONE_BATCH_EACH}")
        counts = {name: reader.shape[0] for name, reader in readers.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"the arrays of {file.name} have different numbers of samples: {counts}; {ONE_BATCH_EACH}"
        )
    num_samples = next(iter(counts.values()), 0)
    if not num_samples:
        raise DataError(f"{file.name} holds no samples; give at least one")
    return num_samples


def open_feed_files(files: Sequence[StoredFile], name: str) -> Batches:
    """Returns .npz files, each one feed with its batch axis; those far away are counted while they are read.

    Args:
        files: In their order.
        name: Of what holds them.

    Raises:
        DataError: One cannot be read.
    """

    def part(start: int, step: int) -> Iterator[Feed]:
        for file in files[start::step]:
            broken = refuse_damage(DataError, f"{file.name} cannot be read as .npz")
            with broken, file.open() as stream, np.load(stream, allow_pickle=False) as archive:
                check_archive(archive.zip)
                arrays = dict(archive.items())
            yield Feed(arrays, file.name, count_samples(arrays))

    is_near = all(file.is_local for file in files)
    num_samples = sum(map(_count_samples_of_file, files)) if is_near else None
    digest = start_in_background(lambda: hash_files(files))
    origin = f"{name} ({format_count(len(files), 'feed')})"
    return Batches(lambda: part(0, 1), origin, num_samples, digest, part=part)


def _name_samples(start: int, stop: int) -> str:
    return f"samples {start} to {stop - 1}" if stop - start > 1 else f"sample {start}"


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the content of an `.npz` file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # np.savez takes no array named "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuses an .npz file of which numpy would read only a part.

    Raises:
        ValueError: It has an array twice, or something before its beginning, such as another archive.
    """
    counts = Counter(name.removesuffix(".npy") for name in archive.namelist())
    if doubles := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"it has the array {doubles[0]!r} twice; leave one out")
    if min((info.header_offset for info in archive.infolist()), default=0):
        raise ValueError("there is more before the archive; give each archive alone")


def count_samples(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Returns the length of the leading axes if all arrays agree on it, else 1: a feed is one sample."""
    return _find_leading_axis(array.shape for array in arrays.values())


def _count_samples_of_file(file: StoredFile) -> int:
    with _open_readers(file, ()) as readers:
        return _find_leading_axis(reader.shape for reader in readers.values())


def _find_leading_axis(shapes: Iterable[tuple[int, ...]]) -> int:
    lengths = {shape[0] for shape in shapes if shape}
    return lengths.pop() or 1 if len(lengths) == 1 else 1


class _RowReader:
    """Reads an array of .npy format from front to back, some rows at a time.

    In Fortran order, as tables of pandas have it, no row lies in one place: the first call reads them all.
    """

    def __init__(self, stream: IO[bytes], where: str) -> None:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"unknown .npy version {version}")
        self.shape, fortran, self._dtype = read_header(stream)
        self._is_fortran_order = fortran and len(self.shape) > 1
        self._columns: NDArray[Any] | None = None
        self._start = 0
        if self._dtype.hasobject:
            raise DataError(f"{where} holds Python objects, not numbers; save plain arrays")
        self._stream = stream

    def read_rows(self, count: int) -> NDArray[Any]:
        """Returns the next rows: shape (count, *shape[1:])."""
        if not self._is_fortran_order:
            return self._read((count, *self.shape[1:]))
        if self._columns is None:
            self._columns = self._read(self.shape[::-1]).T
        self._start += count
        return np.ascontiguousarray(self._columns[self._start - count : self._start])

    def _read(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Returns what comes next."""
        wanted = math.prod(shape) * self._dtype.itemsize
        content = self._stream.read(wanted)
        if len(content) < wanted:
            raise ValueError(f"cut short: {len(content)} of {wanted} bytes")
        return np.frombuffer(content, self._dtype).reshape(shape)

    def refuse_more(self) -> None:
        """Refuses what stands behind the last row, such as a second array.

        Raises:
            ValueError: There is something.
        """
        refuse_more(self._stream)


def refuse_more(stream: IO[bytes]) -> None:
    """Refuses what stands behind an array of .npy format, such as a second array.

    Raises:
        ValueError: There is something.
    """
    if stream.read(1):
        raise ValueError("there is more data after the array; save each array alone")


@contextmanager
def _open_readers(file: StoredFile, names: Sequence[str]) -> Iterator[dict[str, _RowReader]]:
    with ExitStack() as stack:
        with refuse_damage(DataError, f"{file.name} cannot be read as {find_suffix(file)}"):
            readers = {name: _RowReader(*opened) for name, opened in _open_streams(file, names, stack)}
        yield readers


def _open_streams(
    file: StoredFile, names: Sequence[str], stack: ExitStack
) -> Iterator[tuple[str, tuple[IO[bytes], str]]]:
    """Yields the name of each array, with the stream of its bytes and where that is, for messages."""
    if find_suffix(file) == ".npy":
        if len(names) != 1:
            raise DataError(
                f"{file.name} holds one array without a name and the model has {len(names)} inputs "
                f"({', '.join(names)}); save an .npz with these names"
            )
        yield names[0], (stack.enter_context(file.open()), file.name)
        return
    archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(file.open())))
    check_archive(archive)
    for member in archive.namelist():
        yield (
            member.removesuffix(".npy"),
            (stack.enter_context(archive.open(member)), f"{file.name}:{member}"),
        )
