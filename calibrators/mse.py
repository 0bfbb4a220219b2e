"""The range with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import GridMethod
from trtq.calibrators.ranges import QMAX

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Mse(GridMethod):
    """The amax whose INT8 codes are nearest to the values in the mean of squares.

    Banner et al. (arXiv 1810.05723) search for the same optimum; a grid needs no assumption about the
    distribution.
    """

    def score(self, values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
        """Returns the negative of the squared error."""
        return -measure_squared_error(values, weights, amax)


def measure_squared_error(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns the weighted sum of squared errors of symmetric INT8 codes; see `GridMethod.score`."""
    scale = amax / QMAX
    codes = np.minimum(np.rint(values / scale), QMAX)
    return float(np.dot(weights, (values - codes * scale) ** 2))
