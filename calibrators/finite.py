"""Which tensors may hold NaN: ONNX Runtime's maximum forgets what it saw before one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from trtq.calibrators.node_facts import STANDARD, count_elements, find_axes, find_norm, read_constant
from trtq.calibrators.signs import list_deciding
from trtq.models.tensors import read_values

_NORMS = (
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "RMSNormalization",
)  # fmt: skip
_KEEPING = (
    "Abs", "Add", "ArgMax", "ArgMin", "AveragePool", "Cast", "CastLike", "Ceil", "Clip", "Concat",
    "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Elu",
    "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "LSTM",
    "LeakyRelu", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "NonZero", "OneHot",
    "PRelu", "Pad", "QuantizeLinear", "RNN", "Range", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND",
    "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where",
)  # fmt: skip
"""What makes no NaN of finite numbers."""
HUGE = 1e18
"""From here on squares and sums overflow, and what is made of infinities may be NaN."""


def list_doubtful(model: ir.Model, finite: Collection[str], huge: Collection[str]) -> set[str]:
    """Returns the float32 tensors that may hold NaN, unless something overflows that is known to be smaller.

    Args:
        model: The float graph.
        finite: The tensors that are known to hold none.
        huge: The tensors that are known to hold infinities, or numbers that are nearly so large.
    """
    found = {*huge}
    for name, value in model.graph.initializers.items():
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        if (
            value.const_value is not None
            and is_float
            and not np.isfinite(read_values(value.const_value)).all()
        ):
            found.add(name)
    for node in model.graph:
        given = (str(value.name) for value in node.inputs if value is not None)
        if not found.isdisjoint(given) or not _keeps_finite(node):
            found.update(str(value.name) for value in node.outputs if value.name not in finite)
    made = (value for node in model.graph for value in node.outputs if value.dtype is ir.DataType.FLOAT)
    return {str(value.name) for value in made if value.name in found}


def _keeps_finite(node: ir.Node) -> bool:
    """Returns whether a node makes no NaN of finite numbers."""
    kind = node.op_type if node.domain in STANDARD else ""
    if kind in _NORMS:
        return (node.attributes.get_float("epsilon", 1e-5) or 0.0) > 0
    if kind == "Sqrt":
        return list_deciding(node.inputs[0]) == set()
    if kind == "ReduceMean":
        return bool(count_elements(node.inputs[0], find_axes(node)))
    if kind in ("Pow", "Div"):
        constant = read_constant(node, 1)
        if constant is None:
            return kind == "Div" and find_norm(node) is not None
        return bool((constant != 0).all() if kind == "Div" else (constant % 1 == 0).all())
    return kind in _KEEPING
