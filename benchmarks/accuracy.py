"""How accurate INT8 and FP8 models are: trtq's and its peers', of the same models and data.

    .venv/bin/python benchmarks/accuracy.py --output benchmarks/results/accuracy-2026-11-21.json
    .venv/bin/python benchmarks/accuracy.py --format fp8 \
        --output benchmarks/results/accuracy-fp8-2026-11-30.json

Every tool calibrates with the same 128 samples and writes a Q/DQ model whose rest is FP32; evaluate.py
compares it with the float model on 64 samples of other photos, sentences or files. TensorRT-RTX then builds
each, and says how many of the layers that are marked run in the format. `make bench-peers` sets up what is
needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluate import compare, truth_of
from feeds import part_of, write_samples
from process import run
from tools import ENVIRONMENT, TOOLS, WORK, Tool, batch_size, circumstances, models, trtq_command

Row = dict[str, Any]
DEFAULT_TOOLS = {
    "int8": [tool for tool in TOOLS if tool != "floor" and not tool.endswith(("-all", "-fp8"))],
    "fp8": [tool for tool in TOOLS if tool.endswith("-fp8")],
}
CAPABILITIES = {"int8": (), "fp8": ("--compute-capability", "8.9")}
SAMPLES = (128, 32, 8)
"""To calibrate with: the first that the tool's memory allows."""


def main() -> None:
    """Quantizes, evaluates, builds; the table is printed and all of it written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", help="default: all that models.py has made")
    parser.add_argument("--format", choices=DEFAULT_TOOLS, default="int8")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, help="default: all of the format")
    parser.add_argument(
        "--quantized", type=Path, default=WORK / "quantized", help="where the models are left"
    )
    parser.add_argument(
        "--keep", action="store_true", help="quantize with trtq only; use what peers made in an earlier run"
    )
    parser.add_argument("--no-engine", action="store_true", help="do not build engines")
    parser.add_argument("--memory", type=float, default=12, help="GB that one tool may hold  [12]")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    quantized: Path = given.quantized.resolve()
    tools = given.tools or DEFAULT_TOOLS[given.format]
    result: dict[str, Any] = {**circumstances(tools), "memory_limit_gb": given.memory, "models": {}}
    for name, folder in models(given.models).items():
        truth = truth_of(folder)
        rows: dict[str, Row] = {}
        result["models"][name] = {"kind": truth.task["kind"], "metric": truth.task["metric"], "tools": rows}
        result["models"][name] |= {"answers": truth.task["answers"] is not None, "score_fp32": truth.score}
        for tool in tools:
            path = quantized / name / f"{tool}.onnx"
            told = path.with_suffix(".json")  # what it took, for a later run with --keep
            if given.keep and TOOLS[tool].home and told.exists():
                row = json.loads(told.read_text())
            else:
                row = quantize(TOOLS[tool], folder, path, given.memory)
                told.write_text(json.dumps(row))
            if "error" not in row:
                row |= _compared(truth, path)
                row |= {} if given.no_engine or "error" in row else engine(path, folder, given.format)
            rows[tool] = row
            print(f"{name:20} {tool:18} {_line(row)}", flush=True)
            if given.output is not None:
                given.output.write_text(json.dumps({**result, "summary": summary(result)}, indent=1) + "\n")
    print(markdown(result))


def quantize(tool: Tool, folder: Path, output: Path, memory_gb: float) -> Row:
    """Returns what it took one tool to write its model, or the error.

    A tool that does not get along with the memory is tried again with fewer samples, and the row says so.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    row: Row = {}
    for samples in SAMPLES:
        output.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-data-") as place:
            data = write_samples(part_of(folder, "calibration"), samples, Path(place))
            command = tool.command("quantize", folder / "model.onnx", data, batch_size(folder), output)
            cost = run(command, ENVIRONMENT, memory_gb * 1000)
        output.with_suffix(".log").write_text(cost.printed)
        row |= {"samples": samples, "quantize_s": cost.wall_s, "peak_mb": cost.peak_mb}
        if cost.status == "killed" and samples != SAMPLES[-1]:
            row[f"with_{samples}_samples"] = cost.words
            continue
        if cost.status != "done" or not output.exists():
            row["error"] = cost.words or "it wrote no model"
        break
    return row


def _compared(truth: Any, path: Path) -> Row:
    try:
        return compare(truth, path)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime and ONNX raise many kinds for a bad file
        return {"error": "evaluation: " + " ".join(str(error).split())[:300]}


def engine(path: Path, folder: Path, form: str) -> Row:
    """Returns whether TensorRT-RTX builds a quantized model, and how many of its layers run in the format."""
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as place:
        output = Path(place) / "engine.trtq"
        command = trtq_command(
            "build", path, f"--{form}", "--backend", "tensorrt-rtx", "--output", output, "--quiet"
        )
        size = ("--calib-samples", "1", "--calib-batch-size", "1")
        cost = run(
            [*command, *CAPABILITIES[form], "--calib-data", part_of(folder, "calibration"), *size],
            ENVIRONMENT,
            memory_mb=16000,
            seconds=1200,
        )
        if not (output / "report.json").exists():
            return {"builds": False, "build_error": cost.words or _build_words(cost.printed)}
        built = json.loads((output / "report.json").read_text())["engine"]
        layers = json.loads((output / "manifest.json").read_text())["layers"]
    return {
        "builds": True,
        "layers_marked": built["layers_quantized"],
        "layers_realized": built["layers_realized"].get(form, 0),
        "layers_weighted_realized": sum(precision.lower() == form for precision in layers.values()),
        "layers_weighted": len(layers),
    }


def _build_words(printed: str) -> str:
    found = [line for line in printed.splitlines() if "error: " in line]
    return (found or printed.splitlines() or ["no word"])[0][:300]


def summary(result: Mapping[str, Any]) -> Row:
    """Returns how far trtq is ahead of the best peer, by SQNR in dB, of each model and in the median."""
    ahead = {}
    for name, model in result["models"].items():
        sqnr = {tool: row["sqnr_db"] for tool, row in model["tools"].items() if "sqnr_db" in row}
        own = sqnr.pop("trtq", None) or sqnr.pop("trtq-fp8", None)
        if own is not None and sqnr:
            best = max(sqnr, key=lambda tool: sqnr[tool])
            ahead[name] = {"ahead_db": round(own - sqnr[best], 2), "best_peer": best}
    values = [item["ahead_db"] for item in ahead.values()]
    return {
        "ahead": ahead,
        "median_ahead_db": round(statistics.median(values), 2) if values else None,
        "least_ahead_db": min(values, default=None),
    }


def _line(row: Row) -> str:
    if "error" in row:
        return f"error: {row['error'][:120]}"
    line = (
        f"{row['sqnr_db']:7.2f} dB  cosine {row['cosine']:.5f}  {row['score']:.3f} of {row['score_fp32']:.3f}"
    )
    if "builds" not in row:
        return line
    return f"{line}  " + (
        f"realized {row['layers_realized']}/{row['layers_marked']}" if row["builds"] else "not built"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the table: SQNR in dB / task metric, one line a model; a star where no engine is built."""
    tools = list(next(iter(result["models"].values()))["tools"])
    lines = ["| model | FP32 | " + " | ".join(tools) + " |", "|---" * (len(tools) + 2) + "|"]
    for name, model in result["models"].items():
        cells = [_cell(model["tools"][tool]) for tool in tools]
        lines.append(f"| {name} | {100 * model['score_fp32']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if "error" in row:
        return "fails"
    return f"{row['sqnr_db']:.1f} / {100 * row['score']:.1f}" + ("" if row.get("builds", True) else " *")


if __name__ == "__main__":
    main()
