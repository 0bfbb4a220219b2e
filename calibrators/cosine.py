"""The range that keeps the direction."""

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
class Cosine:
    """The amax, of a grid, whose INT8 copy of the values has the largest cosine with them.

    After EasyQuant (Wu et al., arXiv 2006.16669, section 3.1), which searches scales by the cosine of
    the outputs of layers; here it is that of the tensor itself, so that a histogram is enough. The grid is
    geometric from `smallest` times the largest magnitude up to it.
    """

    num_candidates: int = 120
    smallest: float = 0.02

    def __post_init__(self) -> None:
        check_grid("cosine", self.num_candidates, self.smallest)

    def amax(self, histogram: Histogram) -> float:
        """Returns the best candidate, the largest of equals; 0 for a dead tensor."""
        return search_grid(histogram, self.num_candidates, self.smallest, measure_cosine)


def measure_cosine(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the cosine between values and their symmetric INT8 copies with this amax; 0 if all become 0.

    Args:
        values: Magnitudes, shape (n,).
        weights: How often each occurs, shape (n,).
        amax: What the code 127 stands for.
    """
    codes = np.minimum(np.rint(values / (amax / QMAX)), QMAX)
    length = float(np.dot(weights, codes**2))
    if length == 0:
        return 0.0
    return float(np.dot(weights, values * codes) / np.sqrt(length * np.dot(weights, values**2)))
