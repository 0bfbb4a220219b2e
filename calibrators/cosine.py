"""The range that keeps the direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.statistics import Histogram

_POINTS_PER_OCTAVE = 512
_QMAX = 127


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
        if self.num_candidates < 2 or not 0 < self.smallest < 1:
            raise UsageError(
                f"cosine needs at least 2 candidates and 0 < smallest < 1, "
                f"got {self.num_candidates} and {self.smallest:g}"
            )

    def amax(self, histogram: Histogram) -> float:
        """Returns the best candidate, the largest of equals; 0 for a dead tensor."""
        values, weights = histogram.points(_POINTS_PER_OCTAVE)
        if not values.size:
            return histogram.amax
        candidates = histogram.amax * np.geomspace(1.0, self.smallest, self.num_candidates)
        cosines = [cosine(values, weights, float(candidate)) for candidate in candidates]
        return float(candidates[int(np.argmax(cosines))])


def cosine(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the cosine between values and their symmetric INT8 copies with this amax; 0 if all become 0.

    Args:
        values: Magnitudes, shape (n,).
        weights: How often each occurs, shape (n,).
        amax: What the code 127 stands for.
    """
    codes = np.minimum(np.rint(values / (amax / _QMAX)), _QMAX)
    length = float(np.dot(weights, codes**2))
    if length == 0:
        return 0.0
    return float(np.dot(weights, values * codes) / np.sqrt(length * np.dot(weights, values**2)))
