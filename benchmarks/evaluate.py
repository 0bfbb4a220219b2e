"""How far a quantized model is from the float one, the same way for everybody's.

    .venv/bin/python benchmarks/evaluate.py benchmarks/.work/models/ppocr_det quantized.onnx

Both models run in ONNX Runtime with graph optimizations off, so that every Q/DQ pair rounds as the ONNX
specification says and the rest is float arithmetic; FP16 QuantizeLinear is fed in FP32, which is the same by
definition. One sample at a time, on the data in `evaluation` that no calibration has seen.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime  # noqa: TID253 - a script
from feeds import part_of, read_feeds
from numpy.typing import NDArray
from tasks import score

from trtq.pipeline.judge.exact import make_quantize_exact


@dataclass
class Truth:
    """What the float model says: all outputs of every sample, and its own score."""

    task: dict[str, Any]
    feeds: list[dict[str, NDArray[Any]]]
    outputs: dict[str, list[NDArray[Any]]]
    score: float = field(init=False)

    def __post_init__(self) -> None:
        """Scores the float model itself."""
        own = self.outputs[self.task["output"]]
        self.score = score(self.task, own, own)


def main() -> None:
    """Prints the comparison of one file as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model's folder, of models.py")
    parser.add_argument("candidate", type=Path, nargs="+", help="quantized ONNX files")
    parser.add_argument("--samples", type=int, default=None)
    given = parser.parse_args()
    truth = truth_of(given.folder, given.samples)
    for candidate in given.candidate:
        print(json.dumps({"file": str(candidate), **compare(truth, candidate)}))


def truth_of(folder: Path, samples: int | None = None) -> Truth:
    """Returns what the float model of a folder says on its evaluation data."""
    feeds = list(islice(read_feeds(part_of(folder, "evaluation")), samples))
    task = json.loads((folder / "task.json").read_text())
    if samples is not None and task["answers"] is not None:
        task["answers"] = task["answers"][:samples]
    return Truth(task, feeds, run(folder / "model.onnx", feeds))


def run(path: Path, feeds: list[dict[str, NDArray[Any]]]) -> dict[str, list[NDArray[Any]]]:
    """Returns every output of every feed, in the arithmetic of the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may be at work here
    exact = make_quantize_exact(ir.load(path))
    model = str(path) if exact is None else ir.to_proto(exact).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for feed in feeds:
        for name, value in zip(names, session.run(names, feed), strict=True):
            results[name].append(value)
    return results


def compare(truth: Truth, candidate: Path) -> dict[str, Any]:
    """Returns cosine and SQNR of each float output over all samples, the smallest of them, and the score."""
    ours = run(candidate, truth.feeds)
    if missing := set(truth.outputs) - set(ours):
        raise ValueError(f"{candidate} has no output {sorted(missing)}")
    floats = [name for name, values in truth.outputs.items() if values[0].dtype.kind == "f"]
    outputs = {name: distance(ours[name], truth.outputs[name]) for name in floats}
    judged = truth.task["output"]
    return {
        "sqnr_db": min(item["sqnr_db"] for item in outputs.values()),
        "cosine": min(item["cosine"] for item in outputs.values()),
        "score": round(score(truth.task, ours[judged], truth.outputs[judged]), 4),
        "score_fp32": round(truth.score, 4),
        "outputs": outputs,
    }


def distance(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> dict[str, float]:
    """Returns the cosine and 10 log10(sum r^2 / sum (r - c)^2), in float64, of all samples as one vector.

    `median_db` is the median of the same of each sample, and `three_worst` the share of the error that the
    three samples with the largest ones have: near 1, chance decides what all samples give together.
    """
    dot = mine = wanted = error = 0.0
    each = []
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"an output has shape {a.shape}, the float model's {b.shape}")
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        dot, mine, wanted = dot + float(x @ y), mine + float(x @ x), wanted + float(y @ y)
        each.append((float(((x - y) ** 2).sum()), float(y @ y)))
        error += each[-1][0]
    if not math.isfinite(error):
        return {"sqnr_db": -200.0, "cosine": 0.0}  # NaN or infinite values
    cosine = dot / math.sqrt(mine * wanted) if mine and wanted else float(mine == wanted)
    worst = sum(sorted((lost for lost, _ in each), reverse=True)[:3])
    return {
        "sqnr_db": _decibels(error, wanted),
        "cosine": round(cosine, 6),
        "median_db": statistics.median(_decibels(*item) for item in each),
        "three_worst": round(worst / error, 3) if error else 0.0,
    }


def _decibels(error: float, wanted: float) -> float:
    if not error:
        return 200.0
    return round(10 * math.log10(wanted / error), 2) if wanted else -200.0


if __name__ == "__main__":
    main()
