"""Models that already hold Q/DQ: which of their layers are quantized."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtq.pipeline.graph.operands import (
    DEQUANTIZE,
    EIGHT_BITS,
    OPERATOR_FORMAT,
    QUANTIZE,
    Operand,
    find_operands,
    read_axis,
)
from trtq.pipeline.graph.placement import QUANTIZABLE, find_channel_axis


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A node whose operands are both dequantized from 8 bits.

    Attributes:
        scale_shape: The shape of its activation's scale; () is what TensorRT wants, None if it is computed.
        weight_axis: The axis of the weight's scales; None for one scale, if the operand is no weight, or if a
            Transpose or Reshape stands between.
        output_axis: The axis of the weight's output channels.
    """

    name: str
    op_type: str
    scale_shape: tuple[int, ...] | None
    weight_axis: int | None
    output_axis: int | None


def is_quantized(model: ir.Model) -> bool:
    """Returns whether the model holds quantized operators of any kind, also in bodies."""
    kinds = (QUANTIZE, DEQUANTIZE, *OPERATOR_FORMAT)
    return any(node.op_type in kinds for node in model.graph.all_nodes())


def find_quantized_layers(model: ir.Model) -> tuple[QuantizedLayer, ...]:
    """Returns the Conv, ConvTranspose, Gemm and MatMul nodes that a backend can run in INT8."""
    return tuple(layer for node in model.graph if (layer := _layer(node)) is not None)


def _layer(node: ir.Node) -> QuantizedLayer | None:
    if node.op_type not in QUANTIZABLE:
        return None
    activation, weight = find_operands(node)
    if activation is None or weight is None:
        return None
    place = 1 if weight.value is node.inputs[1] else 0
    four_bits = (ir.DataType.INT4,) if node.op_type in ("Gemm", "MatMul") else ()
    if activation.dtype not in (*EIGHT_BITS, None) or weight.dtype not in (*EIGHT_BITS, *four_bits, None):
        return None
    return QuantizedLayer(
        str(node.name),
        node.op_type,
        None if activation.scale is None else activation.scale.shape,
        read_axis(weight.dequantize) if weight.is_weight and _keeps_axes(weight) else None,
        find_channel_axis(node, place, len(weight.codes.shape or ())),
    )


def _keeps_axes(operand: Operand) -> bool:
    return all(node.op_type in ("Cast", "Identity") for node in operand.path)
