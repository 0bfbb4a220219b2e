"""Batches of samples that lie one behind the other in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.data.files import StoredFile, hash_files
from trtq.errors import DataError
from trtq.models.signature import TensorSpec, show_shape
from trtq.numbers import format_count
from trtq.workers import start_in_background


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Attributes:
        arrays: By name, without an axis of samples.
        source: Where it comes from, for messages.
    """

    arrays: Mapping[str, NDArray[Any]]
    source: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read of samples.

    Attributes:
        inputs: What the model takes.
        extra: Names of further arrays that there may be, such as labels.
    """

    inputs: Sequence[TensorSpec]
    extra: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all arrays."""
        return (*(spec.name for spec in self.inputs), *self.extra)

    def find(self, name: str) -> TensorSpec | None:
        """Returns the input of this name; None if there is none."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def fit(self, name: str, values: object) -> NDArray[Any]:
        """Returns values of a format with few dtypes, such as JSON, in that of the input, if they fit.

        What loses more than digits stays as it is, to be refused.
        """
        array, spec = np.asarray(values), self.find(name)
        if spec is None:
            return array
        wanted = np.dtype(spec.dtype)
        is_float = array.dtype.kind in "iuf" and wanted.kind in "fV"  # V: bfloat16
        if is_float or (array.dtype.kind in "iu" and wanted.kind in "iu" and _holds(wanted, array)):
            array = array.astype(wanted)
        return _unflatten(array, spec)


def _holds(wanted: np.dtype[Any], array: NDArray[Any]) -> bool:
    limits = np.iinfo(wanted)
    return not array.size or (limits.min <= int(array.min()) and int(array.max()) <= limits.max)


def _unflatten(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Returns a flat list in the shape of the input, where that is known and has as many elements."""
    shape = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
    is_known = len(shape) == len(spec.shape) - 1
    if array.ndim == 1 and is_known and len(shape) > 1 and array.size == np.prod(shape):
        return array.reshape(shape)
    return array


@dataclass(frozen=True, slots=True)
class SampleFiles:
    """Files that hold samples one behind the other.

    Attributes:
        name: Of what holds them.
        files: In their order.
        read: Yields the samples of one.
        count: Returns how many it holds, without reading them; None: that cannot be known.
        settings: What the samples depend on beside the files, for the digest.
    """

    name: str
    files: Sequence[StoredFile]
    read: Callable[[StoredFile], Iterator[Sample]]
    count: Callable[[StoredFile], int] | None = None
    settings: str = ""


def batch_files(source: SampleFiles, batch_size: int, *, is_fixed: bool) -> Batches:
    """Returns the samples in batches.

    Each file is batched alone, so that a part of the files has the same feeds as in the whole; the last feed
    of a file may be small. Where the model fixes the size, all files are one.
    """
    files = source.files
    runs = [files] if is_fixed else [[file] for file in files]
    passes = tuple(partial(_batch_run, source, run, batch_size) for run in runs)
    is_counted = source.count is not None and all(file.is_local for file in files)
    num_samples = sum(map(source.count, files)) if is_counted and source.count else None
    digest = start_in_background(lambda: f"{hash_files(files)}/{batch_size}/{source.settings}")
    origin = source.name if len(files) == 1 else f"{source.name} ({format_count(len(files), 'file')})"
    return Batches(
        lambda: chain.from_iterable(run() for run in passes),
        origin,
        num_samples,
        digest,
        feed_samples=batch_size,
        files=passes,
    )


def _batch_run(source: SampleFiles, files: Sequence[StoredFile], batch_size: int) -> Iterator[Feed]:
    return batch_samples(chain.from_iterable(map(source.read, files)), batch_size)


def batch_samples(samples: Iterable[Sample], batch_size: int) -> Iterator[Feed]:
    """Yields feeds of so many samples; the last may be small.

    Raises:
        DataError: Samples have other names, dtypes or shapes than the first one of their batch.
    """
    iterator = iter(samples)
    while group := [*islice(iterator, batch_size)]:
        for sample in group:
            _refuse_other(sample, group[0])
        arrays = {name: np.stack([sample.arrays[name] for sample in group]) for name in group[0].arrays}
        first, last = group[0].source, group[-1].source
        yield Feed(arrays, first if len(group) == 1 else f"{first} to {last}", len(group))


def _refuse_other(sample: Sample, first: Sample) -> None:
    shapes, others = ({name: array.shape for name, array in each.arrays.items()} for each in (sample, first))
    if shapes.keys() != others.keys():
        raise DataError(
            f"{sample.source} has the arrays {', '.join(shapes)}, {first.source} has {', '.join(others)}; "
            f"give all samples the same"
        )
    for name, array in sample.arrays.items():
        if array.dtype != first.arrays[name].dtype:  # numpy would find one that holds both
            raise DataError(
                f"array {name!r} of {sample.source} is {array.dtype.name}, that of {first.source} is "
                f"{first.arrays[name].dtype.name}; give all samples the same"
            )
    for name, shape in shapes.items():
        if shape != others[name]:
            raise DataError(
                f"array {name!r} of {sample.source} has shape {show_shape(shape)}, others in its batch have "
                f"{show_shape(others[name])}; give samples of one shape, or use a batch size of 1"
            )


def refuse_missing(sample: Sample, wanted: Wanted, held: Iterable[str], advice: str) -> Sample:
    """Returns a sample that has all inputs.

    Args:
        sample: As it was read.
        wanted: What should be in it.
        held: What the file has in its place, for the message.
        advice: What to do.

    Raises:
        DataError: An input is missing.
    """
    if missing := [spec.name for spec in wanted.inputs if spec.name not in sample.arrays]:
        raise DataError(
            f"{sample.source} has no array {missing[0]!r}; it has {', '.join(held) or 'nothing'}; {advice}"
        )
    return sample
