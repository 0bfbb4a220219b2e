"""What a caller gives to an engine: checked, cut into batches that it takes, and the answers joined again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import DataError
from trtq.models.signature import TensorSpec, names_samples, show_shape
from trtq.models.spec import InputSpec

Arrays = dict[str, NDArray[Any]]
Infer = Callable[[Arrays], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Signature:
    """What an engine takes and gives.

    The first axis of an input is that of the samples where it is open and its name says so, as of
    `names_samples`: one name in all such inputs that have one. Without any name it is if it is open in all
    inputs. Where no axis is open, it is if all inputs and outputs have the same size there, then the only
    batch.

    Attributes:
        profiles: The shapes for which it was built, of inputs with open dims.
        is_bound: Whether it takes no other shapes; else a profile only says how many samples run at once.
        is_single: Whether nothing is split, whatever the names say.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, InputSpec] = field(default_factory=dict)
    is_bound: bool = False
    is_single: bool = False

    @property
    def opened(self) -> Mapping[str, str | None]:
        """The inputs whose first axis is open, with its name; None where it has none of its own."""
        firsts = {spec.name: spec.shape[0] for spec in self.inputs if spec.shape}
        return {
            name: None if names_samples(dim) is None else dim
            for name, dim in firsts.items()
            if not isinstance(dim, int)
        }

    @property
    def names(self) -> set[str]:
        """The names of the open first axes."""
        return {dim for dim in self.opened.values() if dim is not None}

    @property
    def batched(self) -> tuple[str, ...]:
        """The inputs whose first axis is that of the samples; none where there is no such axis."""
        if self.is_single:
            return ()
        if opened := self.opened:
            others = {dim for spec in self.inputs for dim in spec.shape[1:]}
            is_one = len(self.names) <= 1 and all(map(names_samples, self.names)) and not self.names & others
            is_known = bool(self.names) or all(spec.name in opened for spec in self.inputs if spec.shape)
            return tuple(opened) if is_one and is_known else ()
        firsts = {spec.shape[:1] for spec in (*self.inputs, *self.outputs)}
        return tuple(spec.name for spec in self.inputs) if len(firsts) == 1 and () not in firsts else ()

    @property
    def batch(self) -> tuple[int, int | None]:
        """The fewest and the most samples of one run; None: any number."""
        if not self.batched:
            return 1, None
        first = next(spec.shape[0] for spec in self.inputs if spec.name in self.batched)
        if isinstance(first, int):
            return first, first
        known = [self.profiles[name] for name in self.batched if name in self.profiles]
        fewest = max((profile.min[0] for profile in known), default=1) if self.is_bound else 1
        return max(1, fewest), min((profile.max[0] for profile in known), default=None)

    def limits(self, spec: TensorSpec) -> list[tuple[int, int | None]]:
        """Returns the smallest and the largest size of each axis of an input; None: any size."""
        profile = self.profiles.get(spec.name) if self.is_bound else None
        sizes: list[tuple[int, int | None]] = [
            (dim, dim) if isinstance(dim, int) else (0, None) for dim in spec.shape
        ]
        if profile is not None:
            sizes = [*zip(profile.min, profile.max, strict=True)]
        return [(0, None), *sizes[1:]] if spec.name in self.batched else sizes

    def joins(self, output: TensorSpec) -> bool:
        """Returns whether the first axis of an output, and no other one, may be that of the samples."""
        own = {spec.shape[0] for spec in self.inputs if spec.name in self.batched}
        first, *others = output.shape or (None,)
        if not own or not output.shape or any(dim in own for dim in others if isinstance(dim, str)):
            return False
        fewest, most = self.batch
        if isinstance(first, int):
            return fewest == first == most
        named = names_samples(first)
        return named is None or (first in self.names if self.names else named)


@dataclass(frozen=True, slots=True)
class BatchRun:
    """The outputs of a run by name, for `size` samples, of which `count` were given, others filled up."""

    outputs: Mapping[str, NDArray[Any]]
    size: int
    count: int


def settle(signature: Signature, given: Mapping[str, Any] | Any) -> Signature:
    """Returns the signature for what is given: nothing is split where axes without names differ in length."""
    if not isinstance(given, Mapping) or None not in signature.opened.values():
        return signature
    lengths = {np.shape(given[name])[:1] for name in signature.batched if name in given}
    return replace(signature, is_single=True) if len(lengths) > 1 else signature


def take_feed(signature: Signature, given: Mapping[str, Any] | Any) -> Arrays:
    """Returns what a caller gives as arrays by the names of the inputs, checked.

    Args:
        signature: Of the engine.
        given: By input; or the array itself where there is one input.

    Raises:
        DataError: A name, a dtype or a shape is not the engine's, or the inputs have different numbers of
            samples.
    """
    names = [spec.name for spec in signature.inputs]
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise DataError(f"the engine takes {', '.join(names)}: give a dict of arrays by these names")
        given = {names[0]: given}
    if missing := [name for name in names if name not in given]:
        raise DataError(
            f"there is no array for input {missing[0]!r}; the engine takes {', '.join(names)}, "
            f"given {'is' if len(given) == 1 else 'are'} {', '.join(map(str, given)) or 'nothing'}"
        )
    if unknown := [name for name in given if name not in names]:
        raise DataError(f"the engine has no input {unknown[0]!r}; it takes {', '.join(names)}")
    feed = {spec.name: _take_array(signature, spec, given[spec.name]) for spec in signature.inputs}
    counts = {name: feed[name].shape[0] for name in signature.batched}
    if len({*counts.values()}) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"the inputs have different numbers of samples along their first axis: {listed}")
    if 0 in counts.values():
        raise DataError(f"there are no samples: {', '.join(counts)} of length 0")
    return feed


def _take_array(signature: Signature, spec: TensorSpec, given: Any) -> NDArray[Any]:
    """Returns an input as an array of its dtype; of a type that NumPy has not, FP32 will do."""
    array = _to_array(spec.name, given)
    own = np.dtype(spec.dtype)
    if array.dtype.name not in (spec.dtype, *(() if own.isbuiltin == 1 else ("float32",))):
        raise DataError(
            f"input {spec.name!r} is {array.dtype.name}, the engine takes {spec.dtype}; convert it with "
            f".astype({spec.dtype!r})"
        )
    limits = signature.limits(spec)
    fits = len(limits) == array.ndim and all(
        low <= size and (high is None or size <= high)
        for size, (low, high) in zip(array.shape, limits, strict=True)
    )
    if not fits:
        raise DataError(
            f"input {spec.name!r} has shape {show_shape(array.shape)}, the engine takes "
            f"{_show_limits(spec, limits)}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _to_array(name: str, given: Any) -> NDArray[Any]:
    if isinstance(given, np.ma.MaskedArray):
        raise DataError(
            f"input {name!r} is a masked array, which an engine cannot take; fill it with .filled()"
        )
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # as of ragged lists, or tensors of a GPU
        raise DataError(f"input {name!r} is not an array: {' '.join(str(error).split())}") from error


def _show_limits(spec: TensorSpec, limits: list[tuple[int, int | None]]) -> str:
    """Returns the shapes that fit: `(N, 3, 224..512, 224..512)`."""
    dims: list[int | str | None] = []
    for dim, (low, high) in zip(spec.shape, limits, strict=True):
        free = "N" if dim is None or isinstance(dim, int) else dim
        dims.append(free if high is None else high if low == high else f"{low}..{high}")
    return show_shape(dims)


def infer_in_batches(signature: Signature, feed: Arrays, infer: Infer) -> Arrays:
    """Returns the outputs for any number of samples, in runs of as many as the engine takes.

    What is left for a last run is filled up with its last sample where the engine takes no smaller batch, and
    the outputs are cut to what was given.

    Args:
        signature: Of the engine.
        feed: As of `take_feed`.
        infer: Runs the engine once; what it returns may be overwritten by the next run.

    Raises:
        DataError: There are several runs, or samples are filled up, and an output has no axis of samples, or
            runs give it different shapes.
    """
    fewest, most = signature.batch
    total = feed[signature.batched[0]].shape[0] if signature.batched else fewest
    if fewest <= total and (most is None or total <= most):
        return {name: np.array(array) for name, array in infer(feed).items()}
    allowed = f"exactly {most}" if fewest == most else f"{fewest} to {most or 'any number of'}"
    runs = (
        BatchRun(infer(part), _count(signature, part), count) for part, count in _cut(signature, feed, total)
    )
    return join_runs(signature, runs, f"give {allowed} samples at once")


def join_runs(signature: Signature, runs: Iterable[BatchRun], advice: str) -> Arrays:
    """Returns the outputs of several runs, one behind the other, without what was filled up.

    Args:
        signature: Of the engine.
        runs: In the order of the samples; what one gives may be overwritten by the next.
        advice: What the caller can do where that is not possible.

    Raises:
        DataError: An output has no axis of samples, or runs give it different shapes.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for run in runs:
        for name, array in run.outputs.items():
            found.setdefault(name, []).append(_cut_output(signature, name, array, run, advice))
    return {name: _join(name, arrays) for name, arrays in found.items()}


def _count(signature: Signature, feed: Arrays) -> int:
    return int(feed[signature.batched[0]].shape[0])


def _cut(signature: Signature, feed: Arrays, total: int) -> Iterator[tuple[Arrays, int]]:
    """Yields the feed in batches that the engine takes, each with how many of its samples were given."""
    fewest, most = signature.batch
    for start in range(0, total, most or total):
        part = dict(feed)
        for name in signature.batched:
            own = feed[name][start : start + (most or total)]
            part[name] = np.concatenate([own, np.repeat(own[-1:], max(0, fewest - len(own)), axis=0)])
        yield part, min(most or total, total - start)


def _cut_output(
    signature: Signature, name: str, array: NDArray[Any], run: BatchRun, advice: str
) -> NDArray[Any]:
    """Returns what an output says of the samples that were given."""
    spec = next(item for item in signature.outputs if item.name == name)
    if array.shape[:1] != (run.size,) or not signature.joins(spec):
        raise DataError(
            f"output {spec} has shape {show_shape(array.shape)} for {run.size} samples, and nothing says "
            f"that its first axis is theirs, so runs cannot be cut or joined; {advice}"
        )
    return np.array(array[: run.count])


def _join(name: str, arrays: list[NDArray[Any]]) -> NDArray[Any]:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        listed = " and ".join(sorted(map(show_shape, shapes)))
        raise DataError(
            f"output {name!r} has samples of shapes {listed} in different runs, which cannot be joined; "
            f"give fewer samples at once"
        )
    return np.concatenate(arrays)
