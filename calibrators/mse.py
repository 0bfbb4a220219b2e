"""The range with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import GridMethod
from trtq.calibrators.levels import INT8_LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.levels import Levels


@dataclass(frozen=True, slots=True)
class Mse(GridMethod):
    """The amax whose codes are nearest to the values in the mean of squares.

    Banner et al. (arXiv 1810.05723) search for the same optimum; a grid needs no assumption about the
    distribution.
    """

    def score(
        self, values: NDArray[np.float64], weights: NDArray[np.float64], amax: float, levels: Levels
    ) -> float:
        """Returns the negative of the squared error."""
        return -measure_squared_error(values, weights, amax, levels)


def measure_squared_error(
    values: NDArray[np.float64], weights: NDArray[np.float64], amax: float, levels: Levels = INT8_LEVELS
) -> float:
    """Returns the weighted sum of squared errors of symmetric codes; see `GridMethod.score`."""
    scale = amax / levels.largest
    return float(np.dot(weights, (values - levels.round_steps(values / scale) * scale) ** 2))
