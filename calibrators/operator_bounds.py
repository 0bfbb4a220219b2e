"""How large the outputs of a node can get at most, given how large its inputs do.

A product with constant weights is bounded by the largest sum of magnitudes of an output channel (the infinity
norm of the matrix). Infinities count nothing: FP16 has them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import find_largest_code, read_values

Step = Callable[[Sequence[float]], float]
"""From the bounds of the inputs of a node to that of its outputs."""

_KEPT = (
    "Abs", "AveragePool", "Cast", "CastLike", "DepthToSpace", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSwish", "Identity",
    "Mish", "Neg", "ReduceMax", "ReduceMean", "ReduceMin", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "ThresholdedRelu", "Tile", "Transpose", "Trilu", "Unsqueeze",
)  # fmt: skip
"""Nothing they make is larger than the largest of their first input."""
_LARGEST = ("Concat", "Max", "Mean", "Min", "Where")
"""Nothing they make is larger than the largest of all their inputs."""
_ONE = (
    "Cos", "Erf", "HardSigmoid", "Hardmax", "Sigmoid", "Sign", "Sin", "Softmax", "Softsign", "Tanh",
)  # fmt: skip
"""Nothing they make is larger than 1."""
_STANDARD = ("", "ai.onnx")
_LOG = 104.0
"""Of the smallest float32."""


def find_step(node: ir.Node) -> Step:
    """Returns what bounds the outputs of a node; infinity for what is not known here."""
    kind = node.op_type if node.domain in _STANDARD else ""
    if kind != "Split" and sum(bool(value.name) for value in node.outputs) > 1:
        return lambda given: math.inf  # a norm may give the inverse of a deviation, too
    if kind in _KEPT:
        return lambda given: given[0]
    if kind in _LARGEST:
        places = [index for index, value in enumerate(node.inputs) if value is not None]
        places = places[1:] if kind == "Where" else places
        return lambda given: max(given[place] for place in places)
    if kind in _ONE:
        return lambda given: 1.0
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    make = _MAKERS.get(kind)
    return make(node) if make is not None else lambda given: math.inf


def _exponential(given: Sequence[float]) -> float:
    return math.exp(given[0]) if given[0] < 700 else math.inf


def _logarithm(given: Sequence[float]) -> float:
    return max(_LOG, math.log(given[0])) if given[0] > 0 else _LOG


_SIMPLE: Mapping[str, Step] = {
    "Add": lambda given: given[0] + given[1],
    "Sub": lambda given: given[0] + given[1],
    "Mul": lambda given: given[0] * given[1],
    "Sum": lambda given: sum(given),
    "Sqrt": lambda given: math.sqrt(given[0]),
    "Exp": _exponential,
    "Log": _logarithm,
    "Softplus": lambda given: given[0] + math.log(2),
    "Ceil": lambda given: given[0] + 1,
    "Floor": lambda given: given[0] + 1,
    "Round": lambda given: given[0] + 0.5,
    "PRelu": lambda given: given[0] * max(given[1], 1.0),
}


def _constant(node: ir.Node, place: int) -> NDArray[np.float64] | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return read_values(value.const_value).astype(np.float64)


def _sum_magnitudes(weight: NDArray[np.float64], axes: tuple[int, ...]) -> float:
    return float(np.abs(weight).sum(axis=axes).max(initial=0.0))


def _linear(node: ir.Node) -> Step:
    """Bounds a product with a constant weight, and a bias."""
    weight = _constant(node, 1)
    if weight is None:
        return lambda given: math.inf
    if node.op_type == "Conv":
        axes = tuple(range(1, weight.ndim))
    elif node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1) or 1
        weight = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        axes = (1, *range(3, weight.ndim))
    else:
        axes = (1 if node.attributes.get_int("transB", 0) else 0,)
    scale = 1.0 if node.op_type != "Gemm" else abs(node.attributes.get_float("alpha", 1.0) or 0.0)
    beta = 1.0 if node.op_type != "Gemm" else abs(node.attributes.get_float("beta", 1.0) or 0.0)
    gain = scale * _sum_magnitudes(weight, axes)
    return lambda given: gain * given[0] + (beta * given[2] if len(given) > 2 else 0.0)


def _matmul(node: ir.Node) -> Step:
    """Bounds a product of a constant and a tensor, or of two tensors of which the inner size is known."""
    left, right = _constant(node, 0), _constant(node, 1)
    if right is not None:
        gain = _sum_magnitudes(right, (max(right.ndim - 2, 0),))
        return lambda given: gain * given[0]
    if left is not None:
        gain = _sum_magnitudes(left, (left.ndim - 1,))
        return lambda given: gain * given[1]
    if (shares := _made_by(node.inputs[0], "Softmax")) is not None and _is_over_last(shares):
        return lambda given: given[1]  # they sum to 1
    size = _size(node.inputs[0], (-1,)) or _size(node.inputs[1], (-2,))
    return lambda given: given[0] * given[1] * (size or math.inf)


def _is_over_last(softmax: ir.Node) -> bool:
    value = softmax.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return softmax.attributes.get_int("axis", -1) in (-1, rank - 1)


def _size(value: ir.Value | None, axes: Sequence[int] | None) -> int | None:
    """Returns the number of elements along some axes, or all; None if it is open."""
    if value is None or value.shape is None:
        return None
    chosen = range(len(value.shape)) if axes is None else axes
    if any(not -len(value.shape) <= axis < len(value.shape) for axis in chosen):
        return None
    sizes = [size for axis in chosen if isinstance(size := value.shape[axis], int)]
    return math.prod(sizes) if len(sizes) == len(chosen) else None


def _divide(node: ir.Node) -> Step:
    divisor = _constant(node, 1)
    if divisor is None:
        size = _find_norm_size(node)
        return lambda given: math.inf if size is None else math.sqrt(size)
    least = float(np.abs(divisor).min(initial=math.inf))
    return lambda given: given[0] / least if least > 0 else math.inf


def _find_norm_size(node: ir.Node) -> int | None:
    """Returns over how many values c / sqrt(mean(c * c) + epsilon) takes the mean; None for other quotients.

    None of n values is larger than the root of the sum of their squares.
    """
    divided, root = node.inputs[0], _made_by(node.inputs[1], "Sqrt")
    total = root and _made_by(root.inputs[0], "Add")
    means = [_made_by(value, "ReduceMean") for value in total.inputs] if total else []
    mean = next((item for item in means if item is not None), None)
    square = mean and (_made_by(mean.inputs[0], "Pow") or _made_by(mean.inputs[0], "Mul"))
    if mean is None or square is None or square.inputs[0] is not divided:
        return None
    assert total is not None
    added = [_constant(total, place) for place, item in enumerate(means) if item is not mean]
    is_positive = all(epsilon is not None and epsilon.min(initial=0.0) >= 0 for epsilon in added)
    if not is_positive or mean.attributes.get_int("keepdims", 1) != 1:
        return None
    is_square = square.inputs[1] is divided or (
        square.op_type == "Pow" and (exponent := _constant(square, 1)) is not None and (exponent == 2).all()
    )
    return _size(mean.inputs[0], _find_axes(mean)) if is_square else None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    is_standard = node is not None and node.domain in _STANDARD
    return node if node is not None and is_standard and node.op_type == op_type else None


def _power(node: ir.Node) -> Step:
    exponent = _constant(node, 1)
    if exponent is None or not exponent.size or exponent.min() < 0:
        return lambda given: math.inf
    low, high = float(exponent.min()), float(exponent.max())

    def bound(given: Sequence[float]) -> float:
        try:
            return float(max(given[0] ** low, given[0] ** high))
        except OverflowError:
            return math.inf

    return bound


def _clip(node: ir.Node) -> Step:
    low, high = _find_end(node, 1, "min"), _find_end(node, 2, "max")
    if low is None or high is None:  # an end may be computed
        return lambda given: max(*given, abs(low or 0.0), abs(high or 0.0))
    widest, outside = max(abs(low), abs(high)), max(low, -high, 0.0)
    return lambda given: min(max(given[0], outside), widest)


def _find_end(node: ir.Node, place: int, name: str) -> float | None:
    constant = _constant(node, place)
    return node.attributes.get_float(name) if constant is None else float(constant.reshape(-1)[0])


def _leak(node: ir.Node) -> Step:
    factor = max(1.0, abs(node.attributes.get_float("alpha", 0.01) or 0.0))
    return lambda given: factor * given[0]


def _elu(node: ir.Node) -> Step:
    alpha = abs(node.attributes.get_float("alpha", 1.0) or 0.0)
    return lambda given: max(given[0], alpha)


def _pad(node: ir.Node) -> Step:
    if node.attributes.get_string("mode", "constant") != "constant":
        return lambda given: given[0]
    value = abs(node.attributes.get_float("value", 0.0) or 0.0)  # before opset 11
    return lambda given: max(given[0], given[2] if len(given) > 2 else value)


def _pool(node: ir.Node) -> Step:
    """Bounds a MaxPool: a window of padding alone gives the least float."""
    holes = any(size != 1 for size in node.attributes.get_ints("dilations") or ())
    padded = (
        any(node.attributes.get_ints("pads") or ())
        or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    )
    return lambda given: math.inf if holes and padded else given[0]


def _drop_out(node: ir.Node) -> Step:
    is_training = len(node.inputs) > 2 and node.inputs[2] is not None
    return lambda given: math.inf if is_training else given[0]


def _dequantize(node: ir.Node) -> Step:
    codes = node.inputs[0]
    reach = 2 * find_largest_code(None if codes is None else codes.dtype) + 1  # from a zero point at one end
    return lambda given: reach * given[1]


def _resize(node: ir.Node) -> Step:
    """Bounds a Resize; the weights of a cubic kernel sum up to less than 2 along each axis."""
    is_cubic = node.attributes.get_string("mode", "nearest") == "cubic"
    if is_cubic and not -1 <= (node.attributes.get_float("cubic_coeff_a", -0.75) or 0.0) <= 0:
        return lambda given: math.inf
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape else 4
    factor = 2.0**rank if is_cubic else 1.0
    outside = abs(node.attributes.get_float("extrapolation_value", 0.0) or 0.0)
    return lambda given: max(factor * given[0], outside)


def _find_axes(node: ir.Node) -> Sequence[int] | None:
    """Returns the axes of a reduction; None for all, which bounds those that are computed, too."""
    axes = _constant(node, 1)
    if axes is not None and axes.size:
        return [int(axis) for axis in axes.reshape(-1)]
    return node.attributes.get_ints("axes") or None


def _sum_over_axes(node: ir.Node) -> Step:
    size = _size(node.inputs[0], _find_axes(node))
    count = math.inf if size is None else float(size)
    powers: Mapping[str, Step] = {
        "ReduceSum": lambda given: given[0] * count,
        "ReduceL1": lambda given: given[0] * count,
        "ReduceL2": lambda given: given[0] * math.sqrt(count),
        "ReduceSumSquare": lambda given: given[0] * given[0] * count,
    }
    return powers[node.op_type]


def _cumulate(node: ir.Node) -> Step:
    count = _size(node.inputs[0], None)
    return lambda given: given[0] * (math.inf if count is None else count)


def _batch_norm(node: ir.Node) -> Step:
    constants = [_constant(node, place) for place in range(1, 5)]
    if any(item is None for item in constants):
        return lambda given: math.inf
    scale, bias, mean, var = (np.asarray(item) for item in constants)
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    gain = np.abs(scale) / np.sqrt(np.maximum(var + epsilon, 1e-38))
    return lambda given: float(((given[0] + np.abs(mean)) * gain + np.abs(bias)).max(initial=0.0))


def _normalize(node: ir.Node) -> Step:
    """Bounds what is divided by its own deviation: of n values none is above the root of n."""
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    first = node.attributes.get_int("axis", -1) if node.op_type in _WITH_AXIS else 1
    size = _size(value, range(rank)[first:]) if rank and first is not None else None
    count = math.inf if size is None else math.sqrt(size)
    return lambda given: count * (given[1] if len(given) > 1 else 1.0) + (given[2] if len(given) > 2 else 0.0)


_WITH_AXIS = ("LayerNormalization", "RMSNormalization")
_MAKERS: Mapping[str, Callable[[ir.Node], Step]] = {
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _linear,
    "ConvTranspose": _linear,
    "CumSum": _cumulate,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Dropout": _drop_out,
    "Elu": _elu,
    "Gemm": _linear,
    "GroupNormalization": _normalize,
    "InstanceNormalization": _normalize,
    "LayerNormalization": _normalize,
    "LeakyRelu": _leak,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Pad": _pad,
    "Pow": _power,
    "RMSNormalization": _normalize,
    "ReduceL1": _sum_over_axes,
    "ReduceL2": _sum_over_axes,
    "ReduceSum": _sum_over_axes,
    "ReduceSumSquare": _sum_over_axes,
    "Resize": _resize,
    "Upsample": _resize,
}
