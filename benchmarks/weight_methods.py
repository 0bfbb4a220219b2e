"""How near INT4 weights come to the float model by each method, on the real models of benchmarks/models.py.

    python benchmarks/weight_methods.py --output benchmarks/results/weight-methods-2026-11-29.json

What GPTQ and AWQ look at is calibration data; all are judged on evaluation data, by the mean SQNR of the
outputs in dB. All products are stored in blocks of 64, activations are float.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.models.session import open_session, run
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight
from trtq.pipeline.rewrite.weights.rescaled import rescale_inputs

WORK = Path(__file__).resolve().parent / ".work" / "models"
MODELS = ("minilm_l3", "ppocr_rec", "vit_s_focus")
METHODS = ("rtn", "mse", "gptq", "awq")
NUM_SAMPLES, AT_A_TIME = 32, 8
Arrays = Mapping[str, NDArray[Any]]


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=Path, default=WORK)
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/weight_methods.py",
        "versions": {name: version(name) for name in ("trtq", "numpy", "onnxruntime")},
        "samples": NUM_SAMPLES,
        "models": {},
    }
    for name in given.only:
        result["models"][name] = measure(given.models / name)
        print(name, json.dumps(result["models"][name]), flush=True)
        if given.output:
            given.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path) -> dict[str, Any]:
    """Returns what is known of one model: the SQNR and the seconds of each method."""
    graph = load(folder / "model.onnx", min_opset=21)
    calibration, evaluation = (batches(folder / f"{name}.npz") for name in ("calibration", "evaluation"))
    placement = choose_weights(graph.model, WeightScheme("int4"))
    sqnr, seconds = {}, {}
    for method in METHODS:
        start = time.perf_counter()
        made = quantize_graph(graph, placement, weights=WeightEncoding(method, "tensorrt", calibration)).model
        seconds[method] = round(time.perf_counter() - start, 1)
        sqnr[method] = round(compare(graph, made, evaluation), 2)
    return {
        "weights": len(group_by_weight(graph.model, placement)),
        "sqnr_db": sqnr,
        "seconds": seconds,
        "awq": describe(graph, placement, calibration),
    }


def describe(graph: Graph, placement: Placement, calibration: Batches) -> dict[str, int]:
    """Returns of how many activations AWQ takes scales, and how many nodes stand in the graph for them."""
    found = rescale_inputs(graph.model, placement, calibration, "float32")
    return {"scaled": len(found.names), "new_nodes": len(found.model.graph) - len(graph.model.graph)}


def batches(path: Path) -> Batches:
    """Returns the first samples of a file."""
    with np.load(path) as file:
        arrays = {name: file[name][:NUM_SAMPLES] for name in file.files}
    count = len(next(iter(arrays.values())))

    def read() -> Iterator[Feed]:
        for start in range(0, count, AT_A_TIME):
            part = {name: array[start : start + AT_A_TIME] for name, array in arrays.items()}
            yield Feed(part, path.name, len(next(iter(part.values()))))

    return Batches(read, path.name, count)


def compare(graph: Graph, made: Any, data: Batches) -> float:
    """Returns the mean over the outputs that differ of 10 log10(sum w^2 / sum (w - o)^2)."""
    names = [item.name for item in graph.outputs]
    sessions = [open_session(model, optimize=True) for model in (graph.model, made)]
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for feed in data:
        wanted, ours = (run(session, names, feed.arrays) for session in sessions)
        for index, (first, second) in enumerate(zip(wanted, ours, strict=True)):
            signal[index] += np.square(first, dtype=np.float64).sum()
            noise[index] += np.square(first.astype(np.float64) - second).sum()
    return float(
        np.mean([10 * math.log10(a / b) for a, b in zip(signal, noise, strict=True) if a > 0 and b > 0])
    )


if __name__ == "__main__":
    main()
