"""Layers that could run in INT8 and are better left float: nothing is won there, or much is lost."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.models.tensors import open_values
from trtq.pipeline.graph.operands import list_sizes

_FEW_OUTPUTS = 2
_SMALL_SHARE = 0.005
"""Of all weights: a last layer of this size costs next to nothing in float."""
_WEIGHTED = frozenset({
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "GRU", "If", "LSTM",
    "Loop", "MatMul", "MatMulInteger", "MultiHeadAttention", "RNN", "Scan",
})  # fmt: skip
_MOST_UNEQUAL = 4.0
"""Between matrices that share a scale: the smallest has 5 bits left and an error of 4 %."""
_LONG_FILTER = 32
_CHANNELS_OF_FP8 = 16
_ELEMENTWISE = frozenset({
    "Add", "Cast", "Clip", "Div", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mul", "PRelu", "Relu",
    "Sigmoid", "Sub", "Tanh",
})  # fmt: skip
_INDEX_SOURCES = frozenset({"Range", "Shape", "Size", "NonZero", "ArgMax", "ArgMin", "ConstantOfShape"})
REARRANGING = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)
_MOST_STEPS = 16


def explain_float(node: ir.Node, weight: ir.Value, activation: ir.Value, axis: int | None) -> str:
    """Returns why a layer with a constant weight stays float; empty if INT8 is worth it.

    Args:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight, of known shape.
        activation: Its other input.
        axis: The axis of the weight's output channels.
    """
    if reason := explain_distorted(node, weight, activation, axis):
        return reason
    shape = list_sizes(weight)
    num_outputs = shape[axis] if axis is not None and node.op_type != "ConvTranspose" else 0
    if 0 < num_outputs <= _FEW_OUTPUTS:
        return f"few-outputs: kernels on codes take 16 output channels or more at once, it has {num_outputs}"
    if num_outputs and _is_last(node) and _is_small(weight):
        return "head: a small last layer, whose error reaches the outputs as it is"
    if node.op_type == "Conv" and _is_gate(node):
        return "gate: squeeze-and-excitation works on one position, where codes save nothing"
    return ""


def explain_distorted(node: ir.Node, weight: ir.Value, activation: ir.Value, _: int | None) -> str:
    """Returns why codes distort what a layer computes; empty if they do not. The same arguments.

    That is all that counts where a layer left float breaks a chain of codes, as in ONNX Runtime.
    """
    shape = list_sizes(weight)
    if carries_indices(activation):
        return "indices: its input is made of integers (ids, positions, masks), not of a signal"
    if is_filled(activation):
        return "filled: its input has one value everywhere, whatever the data (ConstantOfShape)"
    if node.op_type == "Conv" and _is_filter_bank(node, shape):
        return f"filter-bank: a transform of one channel by {max(shape[2:])} taps, which codes distort"
    return ""


def explain_narrow(node: ir.Node, weight: ir.Value) -> str:
    """Returns why a convolution stays float rather than FP8; empty if it need not.

    Model Optimizer leaves the same in FP16: so few channels fill no FP8 instruction, and a depthwise one has
    a single channel a group.
    """
    shape, groups = list_sizes(weight), node.attributes.get_int("group", 1)
    if node.op_type != "Conv" or not shape:
        return ""
    least = min(shape[0] // groups, shape[1])
    if least >= _CHANNELS_OF_FP8:
        return ""
    return f"narrow: FP8 kernels multiply {_CHANNELS_OF_FP8} channels at once, and a group of it has {least}"


def explain_unequal_matrices(weight: ir.Value) -> str:
    """Returns why a batch of matrices, such as experts, takes no common scale; empty if it does.

    Args:
        weight: A constant of three axes or more; the last two are those of a matrix.
    """
    if weight.const_value is None or len(list_sizes(weight)) < 3:
        return ""
    values = open_values(weight.const_value)
    highest, lowest = (find(axis=(-2, -1), initial=0.0) for find in (values.max, values.min))
    largest = np.maximum(highest, -lowest).astype(np.float32)
    used = largest[largest > 0]
    if not used.size or used.max() <= _MOST_UNEQUAL * used.min():
        return ""
    return (
        f"unequal matrices: its {largest.size} matrices reach from {used.min():.3g} to {used.max():.3g}, "
        f"and TensorRT takes one scale for all, which would wipe out the small ones"
    )


def carries_indices(value: ir.Value) -> bool:
    """Returns whether a float tensor holds indices or sizes: it comes from integers by rearranging alone."""
    sources = list(_sources(value))
    return bool(sources) and all(sources)


def is_filled(value: ir.Value) -> bool:
    """Returns whether a tensor comes from ConstantOfShape by rearranging alone, as first states do."""
    node = value.producer()
    for _ in range(_MOST_STEPS):
        if node is None or node.op_type == "ConstantOfShape":
            return node is not None
        source = node.inputs[0] if node.op_type in REARRANGING - {"Concat"} and node.inputs else None
        node = source.producer() if source is not None else None
    return False


def _sources(value: ir.Value, steps: int = _MOST_STEPS) -> Iterator[bool]:
    """Yields, for each origin of the value that is no constant, whether it holds indices."""
    if value.is_initializer():
        return
    node = value.producer()
    if value.dtype in _INTEGERS:
        yield True
    elif node is None or steps == 0:
        yield False
    elif node.op_type in _INDEX_SOURCES:
        yield node.op_type != "ConstantOfShape"
    elif node.op_type in REARRANGING:
        for source in node.inputs[: 1 if node.op_type != "Concat" else None]:
            if source is not None:
                yield from _sources(source, steps - 1)
    else:
        yield False


def _is_filter_bank(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether a convolution is a Fourier, wavelet or filter-bank transform of a signal."""
    taps = shape[2:]
    is_dense = node.attributes.get_int("group", 1) == 1
    return is_dense and shape[1] == 1 and max(taps) >= _LONG_FILTER and math.prod(taps) == max(taps)


def _is_gate(node: ir.Node) -> bool:
    """Whether a convolution at a single position makes factors for a feature map."""
    return _is_one_position(node.inputs[0]) and any(_scales_a_map(value) for value in node.outputs)


def _is_small(weight: ir.Value) -> bool:
    """Whether a weight is a tiny share of all those of its graph, so that its layer costs next to nothing."""
    graph = weight.graph
    if graph is None:
        return False
    size, every = math.prod(list_sizes(weight)), 0
    for value in graph.initializers.values():
        sizes = list_sizes(value)
        every += math.prod(sizes) if len(sizes) > 1 else 0
        if size < _SMALL_SHARE * every:  # whatever follows: not all are added up for each of many outputs
            return True
    return False


def _is_last(node: ir.Node) -> bool:
    """Whether no layer with weights, and no product of activations, comes after a node.

    A convolution to one channel does not count: the expected side of a box is one, of its distribution.
    """
    seen: set[ir.Node] = set()
    ahead = [node]
    while ahead:
        for user in ahead.pop().successors():
            if user.op_type in _WEIGHTED and not _is_weighted_sum(user):
                return False
            if user not in seen:
                seen.add(user)
                ahead.append(user)
    return True


def _is_weighted_sum(node: ir.Node) -> bool:
    """Whether a convolution adds its channels up to one."""
    return node.op_type == "Conv" and list_sizes(node.inputs[1])[:1] == (1,)


def _scales_a_map(value: ir.Value, steps: int = _MOST_STEPS) -> bool:
    for user in value.consumers():
        if user.op_type == "Mul" and any(_is_map(other) for other in user.inputs if other is not value):
            return True
        goes_on = user.op_type in _ELEMENTWISE or (user.op_type == "Conv" and user.inputs[0] is value)
        if goes_on and steps and any(_scales_a_map(output, steps - 1) for output in user.outputs):
            return True
    return False


def _is_one_position(value: ir.Value | None) -> bool:
    sizes = list_sizes(value)
    return len(sizes) > 2 and all(size == 1 for size in sizes[2:])


def _is_map(value: ir.Value | None) -> bool:
    sizes = list_sizes(value)
    return len(sizes) > 2 and any(size != 1 for size in sizes[2:])
