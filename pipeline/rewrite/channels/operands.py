"""Weights of quantized layers by their input channels, and the biases that stand behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import QuantizedNode


def find_input(nodes: Iterable[ir.Node], name: str) -> ir.Value:
    """Returns the value of this name that one of the nodes reads."""
    return next(value for node in nodes for value in node.inputs if value is not None and value.name == name)


def has_input_channels(layer: QuantizedNode, node: ir.Node) -> bool:
    """Whether the weight can be scaled by the channels of the layer's activation.

    Those are axis 1 of a Conv's activation, and the last axis of a MatMul's or Gemm's: their weight must be
    the second operand, a single matrix, and the activation not transposed.
    """
    if layer.weight is None:
        return False
    if node.op_type == "Conv":
        return True
    place, _ = layer.weight
    is_plain = node.attributes.get_int("transA", 0) != 1 and node.attributes.get_float("alpha", 1.0) == 1.0
    return place == 1 and is_plain and len(_weight_shape(node)) == 2


def num_input_channels(node: ir.Node) -> int:
    """Returns how many channels the activation of a layer with input channels has."""
    shape = _weight_shape(node)
    return shape[1] * _groups(node) if node.op_type == "Conv" else shape[_input_axis(node)]


def by_input(vector: NDArray[Any], node: ir.Node) -> NDArray[Any]:
    """Returns a vector over the input channels in the shape that multiplies the layer's weight.

    Args:
        vector: float64, shape (input channels,).
        node: A layer with input channels.
    """
    if node.op_type != "Conv":
        return vector[None, :] if _input_axis(node) == 1 else vector[:, None]
    shape, groups = _weight_shape(node), _groups(node)
    of_group = vector.reshape(groups, shape[1])
    rows = np.repeat(of_group, shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return tuple(weight.const_value.shape.numpy())


def follow_output(weight: NDArray[Any], vector: NDArray[Any], node: ir.Node) -> NDArray[np.float64]:
    """Returns what the layer makes of an activation that is constant in each channel: (output channels,).

    Args:
        weight: float64, in the place of the layer's own.
        vector: float64, shape (input channels,).
        node: A layer with input channels; the border of a padded Conv is not looked at.
    """
    product = weight * by_input(vector, node)
    axes = tuple(range(1, weight.ndim)) if node.op_type == "Conv" else (_input_axis(node),)
    return np.asarray(product.sum(axis=axes), np.float64)


def is_padded(node: ir.Node) -> bool:
    """Whether a layer sees zeros around its activation."""
    if node.op_type != "Conv":
        return False
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()))


def find_padding(nodes: Sequence[ir.Node]) -> tuple[int, ...] | None:
    """Returns the zeros that all these layers see around their activation, in the order of `pads` of a Conv.

    Empty if none sees any; None if they see others, or as many as depends on the size of the activation.
    """
    found = {tuple(node.attributes.get_ints("pads", ())) if is_padded(node) else () for node in nodes}
    if len(found) != 1 or any(node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" for node in nodes):
        return None if any(map(is_padded, nodes)) else ()
    return found.pop()


def is_depthwise(node: ir.Node) -> bool:
    """Whether each output channel of a Conv reads one input channel: its scale is then no other's affair."""
    return node.op_type == "Conv" and read_constant(node.inputs[1]).shape[1] == 1


def add_to_bias(edit: GraphEditor, node: ir.Node, vector: NDArray[np.float64]) -> None:
    """Adds a constant to each output channel: in the bias, or in the Add behind the layer, or in a new one.

    Args:
        edit: Of the graph of the node.
        node: A Conv, or a Gemm or MatMul with output channels on the last axis.
        vector: Shape (output channels,).
    """
    weight = read_constant(node.inputs[1])
    if _has_plain_bias(node):
        old = read_constant(node.inputs[2]).astype(np.float64) if _input(node, 2) is not None else 0.0
        edit.set_constant(node, 2, f"{node.name}_bias", (old + vector).astype(weight.dtype))
        return
    shaped = vector.reshape(-1, *(1,) * (weight.ndim - 2)) if node.op_type == "Conv" else vector
    behind = _add_behind(node) if node.op_type != "Conv" else None
    if behind is not None:
        place = next(index for index in (0, 1) if _is_initializer(behind.inputs[index]))
        total = (read_constant(behind.inputs[place]).astype(np.float64) + shaped).astype(weight.dtype)
        edit.set_constant(behind, place, f"{behind.name}_bias", total)
        return
    output, bias = node.outputs[0], edit.add_constant(f"{node.name}_bias", shaped.astype(weight.dtype))
    name = f"{output.name}_without_bias"
    result = edit.insert(
        "Add", [output, bias], like=output, output=f"{output.name}_with_bias", name=f"{node.name}_bias_Add"
    )
    edit.replace(output, result, rename=name)


def _has_plain_bias(node: ir.Node) -> bool:
    """Whether a number can be added to the bias that a layer has, or could have: a Gemm may multiply it."""
    bias = _input(node, 2)
    if node.op_type not in ("Conv", "Gemm") or not (bias is None or bias.is_initializer()):
        return False
    return node.op_type == "Conv" or node.attributes.get_float("beta", 1.0) == 1.0


def _add_behind(node: ir.Node) -> ir.Node | None:
    """Returns the Add of a constant that is the only reader of a layer, and a bias: of one axis at most."""
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    if output.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        return None
    others = [value for value in users[0].inputs if value is not output]
    if len(others) != 1 or not _is_initializer(others[0]):
        return None
    return users[0] if read_constant(others[0]).ndim <= 1 else None


def _is_initializer(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1)


def _input_axis(node: ir.Node) -> int:
    return 1 if node.attributes.get_int("transB", 0) == 1 else 0
