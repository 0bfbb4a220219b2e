"""Codes behind layers too, for runtimes whose integer kernels write codes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.calibrators.ranges import Range, Ranges
from trtq.kept import KeptNode
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.factors import find_factor
from trtq.pipeline.graph.placed import CLOSED, QUANTIZABLE, Placement, QuantizedNode
from trtq.pipeline.graph.placement import with_codes

_LAST = (
    "it makes an output of the model, which stays float, but ONNX Runtime's INT8 convolution has a "
    "quantized output"
)
_WRITERS = ("Conv",)
"""Layers whose integer kernel writes nothing but codes; those of products write floats as well."""
_ABSORBED = ("Relu", "Clip")
"""What ONNX Runtime leaves to the limits of the codes that come behind it."""
_KEEPING = (
    "DepthToSpace", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Those of them whose output holds values of the input, or values between these."""
_PASSING = frozenset(
    ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", *_KEEPING)
)
"""Operators that ONNX Runtime computes in codes where it gets them and they are wanted behind it."""
_OF_MAPS = ("MaxPool",)
"""Those of them that are slow on codes unless the channels are last, as convolutions on codes have them."""
_LEAVING_MAPS = ("Flatten", "Gather", "GlobalAveragePool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_TAKING_CONSTANTS = ("Add", "Mul")
"""Those of them whose constant gets codes when the model is written: `rewrite.coded`."""


def close_outputs(model: ir.Model, placement: Placement, kept: Collection[str] = ()) -> Placement:
    """Returns the placement with codes for all readers of what quantized convolutions write.

    ONNX Runtime runs a convolution in INT8 only if what comes out of it is quantized for whoever reads it
    (its QLinearConv). What stands between two such layers then works on codes too, if it can. A convolution
    that makes an output of the model stays float.

    Args:
        model: The graph.
        placement: Of INT8 layers.
        kept: The names of nodes that take no codes; what they read stays float for all.
    """
    placement = _leave_last(model, placement)
    coded = {node.name: {place for place, _ in node.activations} for node in placement.quantized}
    layers = {node.name for node in placement.layers}
    useful = _list_useful(model, layers)
    added: dict[str, set[int]] = {}
    for node in model.graph:
        if not _writes_codes(node, layers, coded, useful):
            continue
        users = [user for value in node.outputs for user in _find_end(value).uses()]
        if any(_takes_no_codes(user.node, model, kept) for user in users):
            continue
        for user, place in users:
            name = str(user.name)
            if place not in coded.get(name, ()):
                coded.setdefault(name, set()).add(place)
                added.setdefault(name, set()).add(place)
    known = {node.name: node for node in placement.quantized}
    order = {str(node.name): index for index, node in enumerate(model.graph)}
    nodes = {str(node.name): node for node in model.graph}
    for name, places in added.items():
        known[name] = _extend(known.get(name), nodes[name], sorted(places))
    return replace(placement, quantized=tuple(sorted(known.values(), key=lambda item: order[item.name])))


def _takes_no_codes(node: ir.Node, model: ir.Model, kept: Collection[str]) -> bool:
    """Returns whether a reader is kept float, or stands in a body, where nothing is quantized."""
    return node.graph is not model.graph or (node.name in kept and node.op_type not in QUANTIZABLE)


def tie_ranges(model: ir.Model, placement: Placement, ranges: Ranges) -> Ranges:
    """Returns the ranges with that of the input for what passes its values on: it then passes codes on.

    ONNX Runtime drops the pairs around such an operator only if they have one scale.
    """
    closed = {node.name for node in placement.quantized if node.scheme.rule == CLOSED}
    tensors = dict(ranges.tensors)
    for node in model.graph:
        if node.name not in closed or (scaled := _find_kept(node)) is None:
            continue
        place, factor = scaled
        source = node.inputs[place]
        found = tensors.get(str(source.name)) if source is not None else None
        tied = {str(value.name) for value in node.outputs} & tensors.keys()
        tensors |= dict.fromkeys(tied, _scale(found, factor)) if found is not None else {}
    return replace(ranges, tensors=tensors)


def _find_kept(node: ir.Node) -> tuple[int, float] | None:
    """Returns the place of the input whose codes a node passes on, and the factor of their scale."""
    if node.op_type in _KEEPING:
        return (0, 1.0) if _passes(node) else None
    return find_factor(node)


def _scale(found: Range, factor: float) -> Range:
    numbers = (found.amax, found.minimum, found.maximum)
    return found if factor == 1 else Range(*(number * factor for number in numbers))


def _leave_last(model: ir.Model, placement: Placement) -> Placement:
    """Returns the placement without the convolutions behind which no codes can stand."""
    layers = {node.name for node in placement.layers}
    left = [
        node
        for node in model.graph
        if node.name in layers and node.op_type in _WRITERS and not _may_write_codes(node)
    ]
    names = {node.name for node in left}
    kept = (KeptNode(str(node.name), node.op_type, _LAST) for node in left)
    quantized = tuple(node for node in placement.quantized if node.name not in names)
    return replace(placement, quantized=quantized, kept=(*placement.kept, *kept))


def _may_write_codes(node: ir.Node) -> bool:
    ends = [_find_end(value) for value in node.outputs]
    return all(end.dtype is ir.DataType.FLOAT and not end.is_graph_output() for end in ends)


def _writes_codes(node: ir.Node, layers: set[str], coded: dict[str, set[int]], useful: _Useful) -> bool:
    if node.name in layers:
        is_writer = node.op_type in _WRITERS
    else:
        floats = _list_floats(node)
        gets_codes = bool(floats) and all(place in coded.get(str(node.name), ()) for place in floats)
        is_writer = _passes(node) and gets_codes and useful.wants(node)
    return is_writer and _may_write_codes(node)


@dataclass(frozen=True, slots=True)
class _Useful:
    """The values that a quantized layer reads, or that become such by what passes codes on.

    Attributes:
        values: All of them.
        maps: Those that a convolution reads as it is laid out: with the channels last.
    """

    values: set[ir.Value]
    maps: set[ir.Value]

    def wants(self, node: ir.Node) -> bool:
        """Returns whether codes behind a node are of use."""
        wanted = self.maps if node.op_type in _OF_MAPS else self.values
        return any(value in wanted for value in node.outputs)


def _list_useful(model: ir.Model, layers: set[str]) -> _Useful:
    found = _Useful(set(), set())
    for node in reversed(model.graph):
        is_layer = node.name in layers
        is_on_way = (_passes(node) or node.op_type in _ABSORBED) and found.wants(node)
        inputs = [value for value in node.inputs if value is not None]
        if is_layer or is_on_way:
            found.values.update(inputs)
        is_laid_out = node.op_type not in _LEAVING_MAPS and any(value in found.maps for value in node.outputs)
        if (is_layer and node.op_type in _WRITERS) or (is_on_way and is_laid_out):
            found.maps.update(inputs)
    return found


def _passes(node: ir.Node) -> bool:
    """Returns whether an operator can work on codes. Cubic interpolation leaves the range of its input."""
    mode = node.attributes.get("mode") if node.op_type == "Resize" else None
    overshoots = mode is not None and mode.as_string() == "cubic"
    return (node.op_type in _PASSING and not overshoots) or find_factor(node) is not None


def _list_floats(node: ir.Node) -> list[int]:
    """Returns the places of the inputs that are numbers to compute with, and no sizes or bounds."""
    values = enumerate(node.inputs[:1] if node.op_type == "Resize" else node.inputs)
    is_free = node.op_type in _TAKING_CONSTANTS or find_factor(node) is not None
    return [
        place
        for place, value in values
        if value is not None and value.dtype is ir.DataType.FLOAT and not (is_free and value.is_initializer())
    ]


def _find_end(value: ir.Value) -> ir.Value:
    """Returns where the codes of a value stand: behind what they absorb, if that alone reads it."""
    users = [*value.uses()]
    if len(users) != 1 or value.is_graph_output() or users[0].node.op_type not in _ABSORBED:
        return value
    return users[0].node.outputs[0]


def _extend(known: QuantizedNode | None, node: ir.Node, places: list[int]) -> QuantizedNode:
    """Returns a node that takes codes at these places too."""
    added = with_codes(node, INT8, CLOSED, *places)
    if known is None:
        return added
    scheme = replace(known.scheme, inputs=(*known.scheme.inputs, *added.scheme.inputs))
    return replace(known, scheme=scheme, activations=(*known.activations, *added.activations))
