"""Which values of an output are judged apart, as they would hide all others: steady and masked ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Name = TypeVar("Name", bound=Hashable)

_STEADY = 0.01
"""A value that stays within this share of its magnitude: -10000 that a mask adds, with a logit on top."""
_MASKED = -5e3
"""Below it a score is that of a class that is ruled out: -10000, -65504, -1e9, the least of float32."""
_MASKED_GAP = 0.1
"""Such scores are far from all others, which are above this share of the highest masked one."""


@dataclass(slots=True)
class OutputSpread:
    """The least and the greatest of each value of an output so far: two arrays of the shape of one sample.

    Where the samples differ in shape, those of each entry of the last axis; where these differ too, none.
    """

    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None
    is_open: bool = True

    def merge(self, other: OutputSpread) -> None:
        """Takes in one more batch."""
        if not self.is_open or other.low is None or other.high is None:
            return
        low, high = other.low, other.high
        if self.low is not None and self.high is not None:
            low, high = self._fit(low, -1), self._fit(high, 1)
            if self.low.shape != low.shape:
                self.low, self.high, self.is_open = None, None, False
                return
            low, high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.low, self.high = low, high

    def _fit(self, seen: NDArray[Any], sign: int) -> NDArray[Any]:
        """Returns what was seen of a batch in the shape that is kept, which may become its last axis."""
        assert self.low is not None
        assert self.high is not None
        if self.low.shape == seen.shape:
            return seen
        self.low, self.high = _reduce(self.low, -1), _reduce(self.high, 1)
        return _reduce(seen, sign)

    @property
    def steady(self) -> Mask | None:
        """Returns which values hardly changed and are not zero; None if there are none."""
        if self.low is None or self.high is None:
            return None
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        largest = np.maximum(np.abs(low), np.abs(high))
        with np.errstate(invalid="ignore"):
            found = (high - low <= _STEADY * largest) & np.isfinite(largest) & (largest > 0)
        return found if found.any() else None


def _reduce(array: NDArray[Any], sign: int) -> NDArray[Any]:
    axes = tuple(range(array.ndim - 1))
    return np.asarray(array.max(axis=axes) if sign > 0 else array.min(axis=axes)) if axes else array


def measure_spreads(outputs: Mapping[Name, NDArray[Any]], num_samples: int) -> dict[Name, OutputSpread]:
    """Returns the spreads of the outputs of one batch; values that are not finite count nothing."""
    found: dict[Name, OutputSpread] = {}
    for name, output in outputs.items():
        if np.issubdtype(output.dtype, np.number) and output.size:
            rows = split_by_sample(output, num_samples)
            kept = np.isfinite(rows)
            low = np.where(kept, rows, np.inf).min(axis=0)
            found[name] = OutputSpread(low, np.where(kept, rows, -np.inf).max(axis=0))
    return found


def find_steady(runs: Iterable[tuple[Mapping[Name, OutputSpread], int]]) -> dict[Name, Mask]:
    """Returns the values of each output that hardly change, in the shape of a sample or of its last axis.

    Stops to ask for batches as soon as nothing is steady any more, which with most models is the second
    sample. Of a single sample nothing can be known.

    Args:
        runs: The spreads of the outputs of a reference for each batch, and how many samples it has.
    """
    spreads: dict[Name, OutputSpread] = {}
    num_samples = 0
    for seen, count in runs:
        num_samples += count
        for name, spread in seen.items():
            spreads.setdefault(name, OutputSpread()).merge(spread)
        if num_samples > 1 and all(spread.steady is None for spread in spreads.values()):
            break
    found = {name: spread.steady for name, spread in spreads.items()} if num_samples > 1 else {}
    return {name: mask for name, mask in found.items() if mask is not None}


def split_by_sample(output: NDArray[Any], num_samples: int) -> NDArray[Any]:
    """Returns an output with its samples along the first axis: as one row where it has no axis for them."""
    return output if output.ndim and output.shape[0] == num_samples else output[np.newaxis]


def find_apart(rows: NDArray[Any], steady: Mask | None = None) -> Mask:
    """Returns which values are not judged with the others, in the shape of the rows; none if all would be.

    Args:
        rows: An output of the reference, as of `split_by_sample`.
        steady: Which values hardly change between samples; of the shape of a sample or of its last axis.
    """
    if steady is None and (not rows.size or rows.min() > _MASKED):  # not so of NaN
        return np.zeros(rows.shape, bool)
    fine = np.isfinite(rows)
    found = _find_masked(rows.reshape(len(rows), -1), fine.reshape(len(rows), -1)).reshape(rows.shape)
    if steady is not None and rows.shape[-steady.ndim :] == steady.shape:
        found = found | steady
    found = found & fine
    return np.asarray(found if (fine & ~found).any() else np.zeros_like(found))


def _find_masked(rows: NDArray[Any], fine: Mask) -> Mask:
    """Returns the scores that rule a class out: in each sample very low, and far below all others."""
    low = fine & (rows <= _MASKED)
    if not low.any():
        return low
    highest = np.where(low, rows, -np.inf).max(axis=1, keepdims=True)
    least = np.where(fine & ~low, rows, np.inf).min(axis=1, keepdims=True)
    return np.asarray(low & (least > _MASKED_GAP * highest) & np.isfinite(least))
