"""What Triton's Python backend runs: scripts, and the one that runs an ONNX model by the package onnxruntime.

That one is for servers without an ONNX Runtime backend, or with an older one than the build was judged with.
"""

from __future__ import annotations

from collections.abc import Mapping

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.config import TritonPort

SCRIPT = '''"""Runs model.onnx beside this file by the package onnxruntime.

Written by trtq package. The server's Python must have that package and numpy. It runs on
the CPU; instances of KIND_GPU in config.pbtxt run on their GPU, with onnxruntime-gpu.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.joins = config["max_batch_size"] > 0
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        if config.get("optimization", {}).get("graph", {}).get("level") == -1:  # each node as it stands
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        providers = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]}))
        file = path / path.name if path.is_dir() else path
        self.session = onnxruntime.InferenceSession(file, options, providers=providers)

    def execute(self, requests):
        feeds = [self.read(request) for request in requests]
        if not self.joins:
            return [self.answer(feed)[0] for feed in feeds]
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        return self.answer(joined, ends[:-1])

    def read(self, request):
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def answer(self, feed, ends=()):
        """Returns the responses to the requests that a feed holds, which are parted at these samples."""
        try:
            arrays = self.session.run(self.outputs, feed)
        except Exception as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))] * (len(ends) + 1)
        parts = zip(*(np.split(array, ends) for array in arrays))
        return [pb_utils.InferenceResponse(self.name(part)) for part in parts]

    def name(self, arrays):
        return [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays)]
'''


def list_script_files(script: str) -> Mapping[str, bytes]:
    """Returns what a version holds for the Python backend, by path.

    An empty file stands where Python would keep what it compiles: a server that polls takes a version into
    which something was written for a new one, and loads it again.
    """
    return {"model.py": script.encode(), "__pycache__": b""}


def refuse_bfloat16(ports: tuple[TritonPort, ...]) -> None:
    """Refuses what has no numpy array in the Python backend.

    Raises:
        ArtifactError: An input or output is bfloat16.
    """
    for port in ports:
        if port.data_type == "TYPE_BF16":
            raise ArtifactError(
                f"{port.name!r} is bfloat16, which Triton's Python backend does not read; use "
                f"--fallback onnxruntime, or cast it in the model"
            )
