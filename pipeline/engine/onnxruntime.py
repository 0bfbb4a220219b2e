"""ONNX Runtime on the CPU: runs the Q/DQ model itself."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from trtq import lazy
from trtq.errors import BuildError
from trtq.models.session import runtime_errors
from trtq.pipeline.engine.backend import BuildRequest, Built, Kernel

_REASON = (
    "ONNX Runtime runs a layer in INT8 only where its output is quantized too; "
    "these Q/DQ pairs are placed for TensorRT, where that costs speed"
)
_QUANTIZED = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger", "QAttention")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime, CPU execution provider. The engine is the ONNX file."""

    name: str = "onnxruntime"
    runs_fp16: bool = False

    def version(self) -> str:
        """Returns the library's version."""
        return str(lazy.require("onnxruntime", None, f"backend {self.name}").__version__)

    def why_not(self) -> str:
        """Returns nothing: trtq depends on it."""
        return ""

    def build(self, request: BuildRequest) -> Built:
        """Returns the kernels that ONNX Runtime chooses; profiles and targets mean nothing to it.

        Raises:
            BuildError: It cannot load the model.
        """
        onnxruntime = lazy.require("onnxruntime", None, f"backend {self.name}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        with tempfile.TemporaryDirectory(prefix="trtq-") as folder:
            optimized = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            try:
                onnxruntime.InferenceSession(str(request.model), options, providers=["CPUExecutionProvider"])
            except runtime_errors() as error:
                raise BuildError(f"ONNX Runtime cannot load {request.model.name}: {error}") from error
            kernels = tuple(_kernel(node) for node in ir.load(optimized).graph)
        return Built(None, kernels, usual_reason=_REASON)


def _kernel(node: ir.Node) -> Kernel:
    name = str(node.name)
    dtype = "Int8" if node.op_type.startswith(_QUANTIZED) else "Float"
    return Kernel(name, node.op_type, (name,), (dtype,), (dtype,))
