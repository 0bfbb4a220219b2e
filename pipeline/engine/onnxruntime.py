"""ONNX Runtime on the CPU: runs the Q/DQ model itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trtq import lazy
from trtq.errors import BuildError
from trtq.models.runner import MovableSession, create_runner
from trtq.models.session import (
    OPTIMIZED_WEIGHTS,
    Session,
    SessionOptions,
    list_runtime_errors,
    open_session,
    register_custom_ops,
)
from trtq.pipeline.engine.backend import Backend, BuildRequest, BuiltEngine
from trtq.pipeline.engine.kernels import Kernel
from trtq.pipeline.graph.carried import ModelFile
from trtq.temporary import open_temporary_folder

_REASON = "ONNX Runtime has only INT8 kernels, and uses them only if the output of the layer is quantized too"
_WITH_BIAS = "/MatMulAddFusion"
"""What ONNX Runtime adds to the name of a MatMul that it makes a Gemm with the Add behind it."""
_QUANTIZED = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger", "QAttention")

_AS_USERS = SessionOptions(fuses_qdq=True)


class OnnxRuntime(Backend):
    """ONNX Runtime, CPU execution provider. The engine is the ONNX file."""

    name = "onnxruntime"
    runs_fp16 = False
    fuses_attention = False
    takes_scales_by_matrix = True
    needs_coded_outputs = True
    lacks: Mapping[str, str] = {
        "implicit": "it takes Q/DQ models; for implicit quantization take TensorRT 8.6 to 10",
        "nvfp4": "it has no numbers of four bits in activations; take --int8 or --fp8",
        "timing_cache": "it builds nothing and times nothing",
        "optimization_level": "it builds nothing",
        "hardware_compatibility": "it runs the ONNX file on any CPU",
        "version_compatible": "it runs the ONNX file in any version",
    }

    def version(self) -> str:
        """Returns the library's version."""
        return str(lazy.require("onnxruntime", None, f"backend {self.name}").__version__)

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Returns the kernels that ONNX Runtime chooses; profiles and targets mean nothing to it."""
        onnxruntime = lazy.require("onnxruntime", None, f"backend {self.name}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        with open_temporary_folder() as folder:
            optimized = folder / "optimized.onnx"
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry(OPTIMIZED_WEIGHTS, "weights")
            register_custom_ops(options)
            try:
                onnxruntime.InferenceSession(str(request.model), options, providers=["CPUExecutionProvider"])
            except list_runtime_errors() as error:
                raise BuildError(f"ONNX Runtime cannot load {request.model.name}: {error}") from error
            kernels = tuple(_kernel(node) for node in ir.load(optimized).graph)
        return BuiltEngine(None, kernels, usual_reason=_REASON)

    def overflows(self) -> bool:
        """Returns whether a product of large codes comes out too small, as without VNNI.

        Kernels for older x86 processors add two products of 8 bits in 16, and saturate.
        """
        return _overflows()

    def model_runner(self, model: ir.Model | Path | bytes, name: str) -> Any:
        """Returns a runner with all optimizations, as an ordinary session has them.

        A file is opened when it is first run.
        """
        if not isinstance(model, Path):
            return create_runner(open_session(model, optimize=True, engine=_AS_USERS), name)
        return create_runner(MovableSession(partial(_open_file, ModelFile(model))), name)


def _open_file(file: ModelFile) -> Session:
    with file.open() as path:
        return open_session(path, optimize=True, engine=_AS_USERS)


@cache
def _overflows() -> bool:
    size = 64
    graph = f"""
        <ir_version: 8, opset_import: ["": 13]>
        ones (float[1, {size}] x) => (float[1, {size}] y)
        <float scale = {{{1 / 127}}}, int8 zero = {{0}}, int8[{size}, {size}] codes = {{{
        ", ".join(["127"] * size * size)
    }}}> {{
            q = QuantizeLinear (x, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            w = DequantizeLinear (codes, scale, zero)
            y = MatMul (d, w)
        }}
    """
    session = open_session(ir.from_onnx_text(graph), optimize=True, engine=_AS_USERS)
    (found,) = session.run(None, {"x": np.ones((1, size), np.float32)})
    return bool(abs(found - size).max() > 1)


def _kernel(node: ir.Node) -> Kernel:
    name = str(node.name)
    dtype = weight = "Int8" if node.op_type.startswith(_QUANTIZED) else "Float"
    if node.op_type == "MatMulNBits":  # it multiplies floats with the weight as it is stored
        weight = f"Int{node.attributes.get_int('bits', 4)}"
    nodes = tuple(dict.fromkeys((name, name.removesuffix(_WITH_BIAS))))
    return Kernel(name, node.op_type, nodes, (dtype,), (weight,))
