"""What the real TensorRT-RTX makes of many small models: built one after the other in a child process.

A crash of the builder ends the child; the model that it died of is noted, and a new child goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from trtq.pipeline.engine.kernels import Kernel, parse_log

_CHILD = r"""
import json, sys
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.layers, self.errors = "", []
    def log(self, severity, message):
        if message.lstrip().startswith("Layers:"):
            self.layers = message
        elif severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(" ".join(message.split()))

def build(path, sizes, target):
    logger.layers, logger.errors = "", []
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        return {"refused": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in sizes.items():
        profile.set_shape(name, low, usual, high)
    if sizes:
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        return {"refused": "; ".join(e for e in logger.errors if "cuda" not in e.lower())}
    return {"layers": logger.layers}

logger = Logger()
builder = trt.Builder(logger)
for line in open(sys.argv[1]):
    path, sizes, target = json.loads(line)
    answer = build(path, sizes, target)
    with open(path + ".json", "w") as file:
        json.dump(answer, file)
"""


@dataclass(frozen=True, slots=True)
class Truth:
    """What the builder did: why it refused the model, or else the kernels of the engine."""

    refused: str
    kernels: tuple[Kernel, ...]

    def runs_int8(self, node: str) -> bool:
        """Returns whether a node's arithmetic is in INT8."""
        return any(kernel.multiplies_in == "int8" for kernel in self.kernels if node in kernel.nodes)


def build_all(models: Sequence[onnx.ModelProto], targets: Sequence[str] = ()) -> list[Truth]:
    """Returns what the builder makes of each model; open dims of the inputs get the sizes 1, 2 and 4.

    Args:
        models: The models.
        targets: The compute capability to build each for; 8.9 for all without any.
    """
    names = [f"SM{target.replace('.', '')}" for target in targets or ["8.9"] * len(models)]
    truths: dict[int, Truth] = {}
    with tempfile.TemporaryDirectory(prefix="trtq-truth-") as folder:
        paths = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for path, model in zip(paths, models, strict=True):
            path.write_bytes(model.SerializeToString())
        while todo := [index for index in range(len(models)) if index not in truths]:
            work = Path(folder) / "work"
            lines = [json.dumps([str(paths[index]), _sizes(models[index]), names[index]]) for index in todo]
            work.write_text("\n".join(lines))
            command = [sys.executable, "-c", _CHILD, str(work)]
            child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            for index in todo:
                answer = paths[index].with_suffix(".onnx.json")
                if not answer.exists():
                    truths[index] = Truth(f"the builder ended with {child.returncode}", ())
                    break
                truths[index] = _truth(json.loads(answer.read_text()))
    return [truths[index] for index in range(len(models))]


def _truth(answer: dict[str, str]) -> Truth:
    if "refused" in answer:
        return Truth(answer["refused"] or "no reason given", ())
    return Truth("", tuple(parse_log(answer["layers"])))


def _sizes(model: onnx.ModelProto) -> dict[str, list[list[int]]]:
    sizes = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims):
            sizes[value.name] = [
                [dim.dim_value if dim.HasField("dim_value") else size for dim in dims] for size in (1, 2, 4)
            ]
    return sizes
