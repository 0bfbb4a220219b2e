"""Weights of quantized layers by their input channels, and the biases that stand behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.fold import Additions
from trtq.pipeline.graph.placement import QuantizedNode

_ROW_OF_GEMM = {True: 1, False: 0}


def constant(value: ir.Value | None) -> NDArray[Any]:
    """Returns the array of an initializer."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


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
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    plain = "alpha" not in node.attributes or node.attributes["alpha"].as_float() == 1.0
    return place == 1 and not transposed and plain and constant(node.inputs[1]).ndim == 2


def num_input_channels(node: ir.Node) -> int:
    """Returns how many channels the activation of a layer with input channels has."""
    weight = constant(node.inputs[1])
    if node.op_type == "Conv":
        return int(weight.shape[1]) * _groups(node)
    return int(weight.shape[_input_axis(node)])


def by_input(vector: NDArray[Any], node: ir.Node) -> NDArray[Any]:
    """Returns a vector over the input channels in the shape that multiplies the layer's weight.

    Args:
        vector: float64, shape (input channels,).
        node: A layer with input channels.
    """
    weight = constant(node.inputs[1])
    if node.op_type != "Conv":
        return vector[None, :] if _input_axis(node) == 1 else vector[:, None]
    groups = _groups(node)
    of_group = vector.reshape(groups, weight.shape[1])
    rows = np.repeat(of_group, weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))


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
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    return automatic not in ("NOTSET", "VALID") or any(pads)


def is_depthwise(node: ir.Node) -> bool:
    """Whether each output channel of a Conv reads one input channel: its scale is then no other's affair."""
    return node.op_type == "Conv" and constant(node.inputs[1]).shape[1] == 1


def add_to_bias(additions: Additions, node: ir.Node, vector: NDArray[np.float64]) -> None:
    """Adds a constant to each output channel: in the bias, or in the Add behind the layer, or in a new one.

    Args:
        additions: To the graph of the node, which is changed.
        node: A Conv, or a Gemm or MatMul with output channels on the last axis.
        vector: Shape (output channels,).
    """
    kind = constant(node.inputs[1]).dtype
    if node.op_type == "Conv" and _is_constant(node, 2):
        old = constant(node.inputs[2]).astype(np.float64) if _input(node, 2) is not None else 0.0
        _set_bias(additions, node, (old + vector).astype(kind))
        return
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    if node.op_type == "Gemm" and _is_constant(node, 2) and (beta == 1.0 or _input(node, 2) is None):
        old = constant(node.inputs[2]).astype(np.float64) if _input(node, 2) is not None else 0.0
        _set_bias(additions, node, (old + vector).astype(kind))
        return
    shaped = (
        vector if node.op_type != "Conv" else vector.reshape(-1, *(1,) * (constant(node.inputs[1]).ndim - 2))
    )
    behind = _add_behind(node)
    if behind is not None and node.op_type != "Conv":
        place = next(index for index in (0, 1) if _is_initializer(behind.inputs[index]))
        total = constant(behind.inputs[place]).astype(np.float64) + shaped
        behind.replace_input_with(place, additions.constant(f"{behind.name}_bias", total.astype(kind)))
        return
    _insert_add(additions, node, shaped.astype(kind))


def _insert_add(additions: Additions, node: ir.Node, constant_: NDArray[Any]) -> None:
    output = node.outputs[0]
    bias = additions.constant(f"{node.name}_bias", constant_)
    add = ir.node("Add", [output, bias], name=f"{node.name}_bias_Add")
    result = add.outputs[0]
    result.type, result.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    add.replace_input_with(0, output)
    result.name, output.name = output.name, additions.name(f"{output.name}_without_bias")
    additions.graph.insert_after(node, [add])


def _set_bias(additions: Additions, node: ir.Node, bias: NDArray[Any]) -> None:
    node.resize_inputs(3)
    node.replace_input_with(2, additions.constant(f"{node.name}_bias", bias))


def _add_behind(node: ir.Node) -> ir.Node | None:
    """Returns the Add of a constant that is the only reader of a layer, and a bias: of one axis at most."""
    output = node.outputs[0]
    users = [user for user, _ in output.uses()]
    if output.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        return None
    others = [value for value in users[0].inputs if value is not output]
    if len(others) != 1 or not _is_initializer(others[0]):
        return None
    return users[0] if constant(others[0]).ndim <= 1 else None


def _is_initializer(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _is_constant(node: ir.Node, index: int) -> bool:
    value = _input(node, index)
    return value is None or value.is_initializer()


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _input_axis(node: ir.Node) -> int:
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    return _ROW_OF_GEMM[transposed]
