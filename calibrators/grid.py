"""Methods that take the best of the clips on a geometric grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.levels import INT8_LEVELS
from trtq.errors import UsageError
from trtq.models.option import setting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram

_POINTS_PER_OCTAVE = 512
_MOST_CANDIDATES = 1 << 16


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
        scores = [self.score(values, weights, float(candidate), levels) for candidate in candidates]
        return float(candidates[int(np.argmax(scores))])

    @abstractmethod
    def score(
        self, values: NDArray[np.float64], weights: NDArray[np.float64], amax: float, levels: Levels
    ) -> float:
        """Returns how good a clip is.

        Args:
            values: Magnitudes, shape (n,).
            weights: How often each occurs, shape (n,).
            amax: What the largest level stands for.
            levels: Of the number format.
        """


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
