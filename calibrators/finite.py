"""Which tensors may hold NaN: ONNX Runtime's maximum forgets what it saw before one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx_ir as ir

from trtq.calibrators.node_facts import STANDARD, count_elements, find_axes, find_norm, read_constant
from trtq.calibrators.signs import list_deciding
from trtq.models.tensors import iterate_values

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
_ADDING = (
    *_NORMS, "AveragePool", "Conv", "ConvTranspose", "CumSum", "GRU", "Gemm", "GlobalAveragePool", "LSTM",
    "MatMul", "RNN", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Resize",
    "Upsample",
)  # fmt: skip
"""What may overflow to both sides on the way and end as NaN, where others end as infinity, which is seen."""
HUGE = 1e18
"""From here on the squares of numbers overflow."""


def list_doubtful(model: ir.Model, finite: Collection[str], magnitudes: Mapping[str, float]) -> set[str]:
    """Returns the float32 tensors that may hold NaN, if these magnitudes are what the tensors reach.

    Args:
        model: The float graph.
        finite: The tensors that are known to hold none.
        magnitudes: What is known of others, infinity included.
    """
    found = {name for name, value in magnitudes.items() if value == math.inf and name not in finite}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and measure(tensor) == math.inf:
            found.add(name)
    for node in model.graph:
        given = [str(value.name) for value in node.inputs if value is not None]
        overflows = node.op_type in _ADDING and any(magnitudes.get(name, 0.0) > HUGE for name in given)
        if overflows or not found.isdisjoint(given) or not _keeps_finite(node):
            found.update(str(value.name) for value in node.outputs if value.name not in finite)
    made = (value for node in model.graph for value in node.outputs if value.dtype is ir.DataType.FLOAT)
    return {str(value.name) for value in made if value.name in found}


def measure(tensor: ir.TensorProtocol) -> float:
    """Returns the largest magnitude of a constant; infinity if it holds NaN or infinities."""
    extremes = [(float(piece.max()), -float(piece.min())) for piece in iterate_values(tensor)]
    if not all(math.isfinite(extreme) for pair in extremes for extreme in pair):
        return math.inf
    return max((max(pair) for pair in extremes), default=0.0)


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
