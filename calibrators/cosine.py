"""The range that keeps the direction."""

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
class Cosine(GridMethod):
    """The amax whose quantized copy of the values has the largest cosine with them.

    After EasyQuant (Wu et al., arXiv 2006.16669, section 3.1), which searches scales by the cosine of
    the outputs of layers; here it is that of the tensor itself, so that a histogram is enough.
    """

    def score(
        self, values: NDArray[np.float64], weights: NDArray[np.float64], amax: float, levels: Levels
    ) -> float:
        """Returns the cosine."""
        return measure_cosine(values, weights, amax, levels)


def measure_cosine(
    values: NDArray[np.float64], weights: NDArray[np.float64], amax: float, levels: Levels = INT8_LEVELS
) -> float:
    """Returns the cosine of values with their quantized copies, 0 if these are 0; see `GridMethod.score`."""
    codes = levels.round_steps(values / (amax / levels.largest))
    length = float(np.dot(weights, codes**2))
    if length == 0:
        return 0.0
    return float(np.dot(weights, values * codes) / np.sqrt(length * np.dot(weights, values**2)))
