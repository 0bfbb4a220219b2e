"""Models that already hold Q/DQ: which of their layers are quantized, and in what formats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from trtq.pipeline.graph.operands import (
    DEQUANTIZE,
    DYNAMIC,
    OPERATOR_FORMAT,
    QUANTIZE,
    Operand,
    find_operands,
    read_axis,
)
from trtq.pipeline.graph.placement import QUANTIZABLE, find_channel_axis


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A node with operands that are dequantized: both, or the weight alone.

    Attributes:
        scale_shape: The shape of its activation's scale; () is what TensorRT wants, None if it is computed.
        weight_axis: The axis of the weight's scales; None for one scale, if the operand is no weight, or if a
            Transpose or Reshape stands between.
        output_axis: The axis of the weight's output channels.
        activation: The format of its activation's codes; empty if that is float.
        weight: The format that its weight is stored in; of two activations that of the second.
    """

    name: str
    op_type: str
    scale_shape: tuple[int, ...] | None
    weight_axis: int | None
    output_axis: int | None
    activation: str = "int8"
    weight: str = "int8"

    @property
    def asked(self) -> str:
        """What it is asked to run in: "fp8", "int4-weights" beside floats, "int8 x int4" of a mixture."""
        if not self.activation:
            return f"{self.weight}-weights"
        return self.activation if self.activation == self.weight else f"{self.activation} x {self.weight}"


def is_quantized(model: ir.Model) -> bool:
    """Returns whether the model holds quantized operators of any kind, also in bodies."""
    kinds = (QUANTIZE, DEQUANTIZE, *DYNAMIC, *OPERATOR_FORMAT)
    return any(node.op_type in kinds for node in model.graph.all_nodes())


def find_quantized_layers(model: ir.Model) -> tuple[QuantizedLayer, ...]:
    """Returns the Conv, ConvTranspose, Gemm and MatMul nodes that are asked to run on codes."""
    return tuple(layer for node in model.graph if (layer := _layer(node)) is not None)


def _layer(node: ir.Node) -> QuantizedLayer | None:
    if node.op_type not in QUANTIZABLE:
        return None
    activation, weight = find_operands(node)
    if weight is None or weight.format is None or weight.stored_format is None:
        return None
    if activation is None and (not weight.is_weight or weight.is_looked_up):
        return None
    if activation is not None and activation.format is None:
        return None
    place = 1 if weight.value is node.inputs[1] else 0
    return QuantizedLayer(
        str(node.name),
        node.op_type,
        None if activation is None or activation.scale is None else activation.scale.shape,
        read_axis(weight.dequantize) if weight.is_weight and _keeps_axes(weight) else None,
        find_channel_axis(node, place, len(weight.codes.shape or ())),
        "" if activation is None else str(activation.format),
        str(weight.stored_format),
    )


def name_formats(layers: Iterable[QuantizedLayer], *more: str) -> str:
    """Returns what a model of these layers is called: the one format that they have, else "quantized"."""
    asked = {layer.asked for layer in layers} | set(more)
    formats = {name for name in asked if name.removesuffix("-weights") not in asked - {name}}
    (name, *others) = formats or {"quantized"}
    return "quantized" if others or " " in name else name


def _keeps_axes(operand: Operand) -> bool:
    return all(node.op_type in ("Cast", "Identity") for node in operand.path)
