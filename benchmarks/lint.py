"""How often `trtq lint` is right about TensorRT: generated Q/DQ graphs, judged by the real builder.

    .venv/bin/python benchmarks/lint.py --output benchmarks/results/lint-2026-11-21.json

The graphs are every way to write the Q/DQ of a Conv and a MatMul alone, random mixes of two or three ways
over all kinds of layers, and the structures of `qdq_structures`. Only what the ONNX checker passes counts.
A prediction is right if it names both rightly: whether the model is refused, and which layers run in INT8.
The bound: 99 % of at least 200 graphs; every disagreement is listed. The same graphs are then
repaired as `trtq build --requantize` does, and predicted and built again.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from qdq_patterns import FIELDS, Pattern, graph_of
from qdq_structures import structures
from real_builder import Truth, build_all

from trtq.errors import ModelError
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.placement import QUANTIZABLE
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.graph.repair import repair

BOUND = 0.99
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Whether a model is refused, the layers that run in INT8, and the rules that it breaks."""

    refused: bool
    int8: frozenset[str]
    rules: tuple[str, ...]


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mixes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    graphs = {**singles(), **mixes(given.mixes, given.seed), **structures()}
    graphs = {name: model for name, model in graphs.items() if is_valid(model)}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trtq-lint-") as folder:
        as_they_are = judge(graphs, Path(folder))
        seconds = time.monotonic() - start
        repaired = judge(repaired_graphs(graphs, Path(folder)), Path(folder))
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "trtq": version("trtq"),
        "tensorrt-rtx": version("tensorrt-rtx-cu12"),
        "seconds": round(seconds, 1),
        "bound": BOUND,
        "as they are": as_they_are,
        "repaired": repaired,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


def singles() -> dict[str, onnx.ModelProto]:
    """Returns every kind of layer as TensorRT wants it, and a Conv and a MatMul in every other way."""
    patterns = [Pattern(op=str(op)) for op in FIELDS["op"]]
    for field, ways in FIELDS.items():
        for way in ways[1:] if field != "op" else ():
            patterns += [replace(Pattern(op=op), **{field: way}) for op in ("conv", "matmul")]
    return {str(pattern): graph_of(pattern) for pattern in map(allowed, patterns)}


def mixes(count: int, seed: int) -> dict[str, onnx.ModelProto]:
    """Returns so many valid graphs of two or three ways each."""
    generator = random.Random(seed)
    found: dict[str, onnx.ModelProto] = {}
    while len(found) < count:
        pattern = Pattern(op=str(generator.choice(FIELDS["op"])))
        for field in generator.sample([name for name in FIELDS if name != "op"], generator.choice((2, 3))):
            pattern = replace(pattern, **{field: generator.choice(FIELDS[field][1:])})
        pattern = allowed(pattern)
        model = graph_of(pattern)
        if is_valid(model):
            found.setdefault(str(pattern), model)
    return found


def allowed(pattern: Pattern) -> Pattern:
    """Returns the pattern in an opset that has what it uses, and with a batch that its nodes allow."""
    if pattern.opset < 13:
        weight = "0-d" if "axis" in pattern.weight else pattern.weight
        pattern = replace(
            pattern, weight=weight, activation="0-d", bias=pattern.bias.replace("int32", "int32 0-d")[:9]
        )
    if pattern.dtype == "bfloat16":
        pattern = replace(pattern, opset=23)
    needs_21 = pattern.weight == "blocked" or pattern.zero == "missing int8"
    if needs_21 or "int4" in pattern.codes or "int16" in pattern.zero + pattern.codes:
        pattern = replace(pattern, opset=max(pattern.opset, 21))
    if pattern.op == "matmul_left" or "reshape" in pattern.between:
        pattern = replace(pattern, batch="fixed")
    return replace(pattern, domain="") if pattern.opset > 19 else pattern


def is_valid(model: onnx.ModelProto) -> bool:
    """Returns whether ONNX's checker passes the model."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def judge(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, Any]:
    """Returns how many predictions are right, and every one that is not."""
    predictions = [predict(model, folder) for model in graphs.values()]
    truths = build_all(list(graphs.values()))
    wrong = [
        disagreement(name, prediction, truth)
        for (name, model), prediction, truth in zip(graphs.items(), predictions, truths, strict=True)
        if not agrees(model, prediction, truth)
    ]
    return {
        "graphs": len(graphs),
        "refused": sum(bool(truth.refused) for truth in truths),
        "in int8": sum(truth.runs_int8("layer") for truth in truths),
        "right": len(graphs) - len(wrong),
        "share": round(1 - len(wrong) / len(graphs), 5),
        "disagreements": wrong,
    }


def predict(model: onnx.ModelProto, folder: Path) -> Prediction:
    """Returns what lint says of a model, as it would be read from a file."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    read = load_as_it_is(path)
    findings = lint(read)
    in_float = {finding.node for finding in findings if finding.effect == "float"}
    int8 = {layer.name for layer in find_quantized_layers(read) if layer.activation == "int8"} - in_float
    refused = any(finding.effect == REFUSED for finding in findings)
    return Prediction(
        refused, frozenset(() if refused else int8), tuple(finding.rule for finding in findings)
    )


def agrees(model: onnx.ModelProto, prediction: Prediction, truth: Truth) -> bool:
    """Returns whether the builder did what was predicted."""
    if prediction.refused or truth.refused:
        return prediction.refused and bool(truth.refused)
    layers = {node.name for node in model.graph.node if node.op_type in QUANTIZABLE}
    return prediction.int8 == {layer for layer in layers if truth.runs_int8(layer)}


def disagreement(name: str, prediction: Prediction, truth: Truth) -> dict[str, Any]:
    """Returns a wrong prediction for people."""
    return {
        "graph": name,
        "lint": REFUSED if prediction.refused else sorted(prediction.int8),
        "rules": prediction.rules,
        "builder": truth.refused[:300]
        or sorted({n for k in truth.kernels if k.multiplies_in for n in k.nodes}),
    }


def repaired_graphs(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, onnx.ModelProto]:
    """Returns the graphs as `trtq build --requantize` would build them, without those that it cannot load."""
    found = {}
    for name, model in graphs.items():
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            found[name] = ir.to_proto(repair(load(path, min_opset=1).model, requantize=True).model)
        except ModelError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
