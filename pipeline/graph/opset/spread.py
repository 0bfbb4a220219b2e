"""Operators that spread an operand, or join axes, otherwise than before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset.moved import name_of
from trtq.pipeline.graph.opset.refit import CannotConvertError, Rule

_OF_TWO = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


def _align(edit: GraphEditor, node: ir.Node) -> None:
    """The second operand lay along `axis` of the first; since opset 7 it lies along the last axes."""
    broadcast, axis = (node.attributes.pop(name, None) for name in ("broadcast", "axis"))
    if axis is not None and broadcast is not None and broadcast.as_int() != 0:
        _append_ones(edit, node, axis.as_int())


def _align_slope(edit: GraphEditor, node: ir.Node) -> None:
    """The slopes of a PRelu lay along the channels."""
    slope = node.inputs[1]
    if slope is not None and slope.shape is not None and len(slope.shape) == 1 and slope.shape[0] != 1:
        _append_ones(edit, node, 1)


def _append_ones(edit: GraphEditor, node: ir.Node, axis: int) -> None:
    """Gives the second operand dims of 1, so that it lies along the axes of the first from this one on."""
    first, second = node.inputs[:2]
    if first is None or second is None or first.shape is None or second.shape is None:
        raise CannotConvertError(f"its operands lie along axis {axis}, and their ranks are unknown")
    rank, own = len(first.shape), len(second.shape)
    missing = rank - own - (axis % rank if rank else 0)
    if missing < 0:
        raise CannotConvertError(f"an operand of rank {own} does not lie along axis {axis} of rank {rank}")
    if not missing:
        return
    name, axes = f"{name_of(node)}_aligned", list(range(own, own + missing))
    if second.const_value is not None:
        array = second.const_value.numpy()
        edit.set_constant(node, 1, name, array.reshape(*array.shape, *[1] * missing))
        return
    aligned = edit.insert("Unsqueeze", [second], {"axes": axes}, like=second, output=name, before=node)
    aligned.shape = ir.Shape([*second.shape, *[1] * missing])
    node.replace_input_with(1, aligned)


def _flatten(edit: GraphEditor, node: ir.Node) -> None:
    """All axes from `axis` on counted as one; since opset 13 `axis` alone counts."""
    join_axes(edit, node, node.attributes.get_int("axis", 1))


def join_axes(edit: GraphEditor, node: ir.Node, axis: int) -> ir.Value:
    """Lets a softmax of one axis take all axes from this one on for one; returns the result.

    Args:
        edit: Of the graph of the node.
        node: A Softmax, LogSoftmax or Hardmax of opset 13 or newer.
        axis: The first of the axes.
    """
    value, result = node.inputs[0], node.outputs[0]
    assert value is not None
    rank = None if value.shape is None else len(value.shape)
    axis = axis + rank if rank is not None and axis < 0 else axis
    is_alone = axis == -1 if value.shape is None else all(dim == 1 for dim in value.shape[axis + 1 :])
    node.attributes["axis"] = ir.AttrInt64("axis", axis if is_alone else -1)
    if is_alone:
        return result
    name = str(result.name)
    sizes = edit.insert(
        "Shape", [value], like=value, dtype=ir.DataType.INT64, output=f"{name}_sizes", before=node
    )
    sizes.shape = None if rank is None else ir.Shape([rank])
    flat = edit.insert("Flatten", [value], {"axis": axis}, like=value, output=f"{name}_input", before=node)
    node.replace_input_with(0, flat)
    whole = edit.insert("Reshape", [result, sizes], like=result, output=f"{name}_whole")
    edit.replace(result, whole, rename=f"{name}_flat")
    flat.shape = result.shape = None
    return whole


def _spread_groups(edit: GraphEditor, node: ir.Node) -> None:
    """GroupNormalization had a factor for each group; since opset 21 it has one for each channel."""
    groups, value = node.attributes["num_groups"].as_int(), node.inputs[0]
    channels = value.shape[1] if value is not None and value.shape is not None else None
    for place, word in ((1, "scale"), (2, "bias")):
        factors = node.inputs[place]
        tensor = None if factors is None else factors.const_value
        if tensor is None or not isinstance(channels, int) or channels % groups:
            raise CannotConvertError(f"its {word} for each group cannot be spread over the channels")
        spread = np.repeat(tensor.numpy(), channels // groups)
        edit.set_constant(node, place, f"{name_of(node)}_{word}", spread)


SPREAD: dict[tuple[str, int], Rule] = {
    **{(op_type, 7): _align for op_type in _OF_TWO},
    ("PRelu", 7): _align_slope,
    **{(op_type, 13): _flatten for op_type in ("Hardmax", "LogSoftmax", "Softmax")},
    ("GroupNormalization", 21): _spread_groups,
}
