"""The range that holds every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtq.calibrators.levels import INT8_LEVELS

if TYPE_CHECKING:
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram


@dataclass(frozen=True, slots=True)
class MinMax:
    """The largest magnitude seen: nothing is clipped, and one outlier coarsens all."""

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the largest magnitude."""
        return histogram.amax
