"""Q/DQ that a model brings along: the layers that have it, and the tensors that new layers find quantized."""

from __future__ import annotations

import onnx_ir as ir

from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.operands import (
    DEQUANTIZE,
    EIGHT_BITS,
    QUANTIZE,
    find_code_dtype,
    find_constant,
    find_operand,
)

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def explain_given(node: ir.Node) -> str:
    """Returns what of a layer comes quantized, so that it is kept as it is; empty if its weight is float.

    Args:
        node: Any node. A Gather, as of an embedding, comes quantized if its table does.
    """
    if node.op_type == "Gather":
        table = find_operand(node.inputs[0])
        return "its table is already quantized" if table is not None and table.is_weight else ""
    if node.op_type not in _LAYERS or any(value and value.is_initializer() for value in node.inputs[:2]):
        return ""
    found = [operand for operand in map(find_operand, node.inputs[:2]) if operand is not None]
    if len(found) == 2:
        return "it comes quantized"
    if not found:
        return ""
    return (
        "its weight is already quantized" if found[0].is_weight else "one of its inputs is already quantized"
    )


def find_given(value: ir.Value, form: CodeFormat = INT8) -> ir.Value | None:
    """Returns what a layer reads of a tensor that has a pair of its own with one scale; None if it has none.

    That is the tensor itself behind a DequantizeLinear, or the DequantizeLinear of another reader of it.
    """
    operand = find_operand(value)
    if operand is not None:
        return value if _has_one_scale(operand.dequantize, form) else None
    for quantize in value.consumers():
        if quantize.op_type == QUANTIZE and quantize.inputs[0] is value and _has_one_scale(quantize, form):
            for dequantize in quantize.outputs[0].consumers():
                if dequantize.op_type == DEQUANTIZE and _is_inverse(quantize, dequantize):
                    return dequantize.outputs[0]
    return None


def is_quantized_otherwise(value: ir.Value, form: CodeFormat = INT8) -> bool:
    """Returns whether an activation comes quantized in a way that layers of this format do not take."""
    operand = find_operand(value)
    return operand is not None and not operand.is_weight and not _has_one_scale(operand.dequantize, form)


def _has_one_scale(node: ir.Node, form: CodeFormat) -> bool:
    """Whether a Q or DQ node works with codes of the format, or UINT8 for INT8, and one constant scale."""
    scale, codes = find_constant(node, 1), find_code_dtype(node)
    is_right = codes in EIGHT_BITS if form is INT8 else codes is form.dtype
    return scale is not None and scale.size == 1 and is_right


def _is_inverse(quantize: ir.Node, dequantize: ir.Node) -> bool:
    found = set()
    for node in (quantize, dequantize):
        scale, zero = find_constant(node, 1), find_constant(node, 2)
        if scale is None or scale.size != 1:
            return False
        found.add((float(scale.reshape(())), 0 if zero is None else int(zero.reshape(()))))
    return len(found) == 1
