"""The range with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import check_grid, search_grid
from trtq.calibrators.ranges import QMAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.statistics import Histogram


@dataclass(frozen=True, slots=True)
class Mse:
    """The amax, of a grid, whose INT8 grid is nearest to the values in the mean of squares.

    The grid is geometric from `smallest` times the largest magnitude up to it (Banner et al.,
    arXiv 1810.05723, search for the same optimum; a grid needs no assumption about the distribution).
    """

    num_candidates: int = 120
    smallest: float = 0.02

    def __post_init__(self) -> None:
        check_grid("mse", self.num_candidates, self.smallest)

    def amax(self, histogram: Histogram) -> float:
        """Returns the best candidate; 0 for a dead tensor."""
        return search_grid(
            histogram,
            self.num_candidates,
            self.smallest,
            lambda values, weights, amax: -measure_squared_error(values, weights, amax),
        )


def measure_squared_error(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the weighted sum of squared errors of symmetric INT8 with this amax.

    Args:
        values: Magnitudes, shape (n,).
        weights: How often each occurs, shape (n,).
        amax: What the code 127 stands for.
    """
    scale = amax / QMAX
    codes = np.minimum(np.rint(values / scale), QMAX)
    return float(np.dot(weights, (values - codes * scale) ** 2))
