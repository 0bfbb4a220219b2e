"""Activations whose channels are brought to one range before one scale quantizes them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.rewrite.channels.operands import add_to_bias, by_input, find_input, follow_output
from trtq.pipeline.rewrite.channels.producers import divide_outputs, find_producer
from trtq.pipeline.rewrite.channels.statistics import find_channel_readers

Reader = tuple[QuantizedNode, ir.Node]


@dataclass(frozen=True, slots=True)
class Rescaled:
    """A float graph that computes the same on rescaled tensors, and its placement and ranges.

    Attributes:
        model: The graph.
        placement: Of the graph.
        ranges: Of the graph, with those of the rescaled tensors.
        names: Of the rescaled tensors, by what each was called before.
    """

    model: ir.Model
    placement: Placement
    ranges: Ranges
    names: Mapping[str, str] = field(default_factory=dict)


def rescale(model: ir.Model, placement: Placement, ranges: Ranges) -> Rescaled:
    """Returns the graph with every tensor of `ranges.channels` that has scales shifted and divided by them.

    With x' = (x - c) / s by channel, a layer W x + b is W s x' + (b + W c): the same in floats, but one scale
    quantizes all channels of x' alike, and the weights have a scale for each output channel anyway
    (SmoothQuant, Xiao et al., arXiv 2211.10438; with shifts Outlier Suppression+, Wei et al., arXiv
    2304.09145). Where the tensor comes from a convolution or matrix product, directly or through a ReLU or
    ReLU6 (`find_producer`), and nothing else reads it, that one's weights and bias take the division
    (cross-layer equalization, Nagel et al., arXiv 1906.04721, section 4.1; there ReLU6 becomes ReLU, here it
    keeps its bound); else it stands in the graph, as one Mul and at most one Sub.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: With the channels.
    """
    wanted = {name: item for name, item in ranges.channels.items() if item.scale}
    if not wanted:
        return Rescaled(model, placement, ranges)
    result = model.clone()
    readers, edit = find_channel_readers(result, placement), GraphEditor(result)
    layers = {layer.name for layer in placement.layers}
    renamed: dict[str, str] = {}
    tensors, channels = dict(ranges.tensors), dict(ranges.channels)
    beyond, formats = dict(ranges.beyond_fp16), dict(ranges.formats)
    for tensor, item in wanted.items():
        del channels[tensor]
        if tensor not in readers:
            continue
        made = str(_rescale_tensor(edit, tensor, item, readers[tensor], layers).name)
        renamed[tensor] = made
        if tensor in beyond:
            beyond[made] = beyond[tensor]
        largest = max(item.amax, item.largest)
        tensors[made] = Range(item.amax, -largest, largest)
        if tensor in formats:
            formats[made] = formats[tensor]
        channels[made] = Channels(mean=_mean_after(item))
    edit.drop_unused()
    nodes = {node.name: node for node in result.graph}
    quantized = tuple(_renamed(layer, nodes[layer.name], renamed) for layer in placement.quantized)
    return Rescaled(
        result,
        replace(placement, quantized=quantized),
        replace(ranges, tensors=tensors, channels=channels, beyond_fp16=beyond, formats=formats),
        renamed,
    )


def _mean_after(item: Channels) -> tuple[float, ...]:
    """Returns the means of the rescaled channels.

    Where none are known but there are shifts, they are what zero becomes: then quantizing the weights costs
    what it costs without shifts, and not the error of the weights times the shift.
    """
    if not item.mean and not item.shift:
        return ()
    means = np.asarray(item.mean or np.zeros(len(item.scale)))
    shift = np.asarray(item.shift) if item.shift else 0.0
    return tuple(float(value) for value in (means - shift) / np.asarray(item.scale))


def _renamed(layer: QuantizedNode, node: ir.Node, names: Mapping[str, str]) -> QuantizedNode:
    activations = tuple((index, names.get(name, name)) for index, name in layer.activations)
    if layer.weight is None:
        return replace(layer, activations=activations)
    place, _ = layer.weight
    return replace(layer, activations=activations, weight=(place, str(_given(node, place).name)))


def _rescale_tensor(
    edit: GraphEditor, tensor: str, item: Channels, readers: Sequence[Reader], layers: Collection[str]
) -> ir.Value:
    nodes = [node for _, node in readers]
    source = find_input(nodes, tensor)
    scale = np.asarray(item.scale, np.float64)
    shift = np.asarray(item.shift, np.float64) if any(item.shift) else None
    producer = None if shift is not None else find_producer(source, nodes, layers)
    if producer is not None:
        divide_outputs(edit, producer, scale)
        (place, _), *_ = readers[0][0].activations
        result = _given(nodes[0], place)
        result.name = edit.name_value(f"{tensor}_rescaled")
    else:
        result = _insert(edit, source, nodes[0], scale, shift)
    weights: dict[str, ir.Value] = {}
    for layer, node in readers:
        old = _given(node, 1)
        values = read_constant(old).astype(np.float64)
        if shift is not None:
            add_to_bias(edit, node, follow_output(values, shift, node))
        key = f"{old.name} {_shape_of(node)}"
        if key not in weights:
            scaled = (values * by_input(scale, node)).astype(read_constant(old).dtype)
            weights[key] = edit.add_constant(f"{old.name}_rescaled", scaled)
        node.replace_input_with(layer.activations[0][0], result)
        node.replace_input_with(1, weights[key])
    return result


def _given(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value


def _shape_of(node: ir.Node) -> str:
    """Returns what tells how a weight meets the channels."""
    attributes = ("group", "transB")
    return " ".join(str(node.attributes[name].as_int()) for name in attributes if name in node.attributes)


def _insert(
    edit: GraphEditor,
    source: ir.Value,
    reader: ir.Node,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64] | None,
) -> ir.Value:
    """Returns (source - shift) / scale, computed by nodes behind the tensor's producer."""
    weight = read_constant(reader.inputs[1])
    shape = (-1, *(1,) * (weight.ndim - 2)) if reader.op_type == "Conv" else (-1,)
    steps = [] if shift is None else [("Sub", shift, "shift", "shifted")]
    value = source
    for op_type, numbers, word, output in (*steps, ("Mul", 1.0 / scale, "factor", "rescaled")):
        given = edit.add_constant(f"{source.name}_{word}", numbers.reshape(shape).astype(weight.dtype))
        names = (f"{source.name}_{output}", f"{source.name}_{op_type}")
        value = edit.insert(op_type, [value, given], like=source, output=names[0], name=names[1])
    return value
