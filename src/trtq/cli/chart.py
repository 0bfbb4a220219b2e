"""A bar chart of the sensitivity of every layer, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ROW, _BAR, _LABEL, _PLOT, _MARGIN = 18, 12, 320, 480, 16
_LONGEST_NAME = 48
_STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2430; }
.title { font-size: 15px; font-weight: 600; }
.quiet { fill: #6b7280; }
.name, .value { font-family: ui-monospace, monospace; font-size: 11px; }
.track { fill: #eef0f4; }
.first { fill: #c2410c; }
.second { fill: #fdba74; }
"""


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
    width = _MARGIN + _LABEL + _PLOT + 130
    top = 78
    height = top + _ROW * len(bars) + _MARGIN
    longest = max((max(bar.first, bar.second) for bar in bars), default=0.0) or 1.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text class="title" x="{_MARGIN}" y="26">{escape(title)}</text>',
        *_legend(legend),
    ]
    for index, bar in enumerate(bars):
        lines += _row(bar, top + _ROW * index, longest)
    return "\n".join([*lines, "</svg>", ""]).encode()


def _legend(texts: tuple[str, str]) -> list[str]:
    lines = []
    for index, (kind, text) in enumerate(zip(("first", "second"), texts, strict=True)):
        y = 38 + 17 * index
        lines.append(f'<rect class="{kind}" x="{_MARGIN}" y="{y}" width="12" height="12" rx="2"/>')
        lines.append(f'<text class="quiet" x="{_MARGIN + 18}" y="{y + 10}">{escape(text)}</text>')
    return lines


def _row(bar: Bar, y: int, longest: float) -> list[str]:
    left = _MARGIN + _LABEL
    first, second = (f"{_PLOT * value / longest:.1f}" for value in (bar.first, bar.second))
    name = (
        bar.name
        if len(bar.name) <= _LONGEST_NAME
        else f"\N{HORIZONTAL ELLIPSIS}{bar.name[1 - _LONGEST_NAME :]}"
    )
    half = _BAR // 2
    return [
        f"<g><title>{escape(bar.name)}: {escape(bar.text)}</title>",
        f'<text class="name" x="{left - 8}" y="{y + 10}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="track" x="{left}" y="{y}" width="{_PLOT}" height="{_BAR}" rx="2"/>',
        f'<rect class="first" x="{left}" y="{y}" width="{first}" height="{half}" rx="1"/>',
        f'<rect class="second" x="{left}" y="{y + half}" width="{second}" height="{half}" rx="1"/>',
        f'<text class="value quiet" x="{left + _PLOT + 8}" y="{y + 10}">{escape(bar.text)}</text></g>',
    ]
