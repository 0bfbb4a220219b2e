"""The range that holds every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtq.calibrators.levels import INT8_LEVELS

_LARGEST = 3.4028234663852886e38

if TYPE_CHECKING:
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram


@dataclass(frozen=True, slots=True)
class MinMax:
    """The largest magnitude seen: nothing is clipped, and one outlier coarsens all."""

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the largest magnitude."""
        return histogram.amax


@dataclass(frozen=True, slots=True)
class RoomyMinMax(MinMax):
    """So many times the largest magnitude seen, for formats whose steps grow with the numbers.

    FP8 has steps of an eighth of the power of two below each number. With twice the range all numbers keep
    their steps, but for the very smallest, and what other data holds beyond the largest seen is not clipped.

    Attributes:
        headroom: How many times; a power of two leaves the steps where they are.
    """

    headroom: float = 2.0

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the largest magnitude with the headroom, at most the largest float32."""
        return min(self.headroom * histogram.amax, _LARGEST)
