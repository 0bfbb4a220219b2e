"""How the time for a layer grows with the graph: chains of MatMul and Relu, each stage by itself.

    .venv/bin/python benchmarks/linear.py --output benchmarks/results/linear-2026-11-28.json

The bounds: a layer of 1,000 takes at most 1.5 times as long as one of 250 in the stages of `trtq quantize`
together, and one FP16 conversion of 2,000 nodes (1,000 layers) takes less than 0.6 s. The other stages are
shown. Processor time of this process, the least of several runs.

    .venv/bin/python benchmarks/linear.py --layers --nodes 2500 5000 10000 20000

runs whole commands on graphs of so many nodes: small Conv, MatMul, Add and Relu with residuals. A command is
a process of its own; processor time, less that of the same command on 104 nodes. The exponent is that of the
growth from the smallest of these graphs to the largest: 1 is linear. It is told of what goes by inside ONNX
Runtime, which opens and runs the models of a command, and of the rest apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from process import run

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.models.session import save
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.placement import place
from trtq.pipeline.graph.repair import repair
from trtq.pipeline.judge.switchable import build_switchable
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.weights.apply import quantize_weights
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight

WIDTH = 64
QUANTIZE = ("load", "place", "choose_weights", "quantize", "quantize_weights", "to_fp16", "save")
"""What `trtq quantize` is made of."""
_SMALLEST = 104
_INSIDE = Path(__file__).resolve().with_name("inside.py")
_PARTS = ("all", "inside ONNX Runtime", "outside")
LARGEST_RATIO, LARGEST_FP16_SECONDS = 1.5, 0.6


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[250, 1000, 2000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    seconds = {count: measure(count, given.times) for count in given.layers}
    document = {
        "command": " ".join(["python", *sys.argv]),
        "trtq": version("trtq"),
        "cores": os.cpu_count(),
        **(describe_layers(seconds) if seconds else {}),
        **(measure_commands(given.nodes) if given.nodes else {}),
    }
    text = json.dumps(document, indent=1) + "\n"
    sys.stdout.write(text)
    if given.output is not None:
        given.output.write_text(text)


def describe_layers(seconds: dict[int, dict[str, float]]) -> dict[str, object]:
    """Returns the time of each stage for a layer, by the number of layers."""
    first = next(iter(seconds.values()))
    return {
        "ms_per_layer": {
            stage: {count: round(1e3 * found[stage] / count, 4) for count, found in seconds.items()}
            for stage in first
        },
        "largest_ratio": LARGEST_RATIO,
        "largest_fp16_seconds": LARGEST_FP16_SECONDS,
        **judge(seconds),
    }


def measure_commands(sizes: list[int]) -> dict[str, object]:
    """Returns what whole commands take for a node of graphs of these sizes, and the most memory they hold."""
    least = run_commands(_SMALLEST)
    found = {count: run_commands(count) for count in sizes}
    more = {
        name: {count: [took - base for took, base in zip(costs[name], floor, strict=True)]
               for count, costs in found.items()}
        for name, floor in least.items()
    }  # fmt: skip
    first, last = min(sizes), max(sizes)
    grows = {
        name: dict(zip(_PARTS, (_find_exponent(costs[first], costs[last], last / first)), strict=True))
        for name, costs in more.items()
        if last > first
    }
    return {
        "exponent": grows,
        "ms_per_node": {
            name: {
                count: {part: round(1e3 * cost / count, 3) for part, cost in zip(_PARTS, costs, strict=False)}
                for count, costs in taken.items()
            }
            for name, taken in more.items()
        },
        "peak_mb": {
            name: {count: round(costs[name][-1]) for count, costs in found.items()} for name in least
        },
    }


def _find_exponent(short: Sequence[float], long: Sequence[float], ratio: float) -> list[float | None]:
    """Returns the exponents of the growth; None of what takes less than 0.1 s."""
    pairs = zip(short[: len(_PARTS)], long[: len(_PARTS)], strict=True)
    return [round(math.log(end / start, ratio), 2) if start > 0.1 else None for start, end in pairs]


def run_commands(count: int) -> dict[str, tuple[float, float, float, float]]:
    """Returns the processor seconds of each command for so many nodes, all, inside ONNX Runtime and outside.

    The last number is the peak of memory in MB.
    """
    with tempfile.TemporaryDirectory() as folder:
        place_ = Path(folder)
        model, data, ranges = write_residuals(count, place_ / "g.onnx"), place_ / "d.npz", place_ / "r.json"
        samples = np.random.default_rng(1).standard_normal((16, 8, 4, 4)).astype(np.float32)
        np.savez(data, x=samples)
        how = ("--calib-data", data, "--calib-method", "minmax", "--repair", "none")
        commands: dict[str, tuple[str | Path, ...]] = {
            "inspect": (model,),
            "calibrate": (model, *how, "-o", ranges),
            "quantize": (model, "--ranges", ranges, "-o", place_ / "q.onnx"),
            "lint": (place_ / "q.onnx",),
            "build": (model, *how, "--backend", "onnxruntime", "-o", place_ / "b.trtq"),
        }
        found, told = {}, place_ / "seconds.txt"
        for name, arguments in commands.items():
            command: list[str | Path] = [sys.executable, _INSIDE, told, name, *arguments]
            cost = run(command, {}, memory_mb=16_000)
            assert cost.status == "done", f"{name} of {count} nodes: {cost.words}"
            inside = float(told.read_text())
            found[name] = (cost.cpu_s, inside, cost.cpu_s - inside, cost.peak_mb)
        sys.stderr.write(f"{count} nodes: {found}\n")
        return found


def write_residuals(count: int, path: Path) -> Path:
    """Writes blocks of eight small nodes with two residuals; values stay near 1 however many there are."""
    rng, source = np.random.default_rng(0), "x"
    nodes, weights = list[onnx.NodeProto](), list[onnx.TensorProto]()
    eye = np.eye(8).reshape(8, 8, 1, 1)

    def add(op_type: str, *inputs: str) -> str:
        name = f"{op_type}{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [name], name=f"node/{name}"))
        return name

    def draw(middle: NDArray[Any] | float, *shape: int, spread: float = 0.05) -> str:
        array = (middle + spread * rng.standard_normal(shape)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        return f"w{len(weights) - 1}"

    while len(nodes) + 8 <= count:
        first = add("Relu", add("Conv", source, draw(eye, 8, 8, 1, 1)))
        second = add("Conv", first, draw(-0.5 * eye, 8, 8, 1, 1), draw(0.5, 8, spread=0.1))
        middle = add("Relu", add("Add", source, second))
        source = add("Add", middle, add("Relu", add("MatMul", middle, draw(0.0, 4, 4))))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 4, 4]) for name in ("x", source)]
    graph = helper.make_graph(nodes, "residuals", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def judge(seconds: dict[int, dict[str, float]]) -> dict[str, object]:
    """Returns how the stages grow from 250 to 1,000 layers, and whether the bounds hold."""
    if not {250, 1000} <= seconds.keys():
        return {}
    ratios = {stage: round(taken / 4 / seconds[250][stage], 3) for stage, taken in seconds[1000].items()}
    fp16 = seconds[1000]["to_fp16"]
    short, long = (sum(seconds[count][stage] for stage in QUANTIZE) for count in (250, 1000))
    ratios["trtq quantize"] = round(long / 4 / short, 3)
    holds = ratios["trtq quantize"] <= LARGEST_RATIO and fp16 < LARGEST_FP16_SECONDS
    return {"ratio_of_1000_to_250": ratios, "fp16_seconds_of_1000": round(fp16, 3), "holds": holds}


def measure(count: int, times: int) -> dict[str, float]:
    """Returns the seconds that each stage takes for a chain of so many layers."""
    with tempfile.TemporaryDirectory() as place_:
        stages = list_stages(count, Path(place_))
        return {name: min(time_call(stage) for _ in range(times)) for name, stage in stages.items()}


def list_stages(count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Returns the stages as calls without arguments."""
    path, scheme = write_chain(count, folder / "chain.onnx"), WeightScheme("int8")
    model = load(path, min_opset=17).model
    chosen, placement = group_by_weight(model, choose_weights(model, scheme)), place(model)
    ranges = spread(placement.activations)
    scaled = spread(
        placement.activations, Channels(scale=tuple(np.linspace(0.5, 1, WIDTH).tolist()), amax=3.0)
    )
    int8 = quantize(model, placement, ranges)
    save(quantize(model, placement, replace(ranges, activations="asymmetric")), folder / "pairs.onnx")
    pairs = load_as_it_is(folder / "pairs.onnx")  # with zero points, which TensorRT does not take
    return {
        "load": lambda: load(path, min_opset=17),
        "place": lambda: place(model),
        "to_fp16": lambda: to_fp16(model),
        "to_fp16 of Q/DQ": lambda: to_fp16(int8),
        "choose_weights": lambda: choose_weights(model, scheme),
        "quantize_weights": lambda: quantize_weights(model, model, chosen),
        "rescale": lambda: rescale(model, placement, scaled),
        "quantize": lambda: quantize(model, placement, ranges),
        "build_switchable": lambda: build_switchable(model, placement, ranges),
        "save": lambda: save(int8, folder / "saved.onnx"),
        "lint": lambda: lint(pairs),
        "repair": lambda: repair(pairs, requantize=True),
    }


def spread(tensors: tuple[str, ...], channels: Channels | None = None) -> Ranges:
    """Returns one range for all tensors, and the same channels."""
    return Ranges(
        tensors=dict.fromkeys(tensors, Range(3.0, -3.0, 3.0)),
        method="minmax",
        model_sha256="",
        data="none",
        num_samples=1,
        channels={} if channels is None else dict.fromkeys(tensors, channels),
    )


def time_call(call: Callable[[], object]) -> float:
    """Returns the processor seconds of one call."""
    gc.collect()
    gc.freeze()  # what was there before costs no time, as in the command line
    before = time.process_time()
    call()
    seconds = time.process_time() - before
    gc.unfreeze()
    return seconds


def write_chain(count: int, path: Path) -> Path:
    """Writes a chain of MatMul and Relu."""
    rng, source, nodes, weights = np.random.default_rng(0), "x", [], []
    for index in range(count):
        weight = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"a{index}"], name=f"fc{index}"))
        nodes.append(helper.make_node("Relu", [f"a{index}"], [f"r{index}"], name=f"relu{index}"))
        source = f"r{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", source)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


if __name__ == "__main__":
    main()
