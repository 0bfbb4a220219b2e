"""A bar chart of the sensitivity of every layer, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq import lazy


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer: its name, two lengths (not negative and finite), and what is written behind them."""

    name: str
    first: float
    second: float
    text: str


def draw_bars(title: str, legend: tuple[str, str], bars: Sequence[Bar]) -> bytes:
    """Returns an SVG file with a row for each bar, in the given order.

    Args:
        title: The headline.
        legend: What the first and the second length of a bar stand for.
        bars: The rows.
    """
    longest = max((max(bar.first, bar.second) for bar in bars), default=0.0) or 1.0
    jinja2 = lazy.require("jinja2", None, "the chart of the layers")
    text = Path(__file__).with_name("chart.svg.jinja").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, keep_trailing_newline=True).from_string(text)
    drawn: str = template.render(title=title, legend=legend, bars=bars, longest=longest)
    return drawn.encode()
