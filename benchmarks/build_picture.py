"""Draws the result of build.py: what a whole build costs, beside the accuracy that it buys.

    .venv/bin/python benchmarks/build_picture.py

The newest benchmarks/results/build-*.json becomes docs/build.svg. It needs no library, so a test can draw it
again. The colours follow the reader's scheme, light or dark, and the picture has a ground of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "build.svg"
_TOOLS = {
    "trtq-quick": ("trtq --effort quick", "quick"),
    "trtq-balanced": ("trtq", "trtq"),
    "trtq-thorough": ("trtq --effort thorough", "thorough"),
    "modelopt-entropy": ("nvidia-modelopt, quantization only", "modelopt"),
    "ort-entropy": ("ONNX Runtime, quantization only", "ort"),
}
_STYLE = """
text{font:12px system-ui,sans-serif;fill:#24292f}.small{font-size:10px}.head{font-weight:600}
.ground{fill:#fff}.line{stroke:#d0d7de}
.quick{fill:#b9de7d}.trtq{fill:#5f9600}.thorough{fill:#355400}.modelopt{fill:#e6701d}.ort{fill:#3182bd}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}.line{stroke:#30363d}
.quick{fill:#48700a}.trtq{fill:#8fce1f}.thorough{fill:#d6f5a0}.modelopt{fill:#f08a42}.ort{fill:#58a6e6}}
"""
_WIDTH, _LABELS, _PANEL, _GAP, _TOP = 860, 130, 310, 60, 74
_BAR, _SPACE = 12, 12
_PANELS = (("passes", "cost in FP32 passes over the data", "{:.1f}x"), ("sqnr_db", "SQNR in dB", "{:.1f}"))
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]


def main() -> None:
    """Draws the newest result into the documentation."""
    PICTURE.write_text(draw(json.loads(find_newest().read_text("utf-8"))), "utf-8")


def find_newest() -> Path:
    """Returns the newest result of build.py."""
    return max((HERE / "results").glob("build-*.json"), key=lambda path: path.name)


def draw(result: Mapping[str, Any]) -> str:
    """Returns the picture of a result as SVG: a group of bars a model, one a tool, in two panels."""
    models: Rows = result["models"]
    tools = [name for name in _TOOLS if any("passes" in rows.get(name, {}) for rows in models.values())]
    group = len(tools) * _BAR + _SPACE
    height = _TOP + len(models) * group + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>What a whole build costs, and its accuracy, {escape(result['date'])}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}" rx="6"/>',
        *_draw_legend(tools),
        *(
            _text(_LABELS - 8, _TOP + index * group + len(tools) * _BAR / 2 + 4, name, anchor="end")
            for index, name in enumerate(models)
        ),
        *(part for index in (0, 1) for part in _draw_panel(index, models, tools)),
        _text(12, height - 8, _describe(result), "small"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _describe(result: Mapping[str, Any]) -> str:
    samples, machine = result["samples"], result["machine"]["cpu"]
    return f"{result['date']}, {samples} samples, {machine}; a trtq build includes engine and comparison"


def _draw_legend(tools: Sequence[str]) -> Iterator[str]:
    place = 12
    for name in tools:
        title, kind = _TOOLS[name]
        yield f'<rect class="{kind}" x="{place}" y="14" width="12" height="12" rx="2"/>'
        yield _text(place + 17, 24, title)
        place += 42 + round(6.4 * len(title))


def _draw_panel(index: int, models: Rows, tools: Sequence[str]) -> Iterator[str]:
    key, title, form = _PANELS[index]
    left = _LABELS + index * (_PANEL + _GAP)
    values = [rows[name][key] for rows in models.values() for name in tools if key in rows.get(name, {})]
    scale = _PANEL / max(values)
    group = len(tools) * _BAR + _SPACE
    bottom = _TOP + len(models) * group - _SPACE
    yield _text(left, 52, f"{title} ({'less' if index == 0 else 'more'} is better)", "head")
    yield f'<line class="line" x1="{left}" x2="{left}" y1="{_TOP - 6}" y2="{bottom + 6}"/>'
    for row, found in enumerate(models.values()):
        for place, name in enumerate(tools):
            top = _TOP + row * group + place * _BAR
            if key not in found.get(name, {}):
                words = found.get(name, {}).get("words", "not run")
                yield _text(left + 4, top + 10, words[:40], "small")
                continue
            value = found[name][key]
            width = max(value * scale, 1)
            size = f'width="{width:.1f}" height="{_BAR - 1}"'
            yield f'<rect class="{_TOOLS[name][1]}" x="{left}" y="{top}" {size} rx="2"/>'
            yield _text(left + width + 4, top + 10, form.format(value), "small")


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    given = f' class="{kind}"' if kind else ""
    return f'<text{given} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    main()
