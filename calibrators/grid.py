"""Methods that take the best of the clips on a geometric grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.levels import INT8_LEVELS
from trtq.errors import UsageError
from trtq.models.option import setting
from trtq.sums import sum_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram

_POINTS_PER_OCTAVE = 512
_MOST_CANDIDATES = 1 << 16
EXACT = 1e-12
"""What running totals in float64 do not tell from 0, as a share of what they add up to."""


@dataclass(frozen=True, slots=True)
class GridMethod(ABC):
    """The amax with the highest score of those from the largest magnitude down, in equal ratios.

    Attributes:
        num_candidates: How many clips are tried.
        smallest: The smallest clip, as a share of the largest magnitude.
    """

    num_candidates: int = setting(120, is_hidden=True)
    smallest: float = setting(0.02, is_hidden=True)

    def __post_init__(self) -> None:
        check_grid(type(self).__name__.lower(), self.num_candidates, self.smallest)

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the best candidate, the largest of equals; 0 for a dead tensor."""
        values, weights = histogram.points(_POINTS_PER_OCTAVE)
        if not values.size:
            return histogram.amax
        candidates = histogram.amax * np.geomspace(1.0, self.smallest, self.num_candidates)
        scores = self.score(sum_rounded(values, weights, candidates, levels))
        return float(candidates[int(np.argmax(scores >= scores.max() - EXACT))])

    @abstractmethod
    def score(self, sums: RoundedSums) -> NDArray[np.float64]:
        """Returns how good each clip is, from -1 to 1: float64, shape (clips,)."""


@dataclass(frozen=True, slots=True)
class RoundedSums:
    """What values and the levels that stand for them sum to, for several clips.

    Attributes:
        power: The sum of the squares of the values.
        products: The sums of values times levels: float64, shape (clips,).
        squares: The sums of the squares of the levels: float64, shape (clips,).
    """

    power: float
    products: NDArray[np.float64]
    squares: NDArray[np.float64]


def sum_rounded(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    amaxes: NDArray[np.float64],
    levels: Levels = INT8_LEVELS,
) -> RoundedSums:
    """Returns the sums of values and of the nearest levels, which running totals give for all clips at once.

    Args:
        values: Magnitudes: float64, ascending, shape (n,).
        weights: How often each occurs: float64, shape (n,).
        amaxes: What the largest level stands for: float64, shape (clips,).
        levels: Of the number format.
    """
    marks = levels.magnitudes
    scales = np.asarray(amaxes)[:, None] / levels.largest
    places = np.searchsorted(values, (marks[1:] + marks[:-1]) / 2 * scales)
    firsts = np.pad(places, ((0, 0), (1, 1)))
    firsts[:, -1] = values.size
    counts, totals = (
        np.diff(np.concatenate([[0.0], np.cumsum(item)])[firsts], axis=1)
        for item in (weights, weights * values)
    )
    chosen = marks * scales
    power = sum_products(weights, np.square(values))
    return RoundedSums(power, (totals * chosen).sum(axis=1), (counts * np.square(chosen)).sum(axis=1))


def check_grid(method: str, num_candidates: int, smallest: float) -> None:
    """Refuses a grid of which nothing can be chosen.

    Raises:
        UsageError: It has less than two candidates or far too many, or does not end between 0 and 1.
    """
    if not 2 <= num_candidates <= _MOST_CANDIDATES or not 0 < smallest < 1:
        raise UsageError(
            f"{method} needs 2 to {_MOST_CANDIDATES} candidates and 0 < smallest < 1, "
            f"got {num_candidates} and {smallest:g}"
        )
