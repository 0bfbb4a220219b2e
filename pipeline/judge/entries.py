"""How near each channel, token or column of an output is: a loud one must not hide the others.

The cosine of a sample is that of its loudest part: with one channel 3000 times as loud as the other seven it
was 1.0 while these were dead. So the entries of each axis of a sample are looked at too.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask

_LOW_SHARE = 0.1
"""The low entry is the one that this share of the entries of an axis lies below."""
_LOST_SHARE = 0.01
"""No larger share of the entries may be lost that vary as much as others: of fewer than a hundred, none."""
_ROUNDING = 1e-12
"""An entry with less than this share of the squares of the loudest may be what is left of rounding."""
SCORE_NOISE = 0.05
"""Scores from 0 to 1 that are off by less are near: of a class that no sample shows, all are nearly 0."""
_AS_LOUD = 0.1
"""An entry is as loud as others if what varies of it has this share of the squares of the middle one."""
_LEAST_CHANGE = 1e-9
"""What varies of an entry is not known if it is less than this share of its squares, but for rounding."""


@dataclass(frozen=True, slots=True)
class EntrySums:
    """What is known of each entry of one axis: float64 arrays of its size.

    Attributes:
        totals: The sums of the reference.
        squares: The sums of its squares.
        errors: Those of the error.
        least: The least value of the reference.
        most: The greatest.
        count: How many values each entry has.
        are_places: Whether the entries are rows of a picture, which share their unit.
    """

    totals: NDArray[np.float64]
    squares: NDArray[np.float64]
    errors: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    count: int
    are_places: bool = False

    def merge(self, other: EntrySums) -> EntrySums:
        """Returns them with those of more values, of the same entries."""
        return EntrySums(
            self.totals + other.totals,
            self.squares + other.squares,
            self.errors + other.errors,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
            self.count + other.count,
            self.are_places,
        )

    def find_low(self) -> LowEntry:
        """Returns the entry by which the axis is judged.

        It is the low one: a tenth of the entries have more noise. But an entry that varies as much as others,
        and has as much noise as that, is lost: one answer for all would be as near. Of these there may be one
        in a hundred. Entries that are silent in the reference, or are near as scores are, do not count as far
        off.
        """
        loud = self.squares > _ROUNDING * self.squares.max(initial=0.0)
        if not loud.any():
            return LowEntry()
        are_scores = (self.least >= 0) & (self.most <= 1)
        near = are_scores & (self.errors <= SCORE_NOISE**2 * self.count)
        noise = np.where(near | ~loud, 0.0, self.errors)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            ratios = np.where(loud, noise / self._find_signals(), 0.0)
            low = np.argsort(-ratios, kind="stable")[int(_LOW_SHARE * loud.sum())]
            change = self.squares - self.totals**2 / self.count
            is_as_loud = (change > _LEAST_CHANGE * self.squares) & (
                change >= _AS_LOUD * np.median(change[loud])
            )
            lost = np.where(is_as_loud & loud, noise / change, 0.0)
        worst = int(np.argsort(-lost, kind="stable")[int(_LOST_SHARE * loud.sum())])
        hides = np.median(lost[loud]) < 1.0  # else the sums over all tell it
        if hides and lost[worst] >= max(1.0, ratios[low]):
            return LowEntry(float(lost[worst]), worst, loud.size)
        return LowEntry(float(ratios[low]), int(low), loud.size)

    def _find_signals(self) -> NDArray[np.float64]:
        """Returns what the noise of each entry is measured by: at least what places have in the mean."""
        return np.maximum(self.squares, self.squares.mean()) if self.are_places else self.squares


@dataclass(frozen=True, slots=True)
class LowEntry:
    """The entry by which an axis is judged.

    Attributes:
        ratio: Its noise as a share of its squares, or of what varies of it; 0 if none has noise.
        place: Which of them it is.
        size: How many entries the axis has.
    """

    ratio: float = 0.0
    place: int = 0
    size: int = 0


def measure_entries(
    error: NDArray[np.float64],
    reference: NDArray[np.float64],
    shape: tuple[int, ...],
    apart: Mask,
    places: Collection[int] = (),
) -> tuple[EntrySums, ...]:
    """Returns what one sample says of the entries of each of its axes.

    Args:
        error: The error of each value, flat.
        reference: What it should be, flat.
        shape: Of the sample.
        apart: Which values do not count, flat.
        places: The axes of the sample that are places of a picture.
    """
    if error.size <= 1:
        return ()
    if apart.any():
        error, reference = np.where(apart, 0.0, error), np.where(apart, 0.0, reference)
    return tuple(
        _sum_axis(error, reference, shape, axis, are_places=axis in places) for axis in range(len(shape))
    )


def _sum_axis(
    error: NDArray[np.float64],
    reference: NDArray[np.float64],
    shape: tuple[int, ...],
    axis: int,
    *,
    are_places: bool,
) -> EntrySums:
    """Returns the sums of one axis."""
    size = shape[axis]
    parts = (math.prod(shape[:axis]), size, math.prod(shape[axis + 1 :]))
    error, reference = error.reshape(parts), reference.reshape(parts)
    return EntrySums(
        reference.sum(axis=(0, 2)),
        np.einsum("akb,akb->k", reference, reference),
        np.einsum("akb,akb->k", error, error),
        reference.min(axis=(0, 2)),
        reference.max(axis=(0, 2)),
        error.size // size,
        are_places,
    )


def merge_entries(
    sums: tuple[EntrySums | None, ...] | None, sample: tuple[EntrySums, ...]
) -> tuple[EntrySums | None, ...]:
    """Returns the sums with those of one more sample; None for an axis that differs in size."""
    if sums is None or len(sums) != len(sample):
        return sample if sums is None else ()
    return tuple(_merge(*pair) for pair in zip(sums, sample, strict=True))


def _merge(ours: EntrySums | None, other: EntrySums) -> EntrySums | None:
    return None if ours is None or ours.squares.shape != other.squares.shape else ours.merge(other)


def find_low_entry(sums: tuple[EntrySums | None, ...] | None) -> LowEntry:
    """Returns the low entry of the axis where that has the most noise."""
    found = (item.find_low() for item in sums or () if item is not None)
    return max(found, key=lambda item: item.ratio, default=LowEntry())
