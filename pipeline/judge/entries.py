"""How near each channel, token or column of an output is: a loud one must not hide the others.

The cosine of a sample is that of its loudest part: with one channel 3000 times as loud as the other seven it
was 1.0 while these were dead. So the entries of each axis of a sample are looked at too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask

_LOW_SHARE = 0.1
"""The low entry is the one that this share of the entries of an axis lies below."""
_ROUNDING = 1e-12
"""An entry with less than this share of the squares of the loudest may be what is left of rounding."""
_SCORE_NOISE = 0.05
"""Scores from 0 to 1 that are off by less are near: of a class that no sample shows, all are nearly 0."""


@dataclass(frozen=True, slots=True)
class EntrySums:
    """What is known of each entry of one axis: float64 arrays of its size.

    Attributes:
        squares: The sums of the squares of the reference.
        errors: Those of the error.
        least: The least value of the reference.
        most: The greatest.
        count: How many values each entry has.
    """

    squares: NDArray[np.float64]
    errors: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    count: int

    def merge(self, other: EntrySums) -> EntrySums:
        """Returns them with those of more values, of the same entries."""
        return EntrySums(
            self.squares + other.squares,
            self.errors + other.errors,
            np.minimum(self.least, other.least),
            np.maximum(self.most, other.most),
            self.count + other.count,
        )

    @property
    def ratio(self) -> float:
        """The noise of the low entry as a share of the squares of its reference; 0 if none has noise.

        Entries that are silent in the reference, or are near as scores are, do not count as far off.
        """
        loud = self.squares > _ROUNDING * self.squares.max(initial=0.0)
        if not loud.any():
            return 0.0
        are_scores = (self.least >= 0) & (self.most <= 1)
        near = are_scores & (self.errors <= _SCORE_NOISE**2 * self.count)
        with np.errstate(invalid="ignore", over="ignore"):
            ratios = np.where(near, 0.0, self.errors)[loud] / self.squares[loud]
        return float(np.sort(ratios)[::-1][int(_LOW_SHARE * len(ratios))])


def measure_entries(
    error: NDArray[np.float64], reference: NDArray[np.float64], shape: tuple[int, ...], apart: Mask
) -> tuple[EntrySums, ...]:
    """Returns what one sample says of the entries of each of its axes.

    Args:
        error: The error of each value, flat.
        reference: What it should be, flat.
        shape: Of the sample.
        apart: Which values do not count, flat.
    """
    if error.size <= 1:
        return ()
    if apart.any():
        error, reference = np.where(apart, 0.0, error), np.where(apart, 0.0, reference)
    return tuple(_sum_axis(error, reference, shape, axis) for axis in range(len(shape)))


def _sum_axis(
    error: NDArray[np.float64], reference: NDArray[np.float64], shape: tuple[int, ...], axis: int
) -> EntrySums:
    """Returns the sums of one axis."""
    size = shape[axis]
    places = (math.prod(shape[:axis]), size, math.prod(shape[axis + 1 :]))
    error, reference = error.reshape(places), reference.reshape(places)
    return EntrySums(
        np.einsum("akb,akb->k", reference, reference),
        np.einsum("akb,akb->k", error, error),
        reference.min(axis=(0, 2)),
        reference.max(axis=(0, 2)),
        error.size // size,
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


def find_noise_ratio(sums: tuple[EntrySums | None, ...] | None) -> float:
    """Returns the greatest noise of a low entry, as a share of its reference; 0 where none is known."""
    return max((item.ratio for item in sums or () if item is not None), default=0.0)
