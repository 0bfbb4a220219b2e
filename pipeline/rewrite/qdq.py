"""From a float graph, its placement and its ranges to a model with explicit Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX, Ranges
from trtq.models.tensors import require_finite
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.placement import Placement, QuantizedWeight
from trtq.pipeline.rewrite.channels.operands import add_to_bias, follow_output, has_input_channels
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.rounding import hash_weight, round_to, unpack

_SMALLEST_SCALE = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
_CLIPS = tuple(np.linspace(1.0, 0.5, 26).tolist())
"""Shares of the largest weight that are tried as the ends of the codes."""
_LARGEST_SCALE = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


@dataclass(frozen=True, slots=True)
class QParams:
    """How a tensor is quantized to int8: symmetric, unless the ranges of activations say otherwise.

    Attributes:
        scale: Of the dtype that the dequantized values have; shape () for one scale, (C,) along `axis`.
        axis: The axis of the scales; None for one scale.
        zero: The code of 0.0; that of weights is 0.
    """

    scale: NDArray[Any]
    axis: int | None = None
    zero: int = 0

    @property
    def zero_point(self) -> NDArray[np.int8]:
        """The code of 0.0, in the shape of the scale."""
        return np.full(self.scale.shape, self.zero, np.int8)


def choose_activation_qparams(amax: float, dtype: str) -> QParams:
    """Returns one scale for a tensor: a 0-d array (with shape (1,) TensorRT runs a Conv in float).

    Args:
        amax: The magnitude that the code 127 stands for; positive.
        dtype: "float32", "float16" or "bfloat16"; a scale that is too large for it is a float32.
    """
    return QParams(_as_scale(np.float64(amax) / QMAX, dtype))


def choose_asymmetric_qparams(ends: tuple[float, float], dtype: str) -> QParams:
    """Returns the scale and the zero point with which the codes -128 and 127 stand for the ends.

    ONNX and Jacob et al. (arXiv 1712.05877, section 2.1): the zero point is rounded, so that 0.0 is exact.

    Args:
        ends: The smallest and the largest value; 0 lies between them, and they differ.
        dtype: As for `choose_activation_qparams`.
    """
    low, high = ends
    scale = _as_scale((np.float64(high) - np.float64(low)) / 255, dtype)
    return QParams(scale, zero=int(np.clip(np.rint(-128 - low / float(scale)), -128, 127)))


def choose_weight_qparams(weight: NDArray[Any], axis: int | None, dtype: str) -> QParams:
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


def choose_weight_qparams_mse(weight: NDArray[Any], axis: int | None, dtype: str) -> QParams:
    """Returns scales of the least squared error of each channel, of 26 clips down to half its largest weight.

    Clipping a few large weights leaves finer steps for all others (OMSE, arXiv 1902.06822, section 3.2).

    Args:
        weight: Any float dtype and shape.
        axis: The output channels; None for one scale for all.
        dtype: The dtype of the scales.
    """
    widest = choose_weight_qparams(weight, axis, dtype)
    axes = tuple(i for i in range(weight.ndim) if i != axis)
    best, least = widest.scale, np.full(widest.scale.shape, np.inf, np.float32)
    values = weight.astype(np.float32)
    for share in _CLIPS:
        found = QParams(_as_scale(widest.scale.astype(np.float64) * share, dtype), axis)
        scale = _along(found, weight.ndim).astype(np.float32)
        codes = np.clip(np.rint(values / scale), -QMAX, QMAX)
        loss = np.square(codes * scale - values).sum(axis=axes)
        best, least = np.where(loss < least, found.scale, best), np.minimum(loss, least)
    return QParams(np.asarray(best, widest.scale.dtype), axis)


def find_qparams(weight: NDArray[Any], axis: int | None, ranges: Ranges, dtype: str = "float32") -> QParams:
    """Returns the scales of a weight as the ranges ask for them.

    Args:
        weight: Any float dtype and shape.
        axis: The output channels; None for one scale for all.
        ranges: With the word for the scales of weights.
        dtype: The dtype of the scales.
    """
    find = choose_weight_qparams_mse if ranges.weight_scales == "mse" else choose_weight_qparams
    return find(weight, axis, dtype)


def divide_by_scale(values: NDArray[Any], qparams: QParams) -> NDArray[np.float64]:
    """Returns the values divided by their scales: codes before they are rounded."""
    return np.asarray(values.astype(np.float64) / _along(qparams, values.ndim))


def quantize_array(values: NDArray[Any], qparams: QParams) -> NDArray[np.int8]:
    """Returns the codes: round half to even, clipped to -127..127, as ONNX and TensorRT define them."""
    codes = np.rint(divide_by_scale(values, qparams))
    return np.clip(codes, -QMAX, QMAX).astype(np.int8)


def _along(qparams: QParams, rank: int) -> NDArray[np.float64]:
    """Returns the scales in the shape that divides a tensor of this rank."""
    scale = qparams.scale.astype(np.float64)
    if qparams.axis is None:
        return scale
    return scale.reshape([-1 if i == qparams.axis else 1 for i in range(rank)])


def quantize(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the model with Q/DQ pairs at the placed inputs and int8 weights behind DequantizeLinear.

    A tensor with several quantized readers gets one pair; its other readers keep the float. Scales have the
    dtype of their tensor.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: The range of every placed activation, and the repairs.
        scale_dtype: The dtype that the scales must survive: "float16" if the rest will be cast to FP16. The
            values are rounded up to it before the weights are quantized with them.

    Where the ranges hold the channels of a tensor, these are brought to one range first (`rescale`), and
    biases make up for what quantizing the weights shifts on average: bias correction (Nagel et al., arXiv
    1906.04721, section 4.2), with the means that were observed.

    Raises:
        UsageError: The ranges lack a tensor.
        ModelError: A weight is not finite.
    """
    rescaled = rescale(model, placement, ranges)
    result = rescaled.model if rescaled.model is not model else model.clone()
    placement, ranges = rescaled.placement, rescaled.ranges
    edit, values = GraphEditor(result), map_values(result.graph)
    nodes = {node.name: node for node in result.graph}
    activations = {
        name: _quantized_activation(edit, values[name], _activation_qparams(ranges, name, scale_dtype))
        for name in placement.activations
    }
    weights: dict[QuantizedWeight, _Weight] = {}
    for placed in placement.quantized:
        node = nodes[placed.name]
        if placed.weight is not None:
            index, weight = placed.weight
            if weight not in weights:
                weights[weight] = _quantized_weight(edit, weight, scale_dtype, ranges)
            channels = ranges.channels.get(placed.activations[0][1])
            if channels is not None and channels.mean and has_input_channels(placed, node):
                lost = weights[weight].lost()
                add_to_bias(edit, node, follow_output(lost, np.asarray(channels.mean), node))
            node.replace_input_with(index, weights[weight].value)
        for index, tensor in placed.activations:
            node.replace_input_with(index, activations[tensor])
    edit.drop_unused()
    return result


def _activation_qparams(ranges: Ranges, tensor: str, dtype: str) -> QParams:
    if ranges.activations == "asymmetric":
        return choose_asymmetric_qparams(ranges.ends(tensor), dtype)
    return choose_activation_qparams(ranges.amax(tensor), dtype)


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


def _quantized_activation(edit: GraphEditor, source: ir.Value, qparams: QParams) -> ir.Value:
    name, qparams = source.name, _in_dtype_of(source, qparams)
    scale = edit.add_constant(f"{name}_scale", qparams.scale)
    zero = edit.add_constant(f"{name}_zero_point", qparams.zero_point)
    value = source
    for op_type, word, dtype in (
        ("QuantizeLinear", "quantized", ir.DataType.INT8),
        ("DequantizeLinear", "dequantized", source.dtype),
    ):
        names = (f"{name}_{word}", f"{name}_{op_type}")
        inputs = [value, scale, zero]
        value = edit.insert(op_type, inputs, like=source, dtype=dtype, output=names[0], name=names[1])
    return value


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight before and after it was quantized."""

    value: ir.Value
    before: NDArray[Any]
    codes: NDArray[np.int8]
    qparams: QParams

    def lost(self) -> NDArray[np.float64]:
        """Returns what the codes fall short of: float64, the shape of the weight."""
        return self.before.astype(np.float64) - self.codes * _along(self.qparams, self.codes.ndim)


def _quantized_weight(
    edit: GraphEditor,
    weight: QuantizedWeight,
    scale_dtype: str,
    ranges: Ranges,
) -> _Weight:
    source = edit.graph.initializers[weight.tensor]
    assert source.const_value is not None
    values = source.const_value.numpy()
    require_finite(values, weight.tensor)
    qparams = _in_dtype_of(source, find_qparams(values, weight.axis, ranges, scale_dtype))
    rounding = ranges.roundings.get(hash_weight(values)) if ranges.roundings else None
    if rounding is None:
        codes = quantize_array(values, qparams)
    else:
        codes = round_to(divide_by_scale(values, qparams), unpack(rounding, values.shape))
    inputs = [
        edit.add_constant(f"{weight.tensor}_quantized", codes),
        edit.add_constant(f"{weight.tensor}_scale", qparams.scale),
        edit.add_constant(f"{weight.tensor}_zero_point", qparams.zero_point),
    ]
    attributes: Mapping[str, int] = {} if weight.axis is None else {"axis": weight.axis}
    output, first = f"{weight.tensor}_dequantized", edit.graph[0]
    result = edit.insert("DequantizeLinear", inputs, attributes, like=source, output=output, before=first)
    return _Weight(result, values, codes, qparams)


def _in_dtype_of(source: ir.Value, qparams: QParams) -> QParams:
    assert source.dtype is not None
    return replace(qparams, scale=_as_scale(qparams.scale, source.dtype.numpy().name))
