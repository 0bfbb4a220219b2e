"""The range that keeps the direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.grid import GridMethod

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trtq.calibrators.grid import RoundedSums


@dataclass(frozen=True, slots=True)
class Cosine(GridMethod):
    """The amax whose quantized copy of the values has the largest cosine with them.

    After EasyQuant (Wu et al., arXiv 2006.16669, section 3.1), which searches scales by the cosine of
    the outputs of layers; here it is that of the tensor itself, so that a histogram is enough.
    """

    def score(self, sums: RoundedSums) -> NDArray[np.float64]:
        """Returns the cosines."""
        return find_cosines(sums)


def find_cosines(sums: RoundedSums) -> NDArray[np.float64]:
    """Returns the cosine of values with their quantized copies, for each clip; 0 where these are 0."""
    lengths = np.sqrt(sums.squares * sums.power)
    return np.divide(sums.products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
