"""How large the outputs of a node can get at most, given how large its inputs do.

A product with constant weights is bounded by the largest sum of magnitudes of an output channel (the infinity
norm of the matrix). Infinities count nothing: FP16 has them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trtq.calibrators.linear_bounds import Channels, Step, bound_linear, bound_product, carry_channels
from trtq.calibrators.node_facts import (
    STANDARD,
    count_elements,
    find_axes,
    find_norm,
    is_constant,
    list_dims,
    made_by,
    read_batch_norm,
    read_constant,
)
from trtq.models.tensors import find_largest_code

_KEPT = (
    "Abs", "AveragePool", "DepthToSpace", "Expand", "Flatten",
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
_LOG = 104.0
"""Of the smallest float32."""
_RECURRENT = ("GRU", "LSTM", "RNN")


def find_step(node: ir.Node, channels: Channels) -> Step:
    """Returns what bounds the outputs of a node; infinity for what is not known here.

    Args:
        node: Nodes come in graph order.
        channels: What is known of those before; that of this one is added.
    """
    kind = node.op_type if node.domain in STANDARD else ""
    if kind not in ("Split", *_RECURRENT) and sum(bool(value.name) for value in node.outputs) > 1:
        return lambda given: math.inf  # a norm may give the inverse of a deviation, too
    if kind:
        carry_channels(node, channels)
    if kind in ("Conv", "ConvTranspose", "Gemm"):
        return bound_linear(node, channels)
    if kind == "MatMul":
        return _matmul(node, channels)
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
    "Mod": lambda given: max(given[0], given[1]),
    "OneHot": lambda given: given[2],
    "Range": lambda given: max(given[0], given[1]),
}


def _matmul(node: ir.Node, channels: Channels) -> Step:
    """Bounds a product of a constant and a tensor, or of two tensors of which the inner size is known."""
    for place in (1, 0):
        if is_constant(node, place):
            return bound_product(node, place, channels)
    if (shares := made_by(node.inputs[0], "Softmax")) is not None and _is_over_last(shares):
        return lambda given: given[1]  # they sum to 1
    size = count_elements(node.inputs[0], (-1,)) or count_elements(node.inputs[1], (-2,))
    return lambda given: given[0] * given[1] * (size or math.inf)


def _is_over_last(softmax: ir.Node) -> bool:
    value = softmax.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return softmax.attributes.get_int("axis", -1) in (-1, rank - 1)


def _divide(node: ir.Node) -> Step:
    divisor = read_constant(node, 1)
    if divisor is None:
        norm = find_norm(node)
        return lambda given: math.inf if norm is None else math.sqrt(norm.size)
    least = float(np.abs(divisor).min(initial=math.inf))
    return lambda given: given[0] / least if least > 0 else math.inf


def _power(node: ir.Node) -> Step:
    exponent = read_constant(node, 1)
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
    widest = max(abs(low), abs(high))
    return lambda given: widest  # also of infinities, which count nothing before


def _find_end(node: ir.Node, place: int, name: str) -> float | None:
    constant = read_constant(node, place)
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


def _sum_over_axes(node: ir.Node) -> Step:
    size = count_elements(node.inputs[0], find_axes(node))
    count = math.inf if size is None else float(size)
    powers: Mapping[str, Step] = {
        "ReduceSum": lambda given: given[0] * count,
        "ReduceL1": lambda given: given[0] * count,
        "ReduceL2": lambda given: given[0] * math.sqrt(count),
        "ReduceSumSquare": lambda given: given[0] * given[0] * count,
    }
    return powers[node.op_type]


def _cumulate(node: ir.Node) -> Step:
    count = count_elements(node.inputs[0], None)
    return lambda given: given[0] * (math.inf if count is None else count)


def _batch_norm(node: ir.Node) -> Step:
    found = read_batch_norm(node)
    if found is None:
        return lambda given: math.inf
    gain, mean, bias = found
    return lambda given: float(((given[0] + np.abs(mean)) * gain + np.abs(bias)).max(initial=0.0))


def _normalize(node: ir.Node) -> Step:
    """Bounds what is divided by its own deviation: of n values none is above the root of n."""
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    first = node.attributes.get_int("axis", -1) if node.op_type in _WITH_AXIS else 1
    size = count_elements(value, range(rank)[first:]) if rank and first is not None else None
    count = math.inf if size is None else math.sqrt(size)
    return lambda given: count * (given[1] if len(given) > 1 else 1.0) + (given[2] if len(given) > 2 else 0.0)


def _measure_shape(node: ir.Node) -> Step:
    """Bounds sizes of a tensor, and places in it."""
    dims = list_dims(node.inputs[0]) or (None,)
    largest = max(math.inf if size is None else float(size) for size in dims)
    return lambda given: largest


def _cast(node: ir.Node) -> Step:
    """Bounds a Cast; whatever may be NaN or too large for an integer becomes any integer."""
    given, made = (item.dtype if item is not None else None for item in (node.inputs[0], node.outputs[0]))
    if given in (None, ir.DataType.STRING) or made is None:
        return lambda given: math.inf
    wraps = not made.is_floating_point() and (given.is_floating_point() or not made.is_signed())
    return lambda bounds: math.inf if wraps else bounds[0]


def _gather(node: ir.Node) -> Step:
    """Bounds a Gather; of the sizes of a tensor by those that are taken."""
    shape, places = made_by(node.inputs[0], "Shape"), read_constant(node, 1)
    dims = list_dims(shape.inputs[0]) if shape is not None and not shape.attributes else None
    if dims is None or places is None or not (np.abs(places + 0.5) < len(dims)).all():
        return lambda given: given[0]
    sizes = [dims[int(place)] for place in places.reshape(-1)]
    largest = max((math.inf if size is None else float(size) for size in sizes), default=0.0)
    return lambda given: largest


def _recur(node: ir.Node) -> Step:
    """Bounds what gates and tanh make; the cells of an LSTM grow by 1 a step at most."""
    dims = list_dims(node.inputs[0]) or ()
    time = node.attributes.get_int("layout", 0)
    steps = (dims[time : time + 1] or [None])[0]
    shows_cells = node.op_type == "LSTM" and len(node.outputs) > 2 and bool(node.outputs[2].name)
    grown = 0.0 if not shows_cells else math.inf if steps is None else float(steps)
    if "activations" in node.attributes or any(item.dtype is None for item in node.outputs if item.name):
        return lambda given: math.inf
    return lambda given: max([1.0, *given[5:6]]) + (grown + sum(given[6:7]) if grown else 0.0)


def _fill(node: ir.Node) -> Step:
    value = node.attributes.get_tensor("value", None)
    magnitude = 0.0 if value is None else float(np.abs(value.numpy().astype(np.float64)).max(initial=0.0))
    return lambda given: magnitude


def _scatter(node: ir.Node) -> Step:
    is_plain = node.attributes.get_string("reduction", "none") == "none"
    return lambda given: max(given[0], given[2]) if is_plain else math.inf


_WITH_AXIS = ("LayerNormalization", "RMSNormalization")
_MAKERS: Mapping[str, Callable[[ir.Node], Step]] = {
    "ArgMax": _measure_shape,
    "ArgMin": _measure_shape,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clip,
    "ConstantOfShape": _fill,
    "CumSum": _cumulate,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Dropout": _drop_out,
    "Elu": _elu,
    "GRU": _recur,
    "Gather": _gather,
    "GroupNormalization": _normalize,
    "InstanceNormalization": _normalize,
    "LSTM": _recur,
    "LayerNormalization": _normalize,
    "LeakyRelu": _leak,
    "MaxPool": _pool,
    "NonZero": _measure_shape,
    "Pad": _pad,
    "Pow": _power,
    "RMSNormalization": _normalize,
    "RNN": _recur,
    "ReduceL1": _sum_over_axes,
    "ReduceL2": _sum_over_axes,
    "ReduceSum": _sum_over_axes,
    "ReduceSumSquare": _sum_over_axes,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Shape": _measure_shape,
    "Upsample": _resize,
}
