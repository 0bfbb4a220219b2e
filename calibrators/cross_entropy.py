"""The range that keeps what a softmax makes of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import check_grid
from trtq.calibrators.levels import INT8_LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.levels import Levels

_NO_WEIGHT_NATS = 32.0
"""What lies so far below the largest value of its row gets no weight from a softmax: a mask, mostly."""
_LEAST_GAIN = 1e-9


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The amax, of a grid, with the least cross-entropy between softmax(V) and that of its quantized copy.

    After Nagel et al., "A White Paper on Neural Network Quantization" (arXiv 2106.08295, section 3.1): a
    softmax asks for the order of the largest values of a row and for how far they are apart; how near all
    values are, which the methods of histograms go by, says little of it. Rows are in no histogram, so this
    is no `Method`: it looks at sampled rows.

    The grid is geometric from the largest magnitude down to `smallest` times it. Values more than 32 nats
    below the largest of their row count as so far below: a mask of -3e38 does not stretch the grid.
    """

    num_candidates: int = 60
    smallest: float = 0.02

    def __post_init__(self) -> None:
        check_grid("cross-entropy", self.num_candidates, self.smallest)

    def amax(self, rows: NDArray[np.float64], levels: Levels = INT8_LEVELS) -> float:
        """Returns the best candidate, the largest of equals; 0 if no row tells anything.

        Args:
            rows: What a softmax gets, shape (rows, classes); those with NaN or without a finite largest value
                are left out.
            levels: Of the number format.
        """
        largest = rows.max(axis=1, keepdims=True, initial=-np.inf)
        known = np.isfinite(largest[:, 0])
        values = np.maximum(rows[known], largest[known] - _NO_WEIGHT_NATS)
        magnitude = float(np.abs(values).max(initial=0.0))
        if magnitude == 0:
            return 0.0
        wanted = np.exp(values - largest[known])
        wanted /= wanted.sum(axis=1, keepdims=True)
        best, least = magnitude, np.inf
        for amax in magnitude * np.geomspace(1.0, self.smallest, self.num_candidates):
            loss = cross_entropy(values, wanted, float(amax), levels)
            if loss < least - _LEAST_GAIN:
                best, least = float(amax), loss
        return best


def cross_entropy(
    values: NDArray[np.float64], wanted: NDArray[np.float64], amax: float, levels: Levels = INT8_LEVELS
) -> float:
    """Returns the mean cross-entropy of the rows, in nats, if they are quantized symmetrically.

    Args:
        values: Shape (rows, classes), finite.
        wanted: Their softmax, of the same shape.
        amax: What the largest level stands for.
        levels: Of the number format.
    """
    scale = amax / levels.largest
    found = levels.round_steps(values / scale) * scale
    largest = found.max(axis=1, keepdims=True)
    norm = largest[:, 0] + np.log(np.exp(found - largest).sum(axis=1))
    return float(np.mean(norm - (wanted * found).sum(axis=1)))
