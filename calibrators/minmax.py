"""The range that holds every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtq.calibrators.statistics import Histogram


@dataclass(frozen=True, slots=True)
class MinMax:
    """The largest magnitude seen: nothing is clipped, and one outlier coarsens all."""

    def amax(self, histogram: Histogram) -> float:
        """Returns the largest magnitude."""
        return histogram.amax
