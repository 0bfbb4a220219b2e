"""What whole commands hold in memory at most, on models whose weights are most of it.

    .venv/bin/python benchmarks/memory.py --output benchmarks/results/memory-2026-11-30.json

The models: one weight of 1.5 GB in a file of its own, once of a Gather and once of a MatMul, and a net of
Conv with 130 MB. Beside the commands stands what ONNX Runtime alone holds that opens the float model and runs
it on one batch. Peaks of resident memory in MB (10^6 bytes), with the pages of files that are mapped. 5 GB of
disk are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from process import run
from tools import circumstances, trtq_command

_ALONE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {name: array[:8] for name, array in numpy.load(sys.argv[2]).items()})
"""
_BLOCK = 1 << 22
_DATA = "model.onnx.data"
_STAGES = ((64, 2), (128, 3), (256, 4), (512, 6), (512, 4), (512, 3))
"""The channels of the Conv of a stage, and how many there are."""


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--work", type=Path, help="a folder with room for it; default: that of TMPDIR")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {**circumstances(["trtq"]), "peak_mb": {}}
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="bench-memory-", dir=given.work) as place:
            result["peak_mb"][name] = found = measure(MODELS[name], Path(place))
        print(name, json.dumps(found), flush=True)
    if given.output is not None:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(write: Callable[[Path], dict[str, NDArray[Any]]], folder: Path) -> dict[str, float]:
    """Returns the peaks of all commands on a model, in MB."""
    model, data, ranges, built = (folder / name for name in ("model.onnx", "d.npz", "r.json", "b.trtq"))
    np.savez(data, **write(model))  # type: ignore[arg-type]
    peaks = {"ONNX Runtime alone": take_peak([sys.executable, "-c", _ALONE, model, data])}
    for name, command in list_commands(model, data, ranges, built):
        peaks[name] = take_peak(command)
    return peaks


def list_commands(
    model: Path, data: Path, ranges: Path, built: Path
) -> Iterator[tuple[str, list[str | Path]]]:
    """Yields the commands in order; each needs what those before it have written."""
    how = ("--calib-data", data, "--calib-method", "entropy", "--repair", "none")
    quantized = model.parent / "q" / "q.onnx"
    quantized.parent.mkdir()
    compare = ("compare", model, quantized, "--data", data)
    yield "inspect", [*trtq_command("inspect", model)]
    yield "calibrate", [*trtq_command("calibrate", model, *how, "-o", ranges)]
    yield "quantize", [*trtq_command("quantize", model, "--ranges", ranges, "-o", quantized)]
    yield "compare", [*trtq_command(*compare)]
    for item in quantized.parent.iterdir():
        item.unlink()
    yield "build", [*trtq_command("build", model, *how, "--backend", "onnxruntime", "-o", built)]


def take_peak(command: Sequence[str | Path]) -> float:
    """Returns the most memory that a command holds, in MB; ends with its words if it fails."""
    cost = run(command, {}, 24e3)
    if cost.status != "done" and "FAIL" not in cost.printed:  # of the numbers, which are random
        sys.exit(f"{' '.join(map(str, command))}: {cost.status}: {cost.words}")
    return cost.peak_mb


def write_gather(path: Path) -> dict[str, NDArray[Any]]:
    """Writes an embedding of 366,000 words before two layers; returns samples."""
    rows = 366_000
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("MatMul", ["e", "w1"], ["h"], name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="fc2"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 16])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 64])
    _write(path, nodes, ids, out, {"w1": _draw(1024, 512), "w2": _draw(512, 64)}, ("table", (rows, 1024)))
    return {"ids": np.random.default_rng(1).integers(0, rows, (16, 16))}


def write_matmul(path: Path) -> dict[str, NDArray[Any]]:
    """Writes a layer of 375 million weights before a small one; returns samples."""
    width, hidden = 4096, 91_552
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="fc2"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])
    _write(path, nodes, x, out, {"w2": _draw(hidden, 64)}, ("w1", (width, hidden)))
    return {"x": _draw(width, 16).T * np.float32(np.sqrt(width))}


def write_conv(path: Path) -> dict[str, NDArray[Any]]:
    """Writes a net of Conv and Relu for images, all in one file; returns samples."""
    nodes, weights, source, channels = [], dict[str, NDArray[Any]](), "x", 3
    for number, count in _STAGES:
        for index in range(count):
            name = f"w{len(weights)}"
            weights[name] = _draw(channels * 9, number).T.reshape(number, channels, 3, 3) * np.float32(1.4)
            strides = [2, 2] if index == 0 else [1, 1]
            made = [f"c{len(weights)}", f"r{len(weights)}"]
            nodes.append(
                helper.make_node(
                    "Conv", [source, name], made[:1], name=made[0], pads=[1, 1, 1, 1], strides=strides
                )
            )
            nodes.append(helper.make_node("Relu", made[:1], made[1:], name=made[1]))
            source, channels = made[1], number
    weights["fc"] = _draw(channels, 1000)
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["p"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], name="flatten"))
    nodes.append(helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])
    _write(path, nodes, x, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000]), weights)
    return {"x": np.random.default_rng(1).standard_normal((32, 3, 224, 224)).astype(np.float32)}


MODELS = {"gather": write_gather, "matmul": write_matmul, "conv": write_conv}


def _draw(rows: int, columns: int) -> NDArray[Any]:
    values = np.random.default_rng(rows).standard_normal((rows, columns), np.float32)
    return values / np.float32(np.sqrt(rows))


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    given: onnx.ValueInfoProto,
    made: onnx.ValueInfoProto,
    weights: Mapping[str, NDArray[Any]],
    large: tuple[str, tuple[int, int]] | None = None,
) -> None:
    """Writes a model; the large weight goes to a file beside it, in parts."""
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    if large is not None:
        name, shape = large
        rng, left = np.random.default_rng(0), shape[0] * shape[1]
        with path.with_name(_DATA).open("wb") as file:
            while left:
                block = rng.standard_normal(min(left, _BLOCK), np.float32) / np.float32(np.sqrt(shape[0]))
                file.write(block.tobytes())
                left -= block.size
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=_DATA)
        tensors.append(tensor)
    graph = helper.make_graph(nodes, "net", [given], [made], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


if __name__ == "__main__":
    main()
