"""How large the tensors of a graph can get at most, given how large some of them do.

Interval arithmetic with intervals that are symmetric around 0. A product with constant weights is bounded by
the largest sum of magnitudes of an output channel (the infinity norm of the matrix).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import read_values

_Step = Callable[[Sequence[float]], float]
"""From the bounds of the inputs of a node to that of its outputs."""

_KEPT = (
    "Abs", "AveragePool", "Cast", "CastLike", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSwish", "Identity",
    "MaxPool", "Mish", "Neg", "ReduceMax", "ReduceMean", "ReduceMin", "Relu", "Reshape", "Slice",
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


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest magnitude of each float32 tensor of a graph, and which of them cannot be trusted to FP16.

    Attributes:
        magnitudes: By name; infinite where nothing is known.
        unproven: The tensors that may be larger than the limit.
    """

    magnitudes: Mapping[str, float]
    unproven: Collection[str]


@dataclass(slots=True)
class _Node:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    step: _Step


@dataclass(slots=True)
class MagnitudeBounds:
    """The bounds of one graph; its weights are read once.

    Attributes:
        constants: The largest magnitudes of the constants.
        nodes: In graph order.
    """

    constants: dict[str, float] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)

    def find(
        self, known: Mapping[str, float], limit: float, guesses: Mapping[str, float] | None = None
    ) -> Bounds:
        """Returns the bounds.

        Args:
            known: The largest magnitudes of some tensors. Of other inputs nothing is known.
            limit: A tensor whose bound is above it is unproven.
            guesses: What to go on with, after a tensor that is unproven.
        """
        found = dict(self.constants) | dict(known)
        unproven = []
        for node in self.nodes:
            given = [found.get(name, math.inf) if name else 0.0 for name in node.inputs]
            with np.errstate(over="ignore", invalid="ignore"):
                bound = node.step(given)
            bound = math.inf if math.isnan(bound) else bound
            for name in node.outputs:
                if name in known:
                    continue
                if bound > limit:
                    unproven.append(name)
                found[name] = min(bound, guesses.get(name, math.inf)) if guesses and bound > limit else bound
        return Bounds(found, unproven)


def compile_bounds(model: ir.Model) -> MagnitudeBounds:
    """Returns the bounds of a graph; what is in bodies is not looked at."""
    constants = {
        str(value.name): _measure(value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point()
    }
    nodes = []
    for node in model.graph:
        outputs = tuple(
            str(value.name) for value in node.outputs if value.name and value.dtype is ir.DataType.FLOAT
        )
        if outputs:
            inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
            nodes.append(_Node(inputs, outputs, _find_step(node)))
    return MagnitudeBounds(constants, nodes)


def _measure(tensor: ir.TensorProtocol) -> float:
    """Returns the largest finite magnitude: FP16 has infinities."""
    magnitudes = np.abs(read_values(tensor))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))


def _find_step(node: ir.Node) -> _Step:
    """Returns what bounds the outputs of a node; infinity for what is not known here."""
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
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


_SIMPLE: Mapping[str, _Step] = {
    "Add": lambda given: given[0] + given[1],
    "Sub": lambda given: given[0] + given[1],
    "Mul": lambda given: given[0] * given[1],
    "Sum": lambda given: sum(given),
    "Sqrt": lambda given: math.sqrt(given[0]),
    "Exp": _exponential,
    "Log": _logarithm,
    "Softplus": lambda given: given[0] + math.log(2),
    "Elu": lambda given: max(given[0], 1.0),
    "Ceil": lambda given: given[0] + 1,
    "Floor": lambda given: given[0] + 1,
    "Round": lambda given: given[0] + 0.5,
    "PRelu": lambda given: given[0] * max(given[1], 1.0),
    "DequantizeLinear": lambda given: 255 * given[1],
}


def _constant(node: ir.Node, place: int) -> NDArray[np.float64] | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return read_values(value.const_value).astype(np.float64)


def _sum_magnitudes(weight: NDArray[np.float64], axes: tuple[int, ...]) -> float:
    return float(np.abs(weight).sum(axis=axes).max(initial=0.0))


def _linear(node: ir.Node) -> _Step:
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


def _matmul(node: ir.Node) -> _Step:
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


def _divide(node: ir.Node) -> _Step:
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
    is_square = square.inputs[1] is divided or (
        square.op_type == "Pow" and (exponent := _constant(square, 1)) is not None and (exponent == 2).all()
    )
    return _size(mean.inputs[0], _find_axes(mean)) if is_square else None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _power(node: ir.Node) -> _Step:
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


def _clip(node: ir.Node) -> _Step:
    low, high = _find_end(node, 1, "min"), _find_end(node, 2, "max")
    if low is None or high is None:
        return lambda given: max(given[0], abs(low or 0.0), abs(high or 0.0))
    widest, outside = max(abs(low), abs(high)), max(low, -high, 0.0)
    return lambda given: min(max(given[0], outside), widest)


def _find_end(node: ir.Node, place: int, name: str) -> float | None:
    constant = _constant(node, place)
    return node.attributes.get_float(name) if constant is None else float(constant.reshape(-1)[0])


def _leak(node: ir.Node) -> _Step:
    factor = max(1.0, abs(node.attributes.get_float("alpha", 0.01) or 0.0))
    return lambda given: factor * given[0]


def _pad(node: ir.Node) -> _Step:
    is_constant = node.attributes.get_string("mode", "constant") == "constant"
    return lambda given: max(given[0], given[2] if is_constant and len(given) > 2 else 0.0)


def _resize(node: ir.Node) -> _Step:
    """Bounds a Resize; the weights of a cubic kernel sum up to less than 2 along each axis."""
    is_cubic = node.attributes.get_string("mode", "nearest") == "cubic"
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


def _sum_over_axes(node: ir.Node) -> _Step:
    size = _size(node.inputs[0], _find_axes(node))
    count = math.inf if size is None else float(size)
    powers: Mapping[str, _Step] = {
        "ReduceSum": lambda given: given[0] * count,
        "ReduceL1": lambda given: given[0] * count,
        "ReduceL2": lambda given: given[0] * math.sqrt(count),
        "ReduceSumSquare": lambda given: given[0] * given[0] * count,
    }
    return powers[node.op_type]


def _cumulate(node: ir.Node) -> _Step:
    count = _size(node.inputs[0], None)
    return lambda given: given[0] * (math.inf if count is None else count)


def _batch_norm(node: ir.Node) -> _Step:
    constants = [_constant(node, place) for place in range(1, 5)]
    if any(item is None for item in constants):
        return lambda given: math.inf
    scale, bias, mean, var = (np.asarray(item) for item in constants)
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    gain = np.abs(scale) / np.sqrt(np.maximum(var + epsilon, 1e-38))
    return lambda given: float(((given[0] + np.abs(mean)) * gain + np.abs(bias)).max(initial=0.0))


def _normalize(node: ir.Node) -> _Step:
    """Bounds what is divided by its own deviation: of n values none is above the root of n."""
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    first = node.attributes.get_int("axis", -1) if node.op_type in _WITH_AXIS else 1
    size = _size(value, range(rank)[first:]) if rank and first is not None else None
    count = math.inf if size is None else math.sqrt(size)
    return lambda given: count * (given[1] if len(given) > 1 else 1.0) + (given[2] if len(given) > 2 else 0.0)


_WITH_AXIS = ("LayerNormalization", "RMSNormalization")
_MAKERS: Mapping[str, Callable[[ir.Node], _Step]] = {
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _linear,
    "ConvTranspose": _linear,
    "CumSum": _cumulate,
    "Div": _divide,
    "Gemm": _linear,
    "GroupNormalization": _normalize,
    "InstanceNormalization": _normalize,
    "LayerNormalization": _normalize,
    "LeakyRelu": _leak,
    "MatMul": _matmul,
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
