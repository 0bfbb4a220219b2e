"""How much of an FP8 model's accuracy is chance: with other scales, less than an octave smaller.

    benchmarks/.work/bench/bin/python benchmarks/models.py --evaluation 512 --folder benchmarks/.work/more \
        --only magika
    python benchmarks/accuracy.py --format fp8 --no-engine --models magika
    python benchmarks/phases.py benchmarks/.work/models/magika benchmarks/.work/more/magika \
        --models benchmarks/.work/quantized/magika/trtq-fp8.onnx \
            benchmarks/.work/quantized/magika/modelopt-fp8.onnx \
        --logits jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0 \
        --output benchmarks/results/phases-2026-11-30.json

FP8 rounds as coarsely at one scale as at another, so whatever an octave changes is chance. Each model is
compared at its outputs and at the logits before the last Softmax, which ignores what all classes share: that
is left out. The scales of the first model are then varied.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from evaluate import Truth, distance, run, truth_of
from numpy.typing import NDArray
from tools import circumstances

_PHASES = 8


def main() -> None:
    """Compares each model on the data of each folder, the first in every phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of one model with other data, by models.py")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="quantized ONNX files")
    parser.add_argument("--logits", required=True, help="the tensor before the Softmax")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {**circumstances(["trtq"]), "samples": {}}
    for folder in given.folders:
        truth = truth_of(folder)
        logits = read_logits(ir.load(folder / "model.onnx"), truth, given.logits)
        rows: dict[str, Any] = {
            path.stem: compare(ir.load(path), truth, logits, given.logits) for path in given.models
        }
        rows["phases"] = [
            compare(rescale(given.models[0], 2 ** (-phase / _PHASES)), truth, logits, given.logits)
            for phase in range(_PHASES)
        ]
        result["samples"][str(len(truth.feeds))] = rows
        print(json.dumps(rows), flush=True)
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


def rescale(path: Path, factor: float) -> ir.Model:
    """Returns the model with the scales of its activations, which have no axis, multiplied."""
    model = ir.load(path)
    scales = {node.inputs[1] for node in model.graph if node.op_type == "QuantizeLinear"}
    for value in scales:
        if value is not None and value.const_value is not None and not value.const_value.shape:
            scale = value.const_value.numpy()
            value.const_value = ir.tensor((scale * factor).astype(scale.dtype), name=value.name)
    return model


def compare(model: ir.Model, truth: Truth, logits: list[NDArray[Any]], name: str) -> dict[str, float]:
    """Returns the SQNR in dB of the judged output and of the logits, over all samples."""
    output = truth.task["output"]
    found = _run(model, truth, name)
    return {
        "output_db": distance(found[output], truth.outputs[output])["sqnr_db"],
        "logits_db": distance(_center(found[name]), logits)["sqnr_db"],
    }


def read_logits(model: ir.Model, truth: Truth, name: str) -> list[NDArray[Any]]:
    """Returns the centred logits of the float model, of each sample."""
    return _center(_run(model, truth, name)[name])


def _run(model: ir.Model, truth: Truth, name: str) -> dict[str, list[NDArray[Any]]]:
    """Returns every output of every sample, and another tensor."""
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    made[name].dtype = ir.DataType.FLOAT
    model.graph.outputs.append(made[name])
    with tempfile.TemporaryDirectory(prefix="bench-phases-") as place:
        ir.save(model, path := Path(place) / "model.onnx")
        return run(path, truth.feeds)


def _center(logits: list[NDArray[Any]]) -> list[NDArray[Any]]:
    return [row - row.mean(axis=-1, keepdims=True, dtype=np.float64) for row in logits]


if __name__ == "__main__":
    main()
