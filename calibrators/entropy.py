"""The range that loses the least information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.levels import INT8_LEVELS, are_even
from trtq.errors import UsageError
from trtq.models.option import setting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram

_MOST_BINS = 1 << 20
_ROUNDING = 1e-9
"""Whole numbers of bins stay whole when they are multiplied by edges that are no binary fractions."""
_SMOOTHING = 1e-4
"""The count that stands for an empty bin of Q into which values were clipped (as MXNet smooths)."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """The clip whose quantized distribution has the smallest Kullback-Leibler divergence from the values'.

    The procedure is TensorRT's as published (S. Migacz, "8-bit Inference with TensorRT", GTC 2017): 2048
    bins of magnitudes, every clip from the 128th bin on, what is clipped is added to the last bin, 128
    levels, amax = (bin + 1/2) * width. The width is a power of two, which gives `num_bins` or up to half as
    many, so that counts and choice are those of the values themselves. Two things differ, because the plain
    procedure collapses on values with a spike at zero or at an upper bound (ReLU6), where it has cost
    EfficientNet-Lite0 44 points:

    - exact zeros are left out: they have no error in any range;
    - no clip may cut off more than `max_clipped` of the other values.

    Attributes:
        num_bins: The largest number of bins of its histogram.
        num_levels: Levels of the quantized distribution where they are equally far apart; FP8 has its own.
        max_clipped: The largest share of the values that it may clip.
    """

    num_bins: int = setting(2048, is_hidden=True)
    num_levels: int = setting(128, is_hidden=True)
    max_clipped: float = setting(0.0001, is_hidden=True)

    def __post_init__(self) -> None:
        if not 2 <= self.num_levels <= self.num_bins <= _MOST_BINS or not 0 < self.max_clipped <= 1:
            raise UsageError(
                f"entropy needs 2 <= num_levels <= num_bins <= {_MOST_BINS} and 0 < max_clipped <= 1, "
                f"got {self.num_levels}, {self.num_bins} and {self.max_clipped:g}"
            )

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the best clip; the largest magnitude where there is nothing to choose."""
        counts, width = histogram.exact(self.num_bins)
        if not counts.any() or counts.size <= self.num_levels:
            return histogram.amax
        kept = np.cumsum(counts)[self.num_levels - 1 :]
        allowed = kept >= (1 - self.max_clipped) * counts.sum()
        allowed[-1] = True
        first = self.num_levels + int(np.argmax(allowed))  # all that are wider are allowed too
        edges = find_edges(levels, self.num_levels)
        best = first + int(np.argmin(measure_divergences(counts, edges, first)))
        return min((best + 0.5) * width, histogram.amax)


@dataclass(frozen=True, slots=True)
class Auto(Entropy):
    """The method that loses least on calibration data held back; entropy where nothing can be tried."""


@dataclass(frozen=True, slots=True)
class EntropyWithRows(Entropy):
    """Entropy, and for what a softmax gets the least cross-entropy of sampled rows (`CrossEntropy`)."""


def find_edges(levels: Levels, num_levels: int) -> NDArray[np.float64]:
    """Returns where the levels of a format meet, from 0 to 1, the largest level: float64, ascending.

    Where they are equally far apart, `num_levels` of them are taken.
    """
    if are_even(levels):
        return np.arange(num_levels + 1) / num_levels
    middles = (levels.magnitudes[1:] + levels.magnitudes[:-1]) / 2
    return np.concatenate([[0.0], middles / levels.largest, [1.0]])


def measure_divergences(
    counts: NDArray[np.float64], edges: NDArray[np.float64], first: int
) -> NDArray[np.float64]:
    """Returns the divergence for every clip after `first` bins and more.

    With P the first i bins plus the rest in the last of them, and Q the same bins merged between the edges
    and spread again over those that are not empty, the sum over bins of P log(P/Q) needs only the sums over
    the merged groups, so that all clips are computed at once from running totals.

    Args:
        counts: float64, shape (bins,), not all zero.
        edges: Of `find_edges`.
        first: The bins of the narrowest clip.

    Returns:
        float64, shape (bins - first + 1,); infinite where a clip leaves nothing.
    """
    total = counts.sum()
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    logs = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    clips = np.arange(first, counts.size + 1)
    borders = np.floor(clips[:, None] * edges + _ROUNDING).astype(np.int64)
    clipped = total - sums[clips]
    last = counts[clips - 1]

    merged = np.diff(sums[borders], axis=1)
    spread = np.diff(filled[borders], axis=1)
    spread[:, -1] += (last == 0) & (clipped > 0)  # the clipped values fill a bin that was empty
    mass = merged.copy()
    mass[:, -1] += clipped
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = np.where(mass > 0, mass * np.log(np.maximum(merged / spread, _SMOOTHING)), 0.0).sum(axis=1)
        own = logs[clips] - _x_log_x(last) + _x_log_x(last + clipped)
        result = (own - cross) / total + np.log((total - clipped) / total)
    return np.where(sums[clips] > 0, result, np.inf)


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))
