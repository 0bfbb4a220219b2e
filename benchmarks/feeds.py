"""A model's data in the format that trtq, its peers and the evaluation all read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


def read_feeds(data: Path, batch_size: int = 1) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the batches of an .npz with a leading sample axis, or the files of a folder, one feed each.

    One batch is in memory at a time, so that what a tool holds is its own.
    """
    if data.is_dir():
        for path in sorted(data.glob("*.npz")):
            yield dict(np.load(path))
        return
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(data))
        columns = {
            name.removesuffix(".npy"): _rows(stack.enter_context(archive.open(name)), batch_size)
            for name in archive.namelist()
        }
        for arrays in zip(*columns.values(), strict=True):
            yield dict(zip(columns, arrays, strict=True))


def _rows(stream: IO[bytes], batch_size: int) -> Iterator[NDArray[Any]]:
    """Yields so many rows at a time of an array in NumPy's own format, version 1.0."""
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    for start in range(0, shape[0], batch_size):
        rows = (min(batch_size, shape[0] - start), *shape[1:])
        size = int(np.prod(rows)) * dtype.itemsize
        yield np.frombuffer(bytearray(stream.read(size)), dtype).reshape(rows)


def part_of(folder: Path, part: str) -> Path:
    """Returns the "calibration" or "evaluation" data in a model's folder."""
    return folder / part if (folder / part).is_dir() else folder / f"{part}.npz"


def write_samples(data: Path, count: int, folder: Path) -> Path:
    """Returns data with so many samples, written into a folder: the first ones, over and over if too few."""
    if data.is_dir():
        paths = sorted(data.glob("*.npz"))
        target = folder / f"{count}"
        target.mkdir()
        for index in range(count):
            (target / f"{index:05}.npz").symlink_to(paths[index % len(paths)].resolve())
        return target
    target = folder / f"{count}.npz"
    with np.load(data) as arrays, zipfile.ZipFile(target, "w") as archive:
        for name in arrays.files:
            rows = arrays[name]
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (count, *rows.shape[1:])}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for start in range(0, count, len(rows)):
                    stream.write(rows[: count - start].tobytes())
    return target
