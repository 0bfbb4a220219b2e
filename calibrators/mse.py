"""The range with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.statistics import Histogram

_POINTS_PER_OCTAVE = 512


@dataclass(frozen=True, slots=True)
class Mse:
    """The amax, of a grid, whose INT8 grid is nearest to the values in the mean of squares.

    The grid is geometric from `smallest` times the largest magnitude up to it (Banner et al.,
    arXiv 1810.05723, search for the same optimum; a grid needs no assumption about the distribution).
    """

    num_candidates: int = 120
    smallest: float = 0.02

    def __post_init__(self) -> None:
        if self.num_candidates < 2 or not 0 < self.smallest < 1:
            raise UsageError(
                f"mse needs at least 2 candidates and 0 < smallest < 1, "
                f"got {self.num_candidates} and {self.smallest:g}"
            )

    def amax(self, histogram: Histogram) -> float:
        """Returns the best candidate; 0 for a dead tensor."""
        values, weights = histogram.points(_POINTS_PER_OCTAVE)
        if not values.size:
            return histogram.amax
        candidates = histogram.amax * np.geomspace(1.0, self.smallest, self.num_candidates)
        errors = [squared_error(values, weights, float(candidate)) for candidate in candidates]
        return float(candidates[int(np.argmin(errors))])


def squared_error(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the weighted sum of squared errors of symmetric INT8 with this amax.

    Args:
        values: Magnitudes, shape (n,).
        weights: How often each occurs, shape (n,).
        amax: What the code 127 stands for.
    """
    scale = amax / 127
    codes = np.minimum(np.rint(values / scale), 127)
    return float(np.dot(weights, (values - codes * scale) ** 2))
