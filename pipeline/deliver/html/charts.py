"""The geometry of the page's charts: where lines run and what stands at the axes. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from trtq.pipeline.deliver.html.numbers import format_magnitude, format_power_of_ten
from trtq.pipeline.deliver.html.page_data import TensorSummary

WIDTH, HEIGHT = 320, 154
LEFT, RIGHT, TOP, BOTTOM = 34, 312, 24, 124
_LOWEST = 0.5
"""The count at the lower end of the logarithmic axis: a single value still has a height."""
_MOST_TICKS = 4
_BETWEEN_HEADS = 6


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, in the units of the drawing, and what is written there."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a method clips: `x`, and the height `y` of its head, which no other one has."""

    x: float
    y: int


@dataclass(frozen=True, slots=True)
class HistogramChart:
    """A histogram with a logarithmic axis of counts.

    Attributes:
        area: The path of the counts, in bins from the left edge and units of the drawing from above.
        bin_width: In units of the drawing.
        x_ticks: Magnitudes.
        y_ticks: Counts.
        used: Where the range ends that is used.
        marks: Where the methods' ranges end, in their order.
    """

    area: str
    bin_width: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    used: float
    marks: tuple[Mark, ...]


def draw_histogram(tensor: TensorSummary) -> HistogramChart | None:
    """Returns the chart of a tensor; None if it had no value but zero."""
    highest = max(tensor.counts, default=0)
    if not highest:
        return None
    top = len(tensor.counts) * tensor.width
    heights = [_height(count, highest) for count in tensor.counts]

    def x_of(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * min(value / top, 1.0), 1)

    return HistogramChart(
        area=_area(heights),
        bin_width=round((RIGHT - LEFT) / len(heights), 4),
        x_ticks=tuple(Tick(x_of(value), format_magnitude(value)) for value in _round_values(top)),
        y_ticks=tuple(
            Tick(_height(10**power, highest), format_power_of_ten(power)) for power in _powers(highest)
        ),
        used=x_of(tensor.used.amax),
        marks=tuple(
            Mark(x_of(clip.amax), TOP - 16 + _BETWEEN_HEADS * index)
            for index, clip in enumerate(tensor.methods.values())
        ),
    )


def _height(count: float, highest: float) -> int:
    """Returns how far below the upper edge of the drawing a count ends, on a logarithmic axis."""
    if count < 1:
        return BOTTOM
    return round(BOTTOM - (BOTTOM - TOP) * math.log(count / _LOWEST) / math.log(highest / _LOWEST))


def _area(heights: Sequence[int]) -> str:
    """Returns the path of steps, equal neighbours as one: `M0 124V80h1V74h3V124z`."""
    steps = ((height, sum(1 for _ in group)) for height, group in groupby(heights))
    return f"M0 {BOTTOM}" + "".join(f"V{height}h{count}" for height, count in steps) + f"V{BOTTOM}z"


def _round_values(top: float) -> Iterator[float]:
    """Yields 0 and the multiples of 1, 2 or 5 times a power of ten up to a value."""
    power = 10.0 ** math.floor(math.log10(top / _MOST_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if top / (factor * power) <= _MOST_TICKS)
    for index in range(int(top / step * (1 + 1e-9)) + 1):
        yield index * step


def _powers(highest: float) -> range:
    """Returns the powers of ten that stand at the axis of counts."""
    last = math.floor(math.log10(highest))
    return range(0, last + 1, max(1, math.ceil((last + 1) / _MOST_TICKS)))


def draw_bar(value: float | None, most: float) -> float:
    """Returns the length of a bar in per cent of the longest one; what is beyond it fills it."""
    if value is None or math.isnan(value) or most <= 0:
        return 0.0
    return round(100 * min(max(value / most, 0.0), 1.0), 1)
