"""What is kept of a tensor's values: a histogram of fixed size that needs no range in advance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 11
_SHIFT = 23 - _MANTISSA_BITS
_SMALLEST_EXPONENT = -40
_FIRST = (127 + _SMALLEST_EXPONENT) << _MANTISSA_BITS
_INFINITE = (255 << _MANTISSA_BITS) - _FIRST
BINS_PER_OCTAVE = 1 << _MANTISSA_BITS
NUM_BINS = _INFINITE
"""Magnitudes from 2**-40 to the largest float; bin 0 also holds everything smaller, zeros above all."""


def bin_edges() -> NDArray[np.float64]:
    """Returns the lower edges of the bins and the upper edge of the last: float64, shape (NUM_BINS + 1,)."""
    bits = (np.arange(_FIRST, _FIRST + NUM_BINS + 1, dtype=np.uint32)) << np.uint32(_SHIFT)
    edges = bits.view(np.float32).astype(np.float64)
    edges[0] = 0.0
    edges[-1] = 2.0**128
    return edges


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of magnitudes, with the exact extremes.

    The bin of a value is its float32 exponent and its first 11 mantissa bits (the idea of HdrHistogram,
    G. Tene): bins are at most 0.05 % wide relative to their values, over the whole range of float32, so
    nothing has to be known in advance, the order of the values does not matter, and two histograms add up.

    Attributes:
        counts: int64, shape (NUM_BINS,).
        minimum: The smallest value seen; +inf before the first.
        maximum: The largest value seen; -inf before the first.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    minimum: float = np.inf
    maximum: float = -np.inf

    @property
    def amax(self) -> float:
        """The largest magnitude, exact; 0 before the first value."""
        return max(abs(self.minimum), abs(self.maximum)) if self.total else 0.0

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """The number of values below 2**-40 in magnitude."""
        return int(self.counts[0])

    def with_values(self, values: NDArray[np.floating]) -> Histogram:
        """Returns the histogram with these values added; this one must not be used any more.

        Args:
            values: Any float dtype and shape.

        Raises:
            FloatingPointError: A value is NaN or infinite.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return self
        bins = (flat.view(np.uint32) & np.uint32(0x7FFFFFFF)) >> np.uint32(_SHIFT)
        np.maximum(bins, np.uint32(_FIRST), out=bins)
        bins -= np.uint32(_FIRST)
        if int(bins.max()) >= _INFINITE:
            raise FloatingPointError(f"{int((~np.isfinite(flat)).sum())} values are NaN or infinite")
        counted = np.bincount(bins)
        self.counts[: counted.size] += counted
        return Histogram(
            self.counts, min(self.minimum, float(flat.min())), max(self.maximum, float(flat.max()))
        )

    def merged(self, other: Histogram) -> Histogram:
        """Returns the histogram of the values of both."""
        return Histogram(
            self.counts + other.counts, min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        )

    def points(self, per_octave: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the magnitudes above 2**-40 as points with weights, zeros left out.

        Args:
            per_octave: How many points stand for a doubling of the magnitude; divides 2048.

        Returns:
            The centres, ascending, and the counts: float64, shape (points,) each.
        """
        step = BINS_PER_OCTAVE // per_octave
        counts = self.counts.copy()
        counts[0] = 0
        merged = counts.reshape(-1, step).sum(axis=1)
        used = np.flatnonzero(merged)
        edges = bin_edges()
        centres = (edges[used * step] + edges[(used + 1) * step]) / 2
        return np.minimum(centres, self.amax), merged[used].astype(np.float64)

    def linear(self, num_bins: int) -> NDArray[np.float64]:
        """Returns the counts over equal bins from 0 to amax, zeros left out: float64, shape (num_bins,).

        Values are taken as evenly spread inside each of the narrow bins, so counts come out as fractions.
        """
        used = np.flatnonzero(self.counts[1:]) + 1
        if not used.size:
            return np.zeros(num_bins)
        first, last = int(used[0]), int(used[-1])
        edges = bin_edges()[first : last + 2]
        edges[-1] = self.amax  # which lies in the last of these bins
        cumulated = np.concatenate([[0.0], np.cumsum(self.counts[first : last + 1], dtype=np.float64)])
        return np.diff(np.interp(np.linspace(0.0, self.amax, num_bins + 1), edges, cumulated))

    def quantile(self, fraction: float) -> float:
        """Returns the magnitude that this fraction (0 to 1) of all values, zeros included, do not exceed."""
        cumulated = np.cumsum(self.counts)
        rank = fraction * int(cumulated[-1])
        index = int(np.searchsorted(cumulated, rank))
        if index == 0:
            return 0.0
        low, high = bin_edges()[index : index + 2]
        below = int(cumulated[index - 1])
        inside = (rank - below) / int(self.counts[index])
        return min(float(low + (high - low) * inside), self.amax)
