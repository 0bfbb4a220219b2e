"""Draws the result of calibration.py: times the floor for each model, growth of time and memory with samples.

benchmarks/.work/bench/bin/python benchmarks/picture.py results/calibration.json results/calibration.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "trtq"  # the same picture for the same numbers
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of the backend
from matplotlib.ticker import FuncFormatter  # noqa: E402

_COLOURS = {
    "floor": "#888888",
    "trtq": "#76b900",
    "ort-minmax": "#9ecae1",
    "ort-entropy": "#3182bd",
    "ort-percentile": "#08519c",
    "ort-minmax-all": "#dadaeb",
    "ort-entropy-all": "#9e9ac8",
    "ort-percentile-all": "#6a51a3",
    "modelopt-max": "#fdae6b",
    "modelopt-entropy": "#e6550d",
}


def main() -> None:
    """Reads the JSON and writes the picture."""
    with open(sys.argv[1]) as file:  # noqa: PTH123 - two arguments, nothing more
        result = json.load(file)
    rows = [row for row in result["medians"] if "wall_s" in row]
    growing = sorted(
        {row["model"] for row in rows if len({r["samples"] for r in rows if r["model"] == row["model"]}) > 1}
    )
    figure, axes = plt.subplots(1, 3 if growing else 1, figsize=(15 if growing else 8, 4.5), squeeze=False)
    _bars(axes[0][0], rows)
    if growing:
        own = [row for row in rows if row["model"] == growing[0]]
        _growth(axes[0][1], own, "wall_s", 1, f"seconds, {growing[0]}")
        _growth(axes[0][2], own, "peak_mb", 1000, f"peak GB, {growing[0]}")
    figure.suptitle(f"Calibration, {result['machine']['cpu']}, {result['date']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={"Date": None} if sys.argv[2].endswith(".svg") else None, dpi=120)


def _bars(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    counts = [row["samples"] for row in rows]
    samples = max(set(counts), key=counts.count)
    rows = [row for row in rows if row["samples"] == samples and "wall_to_floor" in row]
    models = list(dict.fromkeys(row["model"] for row in rows))
    tools = [tool for tool in dict.fromkeys(row["tool"] for row in rows) if tool != "floor"]
    width = 0.8 / max(len(tools), 1)
    for index, tool in enumerate(tools):
        own = {row["model"]: row["wall_to_floor"] for row in rows if row["tool"] == tool}
        places = [models.index(model) + (index - len(tools) / 2 + 0.5) * width for model in own]
        axis.bar(places, list(own.values()), width, label=tool, color=_COLOURS.get(tool))
    axis.axhline(1, color=_COLOURS["floor"], linewidth=1)
    _logarithmic(axis)
    axis.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize=8)
    axis.set_title(f"times plain inference, {samples} samples", fontsize=10)
    axis.legend(fontsize=7)


def _logarithmic(axis: Any) -> None:
    axis.set_yscale("log")
    for part in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        part(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.tick_params(axis="y", which="both", labelsize=7)


def _growth(axis: Any, rows: Sequence[dict[str, Any]], key: str, unit: float, title: str) -> None:
    for tool in dict.fromkeys(row["tool"] for row in rows):
        points = sorted((row["samples"], row[key] / unit) for row in rows if row["tool"] == tool)
        axis.plot(*zip(*points, strict=True), marker="o", label=tool, color=_COLOURS.get(tool))
    axis.set_xscale("log", base=2)
    _logarithmic(axis)
    counts = sorted({row["samples"] for row in rows})
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xlabel("samples")
    axis.set_title(title, fontsize=10)


if __name__ == "__main__":
    main()
