"""Activations whose channels are brought to one range before one scale quantizes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.models.tensors import scale_tensor
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.rewrite.channels.operands import (
    add_to_bias,
    by_input,
    find_input,
    find_padding,
    follow_output,
)
from trtq.pipeline.rewrite.channels.producers import Producer, divide_outputs, find_producer
from trtq.pipeline.rewrite.channels.statistics import find_channel_readers
from trtq.pipeline.rewrite.rotation.rotate import rotate


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

    What stands in the graph is for the layers that read the tensor in the format that its range was chosen
    for. Others read the tensor as it was: a float has its finest steps around 0, where a shift leaves none
    of the values that were there. Where they pad a tensor that is shifted, a Pad of zeros stands before the
    shift, and they pad no more.

    Where the ranges are of rotated streams, these are rotated before (`rotate`).

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: With the channels.
    """
    turned: Mapping[str, str] = {}
    if ranges.rotation == "hadamard":
        rotated = rotate(model)
        model, turned = rotated.model, rotated.names
        placement = rename(placement, model, turned)
        channels = {name: item for name, item in ranges.channels.items() if name not in turned}
        ranges = replace(ranges, rotation="none", channels=channels)
    wanted = {name: item for name, item in ranges.channels.items() if item.scale}
    if not wanted:
        return Rescaled(model, placement, ranges, turned)
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
        nodes = [node for _, node in readers[tensor]]
        shift = np.asarray(item.shift, np.float64) if any(item.shift) else None
        producer = find_producer(find_input(nodes, tensor), nodes, layers) if shift is None else None
        if producer is None and tensor in tensors:  # else its rows have scales of their own
            own = _list_own(readers[tensor], tensor, ranges.formats.get(tensor, INT8.name))
            if len(own) < len(nodes):
                nodes, channels[tensor] = own, Channels(mean=item.mean)
            if not nodes:
                continue
        scale = np.asarray(item.scale, np.float64)
        made = str(rescale_tensor(edit, tensor, nodes, scale, shift, producer).name)
        renamed[tensor] = made
        if tensor in beyond:
            beyond[made] = beyond[tensor]
        if tensor in tensors:
            tensors[made] = _range_after(item, None if shift is not None else tensors[tensor])
        if tensor in formats:
            formats[made] = formats[tensor]
        channels[made] = Channels(mean=_mean_after(item))
    edit.drop_unused()
    return Rescaled(
        result,
        rename(placement, result, renamed),
        replace(ranges, tensors=tensors, channels=channels, beyond_fp16=beyond, formats=formats),
        {**turned, **renamed},
    )


def _list_own(readers: Sequence[tuple[QuantizedNode, ir.Node]], tensor: str, form: str) -> list[ir.Node]:
    """Returns those that read a tensor in the format that its range was chosen for."""
    return [node for layer, node in readers if (tensor, form) in _list_formats(layer)]


def _list_formats(layer: QuantizedNode) -> list[tuple[str, str]]:
    return [(tensor, encoding.format.name) for tensor, encoding in layer.encodings]


def _range_after(item: Channels, before: Range | None) -> Range:
    """Returns the range of a rescaled tensor; one that was only divided stays positive."""
    largest = max(item.amax, item.largest)
    is_positive = before is not None and before.minimum >= 0
    return Range(item.amax, 0.0 if is_positive else -largest, largest)


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


def rename(placement: Placement, model: ir.Model, names: Mapping[str, str]) -> Placement:
    """Returns a placement for another graph of the same nodes: the names of weights there, and of tensors."""
    nodes = {node.name: node for node in model.graph}
    quantized = tuple(_renamed(layer, nodes[layer.name], names) for layer in placement.quantized)
    return replace(placement, quantized=quantized)


def _renamed(layer: QuantizedNode, node: ir.Node, names: Mapping[str, str]) -> QuantizedNode:
    read = {value.name for value in node.inputs if value is not None}
    activations = tuple(
        (index, name if name in read else names.get(name, name)) for index, name in layer.activations
    )
    if layer.weight is None:
        return replace(layer, activations=activations)
    place, _ = layer.weight
    return replace(layer, activations=activations, weight=(place, str(_given(node, place).name)))


def rescale_tensor(
    edit: GraphEditor,
    tensor: str,
    readers: Sequence[ir.Node],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64] | None = None,
    producer: Producer | None = None,
) -> ir.Value:
    """Returns a tensor with its channels shifted and divided, with which its readers compute the same.

    Args:
        edit: Of the graph, which is changed.
        tensor: The name of the tensor.
        readers: Layers with input channels that read it; their weights are multiplied.
        scale: Shape (channels,), positive.
        shift: Likewise; None: there is none.
        producer: What takes the division, where nothing else reads the tensor; None: it stands in the graph.
    """
    source = find_input(readers, tensor)
    if producer is not None:
        divide_outputs(edit, producer, scale)
        result = _given(readers[0], 0)  # another value, if a Clip was replaced
        result.name = edit.name_value(f"{tensor}_rescaled")
    else:
        padded = source if shift is None else _pad(edit, source, readers)
        result = _insert(edit, source, padded, readers[0], scale, shift)
    weights: dict[str, ir.Value] = {}
    for node in readers:
        old = _given(node, 1)
        if shift is not None:
            add_to_bias(edit, node, follow_output(read_constant(old).astype(np.float64), shift, node))
        key = f"{old.name} {_shape_of(node)}"
        if key not in weights:
            assert old.const_value is not None
            scaled = scale_tensor(old.const_value, by_input(scale, node))
            weights[key] = edit.add_constant(f"{old.name}_rescaled", scaled)
        node.replace_input_with(0, result)
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


def _pad(edit: GraphEditor, source: ir.Value, readers: Sequence[ir.Node]) -> ir.Value:
    """Returns a tensor with the zeros around it that its readers saw, and will not add any more."""
    pads = find_padding(readers)
    assert pads is not None  # else nothing is shifted
    if not pads:
        return source
    half = len(pads) // 2
    widths = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    given = edit.add_constant(f"{source.name}_pads", widths)
    names = f"{source.name}_padded", f"{source.name}_Pad"
    result = edit.insert("Pad", [source, given], like=source, output=names[0], name=names[1])
    result.shape = _widen_shape(source.shape, widths)
    for node in readers:
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    return result


def _widen_shape(shape: ir.Shape | None, widths: NDArray[np.int64]) -> ir.Shape | None:
    if shape is None:
        return None
    added = widths.reshape(2, -1).sum(axis=0).tolist()
    sizes = (
        size if not more else size + more if isinstance(size, int) else None
        for size, more in zip(shape, added, strict=True)
    )
    return ir.Shape(list(sizes))


def _insert(
    edit: GraphEditor,
    source: ir.Value,
    value: ir.Value,
    reader: ir.Node,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64] | None,
) -> ir.Value:
    """Returns (value - shift) / scale, by nodes behind it that are named after `source`."""
    weight = _given(reader, 1)
    assert weight.const_value is not None
    kind, rank = weight.const_value.dtype.numpy(), len(weight.const_value.shape)
    shape = (-1, *(1,) * (rank - 2)) if reader.op_type == "Conv" else (-1,)
    steps = [] if shift is None else [("Sub", shift, "shift", "shifted")]
    for op_type, numbers, word, output in (*steps, ("Mul", 1.0 / scale, "factor", "rescaled")):
        given = edit.add_constant(f"{source.name}_{word}", numbers.reshape(shape).astype(kind))
        names = (f"{source.name}_{output}", f"{source.name}_{op_type}")
        value = edit.insert(op_type, [value, given], like=value, output=names[0], name=names[1])
    return value
