"""From a float graph, its placement and its ranges to a model with explicit Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Ranges
from trtq.models.tensors import require_finite
from trtq.pipeline.graph.fold import add_initializer, unique_name
from trtq.pipeline.graph.placement import Placement, QuantizedWeight

QMAX = 127
_SMALLEST_SCALE = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
_LARGEST_SCALE = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


@dataclass(frozen=True, slots=True)
class QParams:
    """How a tensor is quantized: symmetric int8, so the zero point is 0.

    Attributes:
        scale: Of the dtype that the dequantized values have; shape () for one scale, (C,) along `axis`.
        axis: The axis of the scales; None for one scale.
    """

    scale: NDArray[Any]
    axis: int | None = None

    @property
    def zero_point(self) -> NDArray[np.int8]:
        """Zeros of the scale's shape."""
        return np.zeros(self.scale.shape, np.int8)


def activation_qparams(amax: float, dtype: str) -> QParams:
    """Returns one scale for a tensor: a 0-d array (with shape (1,) TensorRT runs a Conv in float).

    Args:
        amax: The magnitude that the code 127 stands for; positive.
        dtype: "float32", "float16" or "bfloat16"; a scale that is too large for it is a float32.
    """
    return QParams(_as_scale(np.float64(amax) / QMAX, dtype))


def weight_qparams(weight: NDArray[Any], axis: int | None, dtype: str) -> QParams:
    """Returns scales that hold the largest magnitude of each channel.

    Args:
        weight: Any float dtype and shape.
        axis: The output channels; None for one scale for all.
        dtype: The dtype of the scales.
    """
    magnitudes = np.abs(weight.astype(np.float64))
    if axis is None:
        amax = magnitudes.max(initial=0.0)
    else:
        amax = magnitudes.max(axis=tuple(i for i in range(weight.ndim) if i != axis), initial=0.0)
    return QParams(_as_scale(np.asarray(amax) / QMAX, dtype), axis)


def quantize_array(values: NDArray[Any], qparams: QParams) -> NDArray[np.int8]:
    """Returns the codes: round half to even, clipped to -127..127, as ONNX and TensorRT define them."""
    scale = qparams.scale.astype(np.float64)
    if qparams.axis is not None:
        scale = scale.reshape([-1 if i == qparams.axis else 1 for i in range(values.ndim)])
    codes = np.rint(values.astype(np.float64) / scale)
    return np.clip(codes, -QMAX, QMAX).astype(np.int8)


def quantize(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the model with Q/DQ pairs at the placed inputs and int8 weights behind DequantizeLinear.

    A tensor with several quantized readers gets one pair; its other readers keep the float. Scales have the
    dtype of their tensor.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: The amax of every placed activation.
        scale_dtype: The dtype that the scales must survive: "float16" if the rest will be cast to FP16. The
            values are rounded up to it before the weights are quantized with them.

    Raises:
        UsageError: The ranges lack a tensor.
        ModelError: A weight is not finite.
    """
    result = model.clone()
    nodes = {node.name: node for node in result.graph}
    activations = {
        name: _quantized_activation(result, name, ranges.amax(name), scale_dtype)
        for name in placement.activations
    }
    weights: dict[QuantizedWeight, ir.Value] = {}
    for placed in placement.quantized:
        node = nodes[placed.name]
        for index, tensor in placed.activations:
            node.replace_input_with(index, activations[tensor])
        if placed.weight is not None:
            index, weight = placed.weight
            if weight not in weights:
                weights[weight] = _quantized_weight(result, weight, scale_dtype)
            node.replace_input_with(index, weights[weight])
    _drop_unused(result)
    return result


def _as_scale(scale: NDArray[np.float64] | np.float64, dtype: str) -> NDArray[Any]:
    """Returns positive scales, rounded up so that nothing is clipped."""
    wanted = np.maximum(np.asarray(scale, np.float64), _SMALLEST_SCALE[dtype])
    if wanted.max(initial=0.0) > _LARGEST_SCALE[dtype]:
        dtype = "float32"
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rounded = wanted.astype(kind)
    with np.errstate(over="ignore"):  # above the largest number, which is then not taken
        above = np.nextafter(rounded, np.asarray(np.inf, kind))
    return np.asarray(np.where(rounded.astype(np.float64) < wanted, above, rounded).astype(kind))


def _quantized_activation(model: ir.Model, name: str, amax: float, scale_dtype: str) -> ir.Value:
    source = _find(model, name)
    qparams = _in_dtype_of(source, activation_qparams(amax, scale_dtype))
    scale = add_initializer(model.graph, f"{name}_scale", qparams.scale)
    zero = add_initializer(model.graph, f"{name}_zero_point", qparams.zero_point)
    quantize_node = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}_QuantizeLinear")
    codes = quantize_node.outputs[0]
    codes.name = unique_name(model.graph, f"{name}_quantized")
    codes.type, codes.shape = ir.TensorType(ir.DataType.INT8), source.shape
    dequantize_node = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{name}_DequantizeLinear")
    result = dequantize_node.outputs[0]
    result.name = unique_name(model.graph, f"{name}_dequantized")
    result.type, result.shape = source.type, source.shape
    producer = source.producer()
    if producer is not None:
        model.graph.insert_after(producer, [quantize_node, dequantize_node])
    else:
        model.graph.insert_before(model.graph[0], [quantize_node, dequantize_node])
    return result


def _quantized_weight(model: ir.Model, weight: QuantizedWeight, scale_dtype: str) -> ir.Value:
    source = model.graph.initializers[weight.tensor]
    assert source.const_value is not None
    values = source.const_value.numpy()
    require_finite(values, weight.tensor)
    qparams = _in_dtype_of(source, weight_qparams(values, weight.axis, scale_dtype))
    inputs = [
        add_initializer(model.graph, f"{weight.tensor}_quantized", quantize_array(values, qparams)),
        add_initializer(model.graph, f"{weight.tensor}_scale", qparams.scale),
        add_initializer(model.graph, f"{weight.tensor}_zero_point", qparams.zero_point),
    ]
    attributes: Mapping[str, int] = {} if weight.axis is None else {"axis": weight.axis}
    name = unique_name(model.graph, f"{weight.tensor}_dequantized")
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}_DequantizeLinear")
    result = node.outputs[0]
    result.name, result.type, result.shape = name, source.type, source.shape
    model.graph.insert_before(model.graph[0], [node])
    return result


def _in_dtype_of(source: ir.Value, qparams: QParams) -> QParams:
    assert source.dtype is not None
    return QParams(_as_scale(qparams.scale, source.dtype.numpy().name), qparams.axis)


def _find(model: ir.Model, name: str) -> ir.Value:
    candidates = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    return next(value for value in candidates if value.name == name)


def _drop_unused(model: ir.Model) -> None:
    """Removes the float weights that are quantized now."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
