"""Models that already hold Q/DQ: which of their layers are quantized, and whether TensorRT takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtq.errors import ModelError
from trtq.pipeline.graph.placement import QUANTIZABLE, channel_axis

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_OPERATOR_FORMAT = frozenset({
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
    "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QGemm",
})  # fmt: skip
_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)


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
    """Returns whether the model holds quantized operators of any kind."""
    return any(node.op_type in (_Q, _DQ) or node.op_type in _OPERATOR_FORMAT for node in model.graph)


def quantized_layers(model: ir.Model) -> tuple[QuantizedLayer, ...]:
    """Returns the Conv, ConvTranspose, Gemm and MatMul nodes that a backend can run in INT8."""
    return tuple(layer for node in model.graph if (layer := _layer(node)) is not None)


def refuse_what_tensorrt_refuses(model: ir.Model) -> None:
    """Checks a model that was quantized elsewhere.

    Raises:
        ModelError: It has a non-zero zero point, uint8 codes, an int32 DequantizeLinear (a quantized bias), a
            scale that is not positive and finite, or operators of the QOperator format; the node is named.
    """
    for node in model.graph:
        if node.op_type in _OPERATOR_FORMAT:
            raise ModelError(
                f"node {node.name!r} is {node.op_type}; TensorRT takes Q/DQ pairs only: "
                f"quantize again with QuantFormat.QDQ, or give trtq the float model"
            )
        if node.op_type in (_Q, _DQ):
            _check_codes(node)
            _check_scale(node)


def _check_codes(node: ir.Node) -> None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    codes = node.inputs[0] if node.op_type == _DQ else zero
    if node.op_type == _DQ and codes is not None and codes.dtype is ir.DataType.INT32:
        raise ModelError(
            f"node {node.name!r} dequantizes int32 (a quantized bias), which TensorRT refuses; "
            f"quantize again with extra_options={{'QuantizeBias': False}}"
        )
    points = zero.const_value.numpy() if zero is not None and zero.const_value is not None else np.zeros(1)
    if np.any(points != 0):
        raise ModelError(
            f"node {node.name!r} has the zero point {points[points != 0][0]}; TensorRT "
            f"takes symmetric quantization only: quantize again with symmetric activations and weights"
        )
    if codes is not None and codes.dtype is ir.DataType.UINT8:
        raise ModelError(
            f"node {node.name!r} works on uint8, of which TensorRT reads the upper half wrong; "
            f"quantize again with QInt8"
        )


def _check_scale(node: ir.Node) -> None:
    scale = node.inputs[1]
    if scale is None or scale.const_value is None:
        return
    values = scale.const_value.numpy().astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        bad = values[~(np.isfinite(values) & (values > 0))].reshape(-1)[0]
        raise ModelError(f"node {node.name!r} has the scale {bad:g}; scales must be positive and finite")


def _layer(node: ir.Node) -> QuantizedLayer | None:
    if node.op_type not in QUANTIZABLE:
        return None
    sources = [_dequantized_from(value) for value in node.inputs[:2]]
    if len(sources) < 2 or any(source is None for source in sources):
        return None
    constant = [source is not None and _is_weight(source) for source in sources]
    place = 0 if constant == [True, False] else 1
    activation, operand = sources[1 - place], sources[place]
    assert activation is not None
    assert operand is not None
    scale = activation.inputs[1]
    known = scale is not None and scale.const_value is not None
    scale_shape = tuple(scale.const_value.shape.numpy()) if known else None  # type: ignore[union-attr]
    return QuantizedLayer(
        str(node.name),
        node.op_type,
        scale_shape,
        _axis(operand) if constant[place] and not _is_rearranged(node.inputs[place]) else None,
        channel_axis(node, place, _rank(operand)),
    )


def _dequantized_from(value: ir.Value | None) -> ir.Node | None:
    """Returns the DequantizeLinear on 8 bits that the value comes from, through casts and transposes."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Transpose", "Reshape", "Identity"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != _DQ or node.inputs[0] is None:
        return None
    return node if node.inputs[0].dtype in (*_INTEGERS, None) else None


def _is_rearranged(value: ir.Value | None) -> bool:
    """Whether the axes of the value may be others than those of the DequantizeLinear that it comes from."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Identity"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type != _DQ


def _is_weight(dequantize: ir.Node) -> bool:
    codes = dequantize.inputs[0]
    quantize = codes.producer() if codes is not None else None
    source = quantize.inputs[0] if quantize is not None else codes
    return source is not None and source.is_initializer()


def _axis(dequantize: ir.Node) -> int | None:
    scale = dequantize.inputs[1]
    if scale is None or scale.const_value is None or scale.const_value.size <= 1:
        return None
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    return axis if axis >= 0 else axis + _rank(dequantize)


def _rank(dequantize: ir.Node) -> int:
    codes = dequantize.inputs[0]
    return len(codes.shape) if codes is not None and codes.shape is not None else 0
