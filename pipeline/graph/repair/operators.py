"""The QOperator format of ONNX Runtime as Q/DQ pairs around the float operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_constant
from trtq.pipeline.graph.opset.spread import join_axes
from trtq.pipeline.graph.repair.change import Change

_FLOAT = ir.DataType.FLOAT
_FORMS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,), 3), "QLinearSigmoid": ("Sigmoid", (0,), 3),
    "QLinearAveragePool": ("AveragePool", (0,), 3), "QLinearLeakyRelu": ("LeakyRelu", (0,), 3),
    "QLinearSoftmax": ("Softmax", (0,), 3), "QLinearConcat": ("Concat", (), 0),
    "QLinearAdd": ("Add", (0, 3), 6), "QLinearMul": ("Mul", (0, 3), 6),
    "QLinearMatMul": ("MatMul", (0, 3), 6), "QLinearConv": ("Conv", (0, 3), 6), "QGemm": ("Gemm", (0, 3), 7),
}  # fmt: skip
"""The float operator, the places of the operands and that of the output's scale; Concat has any number."""
_BIASES = {"QLinearConv": 8, "QGemm": 6}
_ONE_AXIS_OPSET = 13
"""A QLinearSoftmax says of which opset its Softmax is; before this one all axes from `axis` on are one."""
_NOT_FLOAT = ("channels_last", "opset")  # attributes that the float operators do not have


def repair_operators(edit: GraphEditor) -> Iterator[Change]:
    """Replaces QLinear nodes by DequantizeLinear, the float operator and QuantizeLinear.

    The float operator keeps the node's name. ONNX defines the QLinear operators by just this; implementations
    may round a tie otherwise.
    """
    for node in list(edit.graph):
        if made := _convert(edit, node):
            yield Change("operator", str(node.name), f"Q/DQ pairs around {made}")
            edit.remove(node)


def _convert(edit: GraphEditor, node: ir.Node) -> str:
    """Puts the nodes that compute the same before the node; returns the operator's name, or nothing."""
    if node.op_type not in _FORMS or node.attributes.get_int("channels_last", 0) != 0:
        return ""
    op_type, places, last = _FORMS[node.op_type]
    inputs: list[ir.Value] = []
    if (place := _BIASES.get(node.op_type, len(node.inputs))) < len(node.inputs) and node.inputs[place]:
        bias = _compute_bias(node, place)
        if bias is None:
            return ""
        inputs.append(edit.add_constant(f"{node.name}_bias", bias))
    places = places or tuple(range(2, len(node.inputs), 3))
    inputs = [*(_dequantize(edit, node, place, _axis(node, op_type, place)) for place in places), *inputs]
    _write(
        edit, node, op_type, inputs, [value for value in node.inputs[last : last + 2] if value is not None]
    )
    return op_type


def _axis(node: ir.Node, op_type: str, place: int) -> int:
    """Returns along which axis an operand has scales, if it has several."""
    if op_type == "MatMul":
        return _rank(node.inputs[place]) - (1 if place else 2)
    if op_type == "Gemm" and place:
        return 0 if node.attributes.get_int("transB", 0) != 0 else 1
    return 0 if op_type == "Conv" and place else 1


def _dequantize(edit: GraphEditor, node: ir.Node, place: int, axis: int) -> ir.Value:
    """Returns the dequantized input whose codes, scale and zero point begin at this place."""
    codes, scale, zero = (*node.inputs[place : place + 3], None)[:3]
    assert codes is not None
    assert scale is not None
    per_channel = scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
    inputs = [codes, scale, *([] if zero is None else [zero])]
    name, attributes = f"{node.name}_DequantizeLinear_{place}", {"axis": axis} if per_channel else {}
    return edit.insert(
        DEQUANTIZE,
        inputs,
        attributes,
        like=codes,
        dtype=scale.dtype or _FLOAT,
        output=f"{name}_output",
        name=name,
        before=node,
    )


def _compute_bias(node: ir.Node, place: int) -> NDArray[np.float32] | None:
    """Returns the int32 bias as floats: its scale is the product of the operands' scales."""
    codes, first, second = (find_constant(node, i) for i in (place, 1, 4))
    if codes is None or first is None or second is None:
        return None
    scale = node.attributes.get_float("alpha", 1.0) * first.astype(np.float64) * second.astype(np.float64)
    return np.asarray(codes.astype(np.float64) * scale, np.float32)


def _write(
    edit: GraphEditor, node: ir.Node, op_type: str, inputs: list[ir.Value], params: list[ir.Value]
) -> None:
    """Writes the operator and the QuantizeLinear after it, and takes the node's place."""
    old, name = node.outputs[0], str(node.name)
    attributes = {key: item for key, item in node.attributes.items() if key not in _NOT_FLOAT}
    dtype = inputs[0].dtype or _FLOAT  # of the scales
    result = edit.insert(
        op_type, inputs, attributes, like=old, dtype=dtype, output=f"{name}_output", name=name, before=node
    )
    made = result.producer()
    assert made is not None
    made.name = name  # the node that has it goes
    if op_type == "Softmax" and node.attributes.get_int("opset", _ONE_AXIS_OPSET) < _ONE_AXIS_OPSET:
        result = join_axes(edit, made, node.attributes.get_int("axis", -1))
    if params:
        name = f"{name}_QuantizeLinear"
        given = [result, *params]
        result = edit.insert(QUANTIZE, given, like=old, output=f"{name}_output", name=name, before=node)
    edit.replace(old, result)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 2
