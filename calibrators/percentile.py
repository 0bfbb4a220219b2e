"""The range that holds a given share of the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtq.calibrators.levels import INT8_LEVELS
from trtq.errors import UsageError
from trtq.models.option import setting

if TYPE_CHECKING:
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram


@dataclass(frozen=True, slots=True)
class Percentile:
    """The magnitude that `percentile` per cent of all values, zeros included, do not exceed.

    Attributes:
        percentile: The share of values, in per cent, that its range holds.
    """

    percentile: float = setting(99.99)

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise UsageError(f"percentile must be above 0 and at most 100, got {self.percentile}")

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the percentile; the largest magnitude where the percentile falls among zeros."""
        return histogram.quantile(self.percentile / 100) or histogram.amax
