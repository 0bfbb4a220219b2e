"""Attention in the graph, and where TensorRT fuses it in 8 bits.

softmax(q k / sqrt(d) + mask) v, with a product before and one behind the Softmax, is one kernel if TensorRT
recognizes it. What it takes was measured with the builder of TensorRT-RTX 1.7.1:

- Q/DQ on q, k, v and on what the Softmax gives, each with one scale of any size: the engine holds the source
  of the kernel's call, and that scale is an argument there;
- INT8 only if what reads the result takes it in INT8 too, with heads of 16, 32 or 64 channels, and with 512
  keys at most or an open number of them;
- FP8 also with float results, with heads of any size, and with a fixed number of keys, 32 at least.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.graph.given import find_given
from trtq.pipeline.graph.operands import find_operand
from trtq.pipeline.graph.placed import Placement, QuantizedNode

RULE = "attention"
MOST_COST_DB = 0.5
"""What attention in INT8 may cost of the SQNR, since it gains speed and no accuracy."""
_BETWEEN = ("Add", "Div", "Mul")
"""What may stand between the first product and the Softmax: the scale, and the mask."""
_FUSES = "attention: TensorRT fuses it in"
_FEWEST_KEYS_FP8, _MOST_KEYS_INT8, _HEADS_INT8 = 32, 512, (16, 32, 64)
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
"""What may stand between the second product and the layer behind."""
_NOT_TRIED = (
    f"attention: it stays float unless INT8 costs at most {MOST_COST_DB:g} dB on held-out calibration "
    "data; INT8 with Attention in --op-types"
)


@dataclass(frozen=True, slots=True)
class Attention:
    """Two products of activations around a Softmax.

    Attributes:
        scores: The MatMul of queries and keys.
        context: The MatMul of what the Softmax gives and the values.
        behind: The node that reads the result, through what only moves values; None if several do.
    """

    scores: ir.Node
    context: ir.Node
    behind: ir.Node | None

    @property
    def lengths(self) -> tuple[int, int] | None:
        """How many queries and keys there are; None if the graph does not tell."""
        shape = self.scores.outputs[0].shape
        queries, keys = (None, None) if shape is None else shape[-2:]
        return (queries, keys) if isinstance(queries, int) and isinstance(keys, int) else None

    @property
    def head_size(self) -> int | None:
        """How many channels each query has; None if the graph does not tell."""
        queries = self.scores.inputs[0]
        size = None if queries is None or queries.shape is None else queries.shape[-1]
        return size if isinstance(size, int) else None


def find_attentions(graph: ir.Graph) -> Iterator[Attention]:
    """Yields the attention of a graph whose parts nothing else reads."""
    for node in graph:
        if node.op_type != "Softmax" or not _is_over_keys(node):
            continue
        context, scores = _only_reader(node.outputs[0]), _find_scores(node.inputs[0])
        if scores is None or context is None or not _is_product(context):
            continue
        if context.inputs[0] is node.outputs[0]:
            yield Attention(scores, context, _find_behind(context))


def _is_over_keys(softmax: ir.Node) -> bool:
    shape, axis = softmax.outputs[0].shape, softmax.attributes.get_int("axis", -1)
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Returns the one node that reads the numbers of a value, and not just its shape."""
    readers = [node for node, _ in value.uses() if node.op_type != "Shape"]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _is_product(node: ir.Node) -> bool:
    """Whether a node multiplies two activations in floats."""
    return node.op_type == "MatMul" and all(
        value is not None and not value.is_initializer() and value.dtype in FLOAT_TYPES
        for value in node.inputs
    )


def _find_scores(value: ir.Value | None) -> ir.Node | None:
    """Returns the product that a Softmax comes from, through the scale and the mask."""
    node = None if value is None or _only_reader(value) is None else value.producer()
    if node is None:
        return None
    if node.op_type in _BETWEEN:
        places = node.inputs[:1] if node.op_type == "Div" else node.inputs
        return next((found for value in places if (found := _find_scores(value)) is not None), None)
    return node if _is_product(node) else None


def _find_behind(node: ir.Node) -> ir.Node | None:
    reader = _only_reader(node.outputs[0])
    if reader is not None and reader.op_type in _MOVES:
        return _find_behind(reader)
    return reader


def encode_operand(value: ir.Value, form: CodeFormat) -> Encoding:
    """Returns how an operand of a product of activations is held.

    What a Softmax gives is at most 1. In FP8 this is its range, as small numbers have finer steps there; INT8
    has 127 steps of one size, and data tells how to spend them.
    """
    producer = value.producer()
    is_share = producer is not None and producer.op_type == "Softmax"
    largest = 1.0 if is_share and form is not INT8 else None
    return Encoding(form, is_given=find_given(value, form) is not None, amax=largest)


def place_attention(
    graph: ir.Graph,
    form: CodeFormat,
    forms: Mapping[str, CodeFormat],
    layers: Mapping[str, QuantizedNode],
    left: Collection[str],
) -> tuple[list[QuantizedNode], dict[str, str]]:
    """Returns the products that take codes, both of an attention or none, and why others do not.

    Args:
        graph: With shapes.
        form: INT8 or FP8.
        forms: Names of products that have another format.
        layers: The layers with weights that take codes, by name.
        left: The names of nodes that keep their precision.
    """
    placed: list[QuantizedNode] = []
    reasons: dict[str, str] = {}
    for item in find_attentions(graph):
        both = (item.scores, item.context)
        own, other = (forms.get(str(node.name), form) for node in both)
        reason = _explain_float(item, own, layers, left)
        if own is not other:
            reason = f"attention: both MatMuls need the same format, not {own} and {other}"
        if reason:
            reasons |= {str(node.name): reason for node in both}
        else:
            placed += [_with_codes(node, own) for node in both]
    return placed, reasons


def _explain_float(
    item: Attention, form: CodeFormat, layers: Mapping[str, QuantizedNode], left: Collection[str]
) -> str:
    """Returns why an attention is not fused in a format, or must stay float; else nothing."""
    for node in (item.scores, item.context):
        if node.name in left:
            return f"attention: both MatMuls or neither, and {node.name!r} stays float"
        if any(value is not None and find_operand(value) is not None for value in node.inputs):
            return f"attention: {node.name!r} has Q/DQ already"
    if form is FP8:
        if item.lengths is not None and item.lengths[1] >= _FEWEST_KEYS_FP8:
            return ""
        return f"{_FUSES} FP8 only with a fixed number of keys, {_FEWEST_KEYS_FP8} or more"
    if form is not INT8:
        return f"{_FUSES} INT8 and FP8, not {form.name.upper()}"
    if item.head_size not in _HEADS_INT8:
        return f"{_FUSES} INT8 only with heads of {', '.join(map(str, _HEADS_INT8))} channels"
    if item.lengths is not None and item.lengths[1] > _MOST_KEYS_INT8:
        return f"{_FUSES} INT8 only with {_MOST_KEYS_INT8} keys or fewer"
    layer = None if item.behind is None else layers.get(str(item.behind.name))
    held = () if layer is None else layer.encodings
    if not held or not all(item.needs_range and item.format is INT8 for _, item in held):
        return f"{_FUSES} INT8 only if the next layer takes INT8 with one scale"
    return ""


def _with_codes(node: ir.Node, form: CodeFormat) -> QuantizedNode:
    values = [value for value in node.inputs if value is not None]
    inputs = tuple((place, encode_operand(value, form)) for place, value in enumerate(values))
    tensors = tuple((place, str(value.name)) for place, value in enumerate(values))
    return QuantizedNode(str(node.name), node.op_type, LayerScheme(RULE, inputs), tensors)


def list_tried(placement: Placement) -> tuple[str, ...]:
    """Returns the products that are INT8 only where a trial finds that it costs next to nothing."""
    return tuple(
        node.name
        for node in placement.quantized
        if node.scheme.rule == RULE and all(encoding.format is INT8 for _, encoding in node.encodings)
    )


def choose_attention(placement: Placement, chosen: Collection[str]) -> Placement:
    """Returns the same decisions with only these products of what is tried in INT8."""
    dropped = {*list_tried(placement)} - {*chosen}
    kept = [
        KeptNode(node.name, node.op_type, _NOT_TRIED) for node in placement.quantized if node.name in dropped
    ]
    quantized = tuple(node for node in placement.quantized if node.name not in dropped)
    return replace(placement, quantized=quantized, kept=(*placement.kept, *kept))
