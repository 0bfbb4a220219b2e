"""The range that keeps the direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import GridMethod
from trtq.calibrators.ranges import QMAX

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cosine(GridMethod):
    """The amax whose INT8 copy of the values has the largest cosine with them.

    After EasyQuant (Wu et al., arXiv 2006.16669, section 3.1), which searches scales by the cosine of
    the outputs of layers; here it is that of the tensor itself, so that a histogram is enough.
    """

    def score(self, values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
        """Returns the cosine."""
        return measure_cosine(values, weights, amax)


def measure_cosine(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the cosine between values and their INT8 copies, 0 if these are 0; see `GridMethod.score`."""
    codes = np.minimum(np.rint(values / (amax / QMAX)), QMAX)
    length = float(np.dot(weights, codes**2))
    if length == 0:
        return 0.0
    return float(np.dot(weights, values * codes) / np.sqrt(length * np.dot(weights, values**2)))
