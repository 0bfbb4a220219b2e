"""From a float graph, its placement and its ranges to a model with explicit Q/DQ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Ranges
from trtq.models.tensors import open_values, require_finite
from trtq.pipeline.formats import INT8, NVFP4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.floats import convert_scales
from trtq.pipeline.formats.granularity import PerToken
from trtq.pipeline.graph.closed import tie_ranges
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.given import find_given
from trtq.pipeline.graph.operands import find_constant
from trtq.pipeline.graph.opset import convert_opset, read_opset
from trtq.pipeline.graph.placement import Placement, QuantizedWeight
from trtq.pipeline.rewrite.biases import find_least_scale
from trtq.pipeline.rewrite.channels.operands import add_to_bias, follow_output, has_input_channels
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.fp4 import dequantize_blocks, quantize_rows, restore_axes
from trtq.pipeline.rewrite.qparams import (
    QParams,
    choose_activation_qparams,
    choose_asymmetric_qparams,
    divide_by_scale,
    find_qparams,
    quantize_array,
    raise_scales,
)
from trtq.pipeline.rewrite.rounding import hash_weight, round_to, unpack
from trtq.pipeline.rewrite.rows import divide_rows, multiply_rows
from trtq.pipeline.rewrite.weights.stored import add_stored, store


def quantize(
    model: ir.Model, placement: Placement, ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the model with Q/DQ pairs at the placed inputs, and codes of weights behind DequantizeLinear.

    A tensor with several quantized readers gets one pair, or the one that it has in the model already; its
    other readers keep the float. Scales have the dtype of their tensor.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: The range of every placed activation that needs one, and the repairs.
        scale_dtype: The dtype that the scales must survive: "float16" if the rest will be cast to FP16. The
            values are rounded up to it before the weights are quantized with them.

    Where the ranges hold the channels of a tensor, these are brought to one range first (`rescale`), and
    biases make up for what quantizing the weights shifts on average: bias correction (Nagel et al., arXiv
    1906.04721, section 4.2), with the means that were observed.

    Raises:
        UsageError: The ranges lack a tensor.
        ModelError: A weight is not finite.
    """
    if read_opset(model) < placement.min_opset:
        model = convert_opset(model, placement.min_opset)
    rescaled = rescale(model, placement, ranges)
    result = rescaled.model if rescaled.model is not model else model.clone()
    placement, ranges = rescaled.placement, tie_ranges(result, rescaled.placement, rescaled.ranges)
    edit, values = GraphEditor(result), map_values(result.graph)
    nodes = {node.name: node for node in result.graph}
    held = {pair: _hold(edit, values[pair[0]], pair[1], ranges, scale_dtype) for pair in placement.encodings}
    weights: dict[QuantizedWeight, _Weight] = {}
    least = _find_least_scales(placement, nodes, held)
    for placed in placement.quantized:
        node, weight = nodes[placed.name], placed.held_weight
        if not placed.activations:  # its weight is quantized alone, in the precision that it then has
            continue
        if placed.weight is not None and weight is not None:
            if weight not in weights:
                weights[weight] = _quantized_weight(edit, weight, scale_dtype, ranges, least.get(weight))
            channels = ranges.channels.get(placed.activations[0][1])
            if channels is not None and channels.mean and has_input_channels(placed, node):
                lost = weights[weight].lost()
                add_to_bias(edit, node, follow_output(lost, np.asarray(channels.mean), node))
            node.replace_input_with(placed.weight[0], weights[weight].value)
        for (index, _), pair in zip(placed.activations, placed.encodings, strict=True):
            node.replace_input_with(index, held[pair].value)
            if pair[1].format is NVFP4:
                restore_axes(edit, node, values[pair[0]])
            if (divisors := held[pair].divisors) is not None:
                multiply_rows(edit, node, divisors)
    if any(encoding.is_given for _, encoding in held):
        result.graph.sort()  # a layer may stand before the pair that it now reads
    edit.drop_unused()
    return result


@dataclass(frozen=True, slots=True)
class _Held:
    """An activation behind Q/DQ, and what its rows were divided by before, if they were."""

    value: ir.Value
    divisors: ir.Value | None = None


def _find_least_scales(
    placement: Placement, nodes: Mapping[str | None, ir.Node], held: Mapping[tuple[str, Encoding], _Held]
) -> dict[QuantizedWeight, NDArray[np.float64]]:
    """Returns the scales that INT8 weights need for the biases of all layers that read them."""
    found: dict[QuantizedWeight, NDArray[np.float64]] = {}
    for placed in placement.quantized:
        weight, pairs = placed.held_weight, placed.encodings
        if weight is None or weight.encoding.format is not INT8 or len(pairs) != 1:
            continue
        dequantize = held[pairs[0]].value.producer()
        step = None if dequantize is None else find_constant(dequantize, 1)
        least = None if step is None else find_least_scale(nodes[placed.name], step)
        if least is not None:
            found[weight] = np.maximum(found[weight], least) if weight in found else least
    return found


def _hold(edit: GraphEditor, source: ir.Value, encoding: Encoding, ranges: Ranges, dtype: str) -> _Held:
    """Returns an activation in its encoding: behind the Q/DQ that it has, or behind new ones."""
    if encoding.is_given:
        given = find_given(source, encoding.format)
        assert given is not None
        return _Held(given)
    qparams = _choose_qparams(ranges, str(source.name), encoding, dtype)
    if isinstance(encoding.granularity, PerToken):
        rows = divide_rows(edit, source, dtype)
        return _Held(_quantize_activation(edit, rows.value, qparams), rows.divisors)
    return _Held(_quantize_activation(edit, source, qparams))


def _choose_qparams(ranges: Ranges, tensor: str, encoding: Encoding, dtype: str) -> QParams:
    if encoding.amax is not None:
        return choose_activation_qparams(encoding.amax, dtype, encoding)
    if ranges.activations == "asymmetric":
        return choose_asymmetric_qparams(ranges.ends(tensor), dtype)
    return choose_activation_qparams(ranges.amax(tensor, encoding.format.name), dtype, encoding)


def _quantize_activation(edit: GraphEditor, source: ir.Value, qparams: QParams) -> ir.Value:
    name, qparams = source.name, _in_dtype_of(source, qparams)
    scale = edit.add_constant(f"{name}_scale", qparams.scale)
    if qparams.encoding.format is NVFP4:
        return quantize_rows(edit, source, scale)
    zero = edit.add_constant(f"{name}_zero_point", qparams.zero_point)
    value = source
    for op_type, word, dtype in (
        ("QuantizeLinear", "quantized", qparams.encoding.format.dtype),
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
    codes: NDArray[Any]
    qparams: QParams

    def lost(self) -> NDArray[np.float64]:
        """Returns what the codes fall short of: float64, the shape of the weight."""
        return self.before.astype(np.float64) - self.qparams.decode(self.codes)


def _quantized_weight(
    edit: GraphEditor,
    weight: QuantizedWeight,
    scale_dtype: str,
    ranges: Ranges,
    least: NDArray[np.float64] | None,
) -> _Weight:
    source = edit.graph.initializers[weight.tensor]
    assert source.const_value is not None
    values = open_values(source.const_value)
    require_finite(values, weight.tensor)
    stored = weight.encoding.stored and store(values, weight.encoding.stored, scale_dtype)
    floats = stored.values if stored else values
    form = weight.encoding.format
    qparams = find_qparams(floats, weight.encoding, ranges, scale_dtype)
    qparams = _in_dtype_of(source, qparams if least is None else raise_scales(qparams, least))
    rounding = ranges.roundings.get(hash_weight(values, form)) if ranges.roundings and not stored else None
    if rounding is None:
        codes = quantize_array(floats, qparams)
    else:
        codes = round_to(
            divide_by_scale(values, qparams), unpack(rounding, values.shape), weight.encoding.format
        )
    scale = edit.add_constant(f"{weight.tensor}_scale", qparams.scale)
    attributes = weight.encoding.granularity.attributes(values.shape)
    first, output = edit.graph[0], f"{weight.tensor}_quantized"
    if qparams.shared is not None:
        held = edit.add_constant(output, codes)
        shared, axis = edit.add_constant(f"{weight.tensor}_shared", qparams.shared), attributes["axis"]
        result = dequantize_blocks(
            edit, held, scale, shared, axis=axis, like=source, name=weight.tensor, before=first
        )
        return _Weight(result, values, codes, qparams)
    zero = edit.add_constant(f"{weight.tensor}_zero_point", qparams.zero_point)
    if stored:
        inputs = [add_stored(edit, source, stored), scale, zero]
        held = edit.insert(
            "QuantizeLinear", inputs, attributes, like=source, dtype=form.dtype, output=output, before=first
        )
    else:
        held = edit.add_constant(output, codes)
    output = f"{weight.tensor}_dequantized"
    result = edit.insert(
        "DequantizeLinear", [held, scale, zero], attributes, like=source, output=output, before=first
    )
    return _Weight(result, values, codes, qparams)


def _in_dtype_of(source: ir.Value, qparams: QParams) -> QParams:
    assert source.dtype is not None
    dtype = source.dtype.numpy().name
    if qparams.shared is not None:
        return replace(qparams, shared=convert_scales(qparams.shared, dtype))
    return replace(qparams, scale=convert_scales(qparams.scale, dtype))
