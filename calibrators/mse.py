"""The range with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import EXACT, GridMethod

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.grid import RoundedSums


@dataclass(frozen=True, slots=True)
class Mse(GridMethod):
    """The amax whose codes are nearest to the values in the mean of squares.

    Banner et al. (arXiv 1810.05723) search for the same optimum; a grid needs no assumption about the
    distribution.
    """

    def score(self, sums: RoundedSums) -> NDArray[np.float64]:
        """Returns the negatives of the squared errors, as shares of the power."""
        return -find_squared_errors(sums) / sums.power


def find_squared_errors(sums: RoundedSums) -> NDArray[np.float64]:
    """Returns the squared error of each clip: float64, shape (clips,); 0 where there may be none."""
    errors = sums.power - 2 * sums.products + sums.squares
    return np.where(errors > EXACT * sums.power, errors, 0.0)
