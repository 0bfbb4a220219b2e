"""How often `trtq lint` is right about FP8, FP4 and INT4: generated graphs, judged by the real builder.

    .venv/bin/python benchmarks/lint_formats.py --singles 300 --mixes 400 --pairs 160 \
        --output benchmarks/results/lint-formats-2026-11-28.json

The graphs are every pair of formats that tools write, every other way of writing those that run, alone, and
random mixes of two ways, for compute capabilities 8.6, 8.9 and 12.0. Only what ONNX's checker passes counts.
A prediction is right if it names all rightly: whether the model is refused, and the format that the layer
runs in: that of both operands, or that of a weight which is read as it is stored beside float activations.
The bound: 99 % of at least 300 graphs; every disagreement is listed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from format_patterns import FIELDS, Pattern, graph_of
from real_builder import Truth, build_all

from trtq.pipeline.engine.backend import BuiltEngine
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import load_as_it_is
from trtq.pipeline.graph.quantized import QuantizedLayer, find_quantized_layers

BOUND = 0.99
REFUSED, FLOAT = "refused", "float"
_GOOD = (
    ("fp8", "fp8", "8.9"), ("nvfp4", "nvfp4", "12.0"), ("none", "int4", "8.9"), ("none", "fp8", "8.9"),
    ("none", "int8", "8.9"), ("int8", "w4a8", "8.9"), ("fp8", "w4a8", "8.9"), ("int8", "int4", "8.9"),
)  # fmt: skip


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mixes", type=int, default=150)
    parser.add_argument("--pairs", type=int, default=100, help="so many of the pairs of formats")
    parser.add_argument("--singles", type=int, default=150, help="so many of those with one other way")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    patterns = [*take(pairs(), given.pairs, generator), *take(singles(), given.singles, generator)]
    patterns += mixes(given.mixes, generator)
    graphs = {pattern: model for pattern in dict.fromkeys(patterns) if (model := valid_graph(pattern))}
    start = time.monotonic()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "trtq": version("trtq"),
        "tensorrt-rtx": version("tensorrt-rtx-cu12"),
        "bound": BOUND,
        **judge(graphs),
        "seconds": round(time.monotonic() - start, 1),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


def take(patterns: Sequence[Pattern], count: int, generator: random.Random) -> list[Pattern]:
    """Returns so many of the patterns, or all if there are fewer."""
    return generator.sample(patterns, min(count, len(patterns)))


def pairs() -> list[Pattern]:
    """Returns every activation with every weight, for two GPUs."""
    formats = [(activation, weight) for activation in FIELDS["activation"] for weight in FIELDS["weight"]]
    return [Pattern(activation=a, weight=w, target=target) for a, w in formats for target in ("8.9", "12.0")]


def singles() -> list[Pattern]:
    """Returns the pairs that run, with one thing written otherwise."""
    good = [Pattern(activation=a, weight=w, target=target) for a, w, target in _GOOD]
    fields = [name for name in FIELDS if name not in ("activation", "weight")]
    return [replace(item, **{name: way}) for item in good for name in fields for way in FIELDS[name]]


def mixes(count: int, generator: random.Random) -> list[Pattern]:
    """Returns so many of the pairs that run, with two or three things written otherwise."""
    found = []
    fields = [name for name in FIELDS if name not in ("activation", "weight")]
    for _ in range(count):
        activation, weight, target = generator.choice(_GOOD)
        pattern = Pattern(activation=activation, weight=weight, target=target)
        for name in generator.sample(fields, generator.choice((2, 3))):
            pattern = replace(pattern, **{name: generator.choice(FIELDS[name][1:])})
        found.append(pattern)
    return found


def valid_graph(pattern: Pattern) -> onnx.ModelProto | None:
    """Returns the model of a pattern; None if ONNX's checker does not pass it."""
    model = graph_of(pattern)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return model


def judge(graphs: Mapping[Pattern, onnx.ModelProto]) -> dict[str, Any]:
    """Returns how many predictions are right, and every one that is not."""
    truths = build_all(list(graphs.values()), [pattern.target for pattern in graphs])
    wrong, seen = [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="trtq-lint-") as folder:
        for (pattern, model), truth in zip(graphs.items(), truths, strict=True):
            predicted, rules, layers = predict(model, pattern.target, Path(folder) / "model.onnx")
            built = realize(layers, truth)
            seen[built] += 1
            if predicted != built:
                told = truth.refused[:300] or [
                    f"{item.kind} {item.inputs} {item.constants}" for item in own(truth)
                ]
                wrong.append({
                    "graph": f"{pattern} for {pattern.target}", "lint": predicted, "rules": rules,
                    "built": built, "builder": told,
                })  # fmt: skip
    return {
        "graphs": len(graphs),
        "built as": dict(seen.most_common()),
        "right": len(graphs) - len(wrong),
        "share": round(1 - len(wrong) / len(graphs), 5),
        "disagreements": wrong,
    }


def predict(
    model: onnx.ModelProto, target: str, path: Path
) -> tuple[str, list[str], tuple[QuantizedLayer, ...]]:
    """Returns what lint says that the layer runs in, by which rules, and the quantized layers."""
    path.write_bytes(model.SerializeToString())
    read = load_as_it_is(path)
    findings = lint(read, (target,))
    layers = find_quantized_layers(read)
    rules = [f"{finding.rule}: {finding.effect}" for finding in findings]
    if any(finding.effect == REFUSED for finding in findings):
        return REFUSED, rules, layers
    in_float = {finding.node for finding in findings if finding.effect == "float"}
    runs = [layer.asked for layer in layers if layer.name not in in_float]
    return (runs or [FLOAT])[0], rules, layers


def realize(layers: tuple[QuantizedLayer, ...], truth: Truth) -> str:
    """Returns what the builder made of the layer: refused, a format, or float."""
    if truth.refused:
        return REFUSED
    covered = measure_coverage(layers, BuiltEngine(b"", truth.kernels))
    formats = [*covered.layers_realized, *(kernel.multiplies_in for kernel in own(truth))]
    return next(filter(None, formats), FLOAT)


def own(truth: Truth) -> list[Any]:
    """Returns the kernels that bear the layer's name."""
    return [kernel for kernel in truth.kernels if "layer" in kernel.nodes]


if __name__ == "__main__":
    main()
