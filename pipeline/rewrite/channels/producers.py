"""The layer before a tensor whose weights can take the division of its channels, and what stands between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import scale_tensor
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import find_constant

KEEP_SCALE = ("Relu", "LeakyRelu", "PRelu")
"""Activations f with f(s x) = s f(x) for s > 0."""


@dataclass(frozen=True, slots=True)
class Divided:
    """A constant input of a node that takes the division of the channels of a tensor.

    Attributes:
        node: The node.
        place: Of the constant among its inputs.
        axis: Of the channels in the constant.
        is_divisor: Whether the node divides by it, so that it is multiplied.
    """

    node: ir.Node
    place: int
    axis: int = -1
    is_divisor: bool = False


@dataclass(frozen=True, slots=True)
class Producer:
    """What can divide the channels of a tensor.

    Attributes:
        constants: Those that are divided, of a Conv or Gemm the weight and the bias; the first has an axis
            of the channels.
        clips: The Clip nodes between them and the tensor, from the tensor back; their ends are constants.
    """

    constants: tuple[Divided, ...]
    clips: tuple[ir.Node, ...] = ()


def find_producer(source: ir.Value, readers: Sequence[ir.Node], layers: Collection[str]) -> Producer | None:
    """Returns the Conv or Gemm whose weights can take the division of a tensor; None if there is none.

    The tensor may have no readers but the given ones. Between may stand what keeps a scale (ReLU, LeakyReLU,
    PReLU), and a Clip with constant ends, as ReLU6 is: its ends are divided too. HardSwish, SiLU, GELU,
    Sigmoid and the like cannot be followed: they bend at fixed values, so that f(x / s) is no f(x) / s. The
    layer must be quantized itself: its scales for each output channel are divided then, and its codes stay.
    """
    users = {node for node, _ in source.uses()}
    if source.is_graph_output() or not users <= set(readers):
        return None
    node, clips = source.producer(), []
    while node is not None and (node.op_type in KEEP_SCALE or is_constant_clip(node)):
        if node.op_type == "Clip":
            clips.append(node)
        before = node.inputs[0]
        assert before is not None
        if before.is_graph_output() or len(before.uses()) != 1:
            return None
        node = before.producer()
    if node is None or node.name not in layers:
        return None
    same_kind = (node.op_type == "Conv") == (readers[0].op_type == "Conv")
    return Producer(divide_layer(node), tuple(clips)) if same_kind and _can_divide(node) else None


def _can_divide(node: ir.Node) -> bool:
    """Whether a quantized layer is a Conv or a plain Gemm of constants that nothing else reads."""
    if node.op_type not in ("Conv", "Gemm"):
        return False
    is_plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    constants = [value for value in node.inputs[1:] if value is not None]
    return is_plain and all(value.is_initializer() and len(value.uses()) == 1 for value in constants)


def divide_layer(node: ir.Node) -> tuple[Divided, ...]:
    """Returns the weight of a Conv, Gemm or MatMul, by its output channels, and the bias."""
    has_rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    weight = Divided(node, 1, 0 if has_rows else -1)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return (weight, Divided(node, 2)) if has_bias else (weight,)


def is_constant_clip(node: ir.Node) -> bool:
    """Whether a node is a Clip whose ends are known: attributes before opset 11, inputs since."""
    return node.op_type == "Clip" and all(
        value is None or value.is_initializer() for value in node.inputs[1:]
    )


def find_ends(clip: ir.Node) -> tuple[float, float]:
    """Returns where a Clip of constant ends begins and ends; infinities where it has no such end."""
    ends = [-np.inf, np.inf]
    for index, name in enumerate(("min", "max")):
        given = find_constant(clip, index + 1)
        other = clip.attributes.get_float(name, ends[index])
        ends[index] = other if given is None else float(given.reshape(()))
    return ends[0], ends[1]


def divide_outputs(edit: GraphEditor, producer: Producer, scale: NDArray[np.float64]) -> None:
    """Divides the output channels of a layer, and the ends of the Clips behind it.

    A Clip takes scalars, so one with divided ends becomes a ReLU (or a Max) and a Min with a constant for
    each channel: clip(x, 0, c) / s = min(relu(x / s), c / s), whatever the data. TensorRT-RTX puts both into
    the pointwise kernel behind the convolution, as it does with the Clip.

    Args:
        edit: Of the graph of the nodes, which is changed.
        producer: Of the tensor that is divided.
        scale: Shape (channels,), positive.
    """
    first = producer.constants[0]
    constant = first.node.inputs[first.place]
    assert constant is not None
    assert constant.dtype is not None
    is_map = first.node.op_type == "Conv"
    of_channels = scale.reshape(-1, *(1,) * (len(constant.shape or ()) - 2)) if is_map else scale
    for item in producer.constants:
        _divide(edit, item, scale)
    for clip in producer.clips:
        _divide_clip(edit, clip, of_channels, constant.dtype.numpy())


def _divide(edit: GraphEditor, item: Divided, scale: NDArray[np.float64]) -> None:
    value = item.node.inputs[item.place]
    assert value is not None
    assert value.const_value is not None
    rank = len(value.const_value.shape)
    shape = (-1, *(1,) * (rank - 1 - item.axis)) if item.axis >= 0 else (-1,)
    factor = (scale if item.is_divisor else 1 / scale).reshape(shape)
    name = f"{item.node.name}_bias" if item.place == 2 else value.name
    edit.set_constant(item.node, item.place, f"{name}_divided", scale_tensor(value.const_value, factor))


def _divide_clip(
    edit: GraphEditor, clip: ir.Node, scale: NDArray[np.float64], kind: np.dtype[np.generic]
) -> None:
    """Puts a Clip with an end for each channel in the place of one with an end for all."""
    value, result = clip.inputs[0], clip.outputs[0]
    assert value is not None
    for op_type, ends in _steps(find_ends(clip), scale, kind):
        name = f"{clip.name}_{op_type}"
        inputs = [value] if ends is None else [value, edit.add_constant(name, ends)]
        output = f"{result.name}_{op_type}"
        value = edit.insert(op_type, inputs, like=result, output=output, name=name, before=clip)
    edit.replace(result, value)
    edit.remove(clip)


def _steps(
    ends: tuple[float, float], scale: NDArray[np.float64], kind: np.dtype[np.generic]
) -> Iterator[tuple[str, NDArray[np.generic] | None]]:
    """Yields the nodes of a divided Clip, with their constants; no end lies beyond the largest number."""
    largest = float(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]
    low, high = ends
    if low == 0:
        yield "Relu", None
    elif low > -largest:
        yield "Max", np.clip(low / scale, -largest, largest).astype(kind)
    if high < largest:
        yield "Min", np.clip(high / scale, -largest, largest).astype(kind)
