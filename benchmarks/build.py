"""What a whole build costs, in passes of plain inference: trtq's and what its peers take to quantize alone.

    .venv/bin/python benchmarks/build.py --output benchmarks/results/build-2026-11-30.json

trtq calibrates, searches, quantizes, builds the engine with TensorRT-RTX and compares (128 samples to
calibrate, 64 others to compare on); its peers calibrate with the same data and write a Q/DQ model. Every run
is a process of its own, and the tools take turns. The unit is `work_s` of plain FP32 inference over the
calibration data in ONNX Runtime, of the same round: `passes` is the median of the ratios of `wall_s` to it.
On a machine that others use too, `cpu_s` alone can be compared, with that of another run beside it.
The rest of trtq's model is FP32, as that of its peers, so that `sqnr_db`, on data of which no tool knows,
compares what quantizing costs. `make bench-peers` sets up what is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate import compare, truth_of
from feeds import part_of, write_samples
from process import run
from tools import ENVIRONMENT, TOOLS, batch_size, circumstances, models, trtq_command

Row = dict[str, Any]
FLOOR = "floor"
EFFORTS = ("quick", "balanced", "thorough")
PEERS = ("modelopt-entropy", "ort-entropy")
STAGES = ("calibrate", "repair", "quantize", "build", "compare")
SAMPLES = 128
LEAST_SECONDS = 1.0
"""The bounds hold where one pass takes as long."""


def main() -> None:
    """Measures model by model; the table is printed and all of it written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", help="default: all that models.py has made")
    parser.add_argument("--efforts", nargs="*", choices=EFFORTS, default=EFFORTS[:2])
    parser.add_argument("--peers", nargs="*", choices=[*TOOLS], default=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=12, help="GB that one tool may hold  [12]")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {**circumstances([FLOOR, "trtq", *given.peers]), "rounds": given.rounds}
    result |= {"samples": SAMPLES, "models": {}}
    for name, folder in models(given.models).items():
        rows = measure(folder, given.efforts, given.peers, given.rounds, given.memory * 1000)
        result["models"][name] = rows
        print(f"{name:20} {json.dumps(rows)}", flush=True)
        if given.output is not None:
            given.output.write_text(json.dumps({**result, "summary": summary(result)}, indent=1) + "\n")
    print(f"\n{markdown(result)}\n{json.dumps(summary(result))}")


def measure(
    folder: Path, efforts: Sequence[str], peers: Sequence[str], rounds: int, memory_mb: float
) -> dict[str, Row]:
    """Returns the medians of each tool on one model."""
    tools = (FLOOR, *(f"trtq-{effort}" for effort in efforts), *peers)
    runs: dict[str, list[Row]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory(prefix="bench-build-") as made:
        place = Path(made)
        data = write_samples(part_of(folder, "calibration"), SAMPLES, place)
        for number in range(rounds):
            turn = number % len(tools)
            for name in (*tools[turn:], *tools[:turn]):
                runs[name].append(run_tool(name, folder, data, place, memory_mb))
        truth = truth_of(folder)
        rows = {}
        for name, items in runs.items():
            rows[name] = row = medians(items, runs[FLOOR])
            if (written := place / f"{name}.onnx").exists():
                found = compare(truth, written)
                row |= {key: round(found[key], 3) for key in ("sqnr_db", "score", "score_fp32")}
    return rows


def run_tool(name: str, folder: Path, data: Path, place: Path, memory_mb: float) -> Row:
    """Runs one tool once; its Q/DQ model is left in `place`."""
    written = place / f"{name}.onnx"
    if name.startswith("trtq-"):
        return build(name.removeprefix("trtq-"), folder, data, written, memory_mb)
    command = TOOLS[name].command(
        "calibrate" if name == FLOOR else "quantize",
        folder / "model.onnx",
        data,
        batch_size(folder),
        *([] if name == FLOOR else [written]),
    )
    cost = run(command, ENVIRONMENT, memory_mb)
    work = re.findall(r"^work_s ([\d.]+)$", cost.printed, re.MULTILINE)
    row: Row = {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "peak_mb": cost.peak_mb, "words": cost.words}
    return row | ({"work_s": float(work[-1])} if work else {})


def build(effort: str, folder: Path, data: Path, written: Path, memory_mb: float) -> Row:
    """Runs the whole build of trtq once; its Q/DQ model becomes `written`."""
    settings: Mapping[str, str | Path] = {
        "effort": effort,
        "high-precision": "fp32",
        "backend": "tensorrt-rtx",
        "calib-data": data,
        "eval-data": part_of(folder, "evaluation"),
        "calib-batch-size": str(batch_size(folder)),
        "min-cosine": "0.01",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as made:
        output = Path(made) / "model.trtq"
        command = trtq_command(
            "build", folder / "model.onnx", "--int8", *options, "--output", output, "--quiet"
        )
        cost = run(command, ENVIRONMENT, memory_mb)
        row: Row = {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "peak_mb": cost.peak_mb, "words": cost.words}
        if (output / "report.json").exists():
            (output / "model.int8.onnx").replace(written)
            seconds = json.loads((output / "report.json").read_text())["timings_s"]
            row |= {f"{stage}_s": seconds.get(stage, 0.0) for stage in STAGES}
    return row


def medians(items: Sequence[Row], floors: Sequence[Row]) -> Row:
    """Returns the medians of the numbers of a tool's runs, and of its passes by the floor of each round."""
    names = {name for item in items for name, value in item.items() if not isinstance(value, str)}
    row: Row = {
        name: round(statistics.median(item[name] for item in items if name in item), 3)
        for name in sorted(names)
    }
    passes = [item["wall_s"] / floor["work_s"] for item, floor in zip(items, floors, strict=True)]
    row["passes"] = round(statistics.median(passes), 2)
    if words := next((item["words"] for item in items if item["words"]), ""):
        row["words"] = words
    return row


def summary(result: Mapping[str, Any]) -> Row:
    """Returns the most and the median of passes of each tool, on models whose pass takes long enough."""
    long = [rows for rows in result["models"].values() if rows[FLOOR]["work_s"] >= LEAST_SECONDS]
    names = dict.fromkeys(name for rows in long for name in rows if name != FLOOR)
    found: Row = {"models": len(long)}
    for name in names:
        passes = [rows[name]["passes"] for rows in long if name in rows and "words" not in rows[name]]
        if passes:
            found[name] = {"median": round(statistics.median(passes), 2), "most": max(passes)}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the table of all models: passes and SQNR of each tool."""
    names = dict.fromkeys(name for rows in result["models"].values() for name in rows if name != FLOOR)
    lines = [
        f"| model | one pass | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for model, rows in result["models"].items():
        cells = [_cell(rows.get(name, {})) for name in names]
        lines.append(f"| {model} | {rows[FLOOR]['work_s']:.2f} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if "words" in row or "passes" not in row:
        return str(row.get("words", ""))[:40]
    return f"{row['passes']:.1f}x" + (f", {row['sqnr_db']:.1f} dB" if "sqnr_db" in row else "")


if __name__ == "__main__":
    main()
