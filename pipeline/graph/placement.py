"""Which tensors are quantized, by which rule, and which layers keep their precision and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats import FP8, INT8, NVFP4
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import Granularity, PerBlock, PerToken
from trtq.pipeline.formats.nvfp4 import BLOCK
from trtq.pipeline.graph.attention import choose_attention, encode_operand, place_attention
from trtq.pipeline.graph.axes import (
    choose_granularity,
    explain_other,
    find_summed_axis,
)
from trtq.pipeline.graph.axes import find_channel_axis as find_channel_axis
from trtq.pipeline.graph.given import explain_given, find_given, is_quantized_otherwise
from trtq.pipeline.graph.operands import find_operand
from trtq.pipeline.graph.placed import QUANTIZABLE as QUANTIZABLE
from trtq.pipeline.graph.placed import Placement as Placement
from trtq.pipeline.graph.placed import QuantizedNode as QuantizedNode
from trtq.pipeline.graph.placed import QuantizedWeight as QuantizedWeight
from trtq.pipeline.graph.tokens import by_token
from trtq.pipeline.graph.worth import explain_float, explain_narrow, explain_unequal_matrices

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_WEIGHTED_IF_CONSTANT = ("Einsum", "DeformConv")
_FUSED = frozenset({
    "Attention", "DecoderAttention", "FusedConv", "FusedGemm", "FusedMatMul", "GemmFastGelu", "GemmFloat8",
    "LongformerAttention", "MoE", "NhwcFusedConv", "PackedAttention", "TransposeMatMul",
})  # fmt: skip
"""The layers of ONNX Runtime's own domain, with a weight among their inputs where it is constant."""
ATTENTION = "Attention"
"""In a list of types: the MatMul of two activations."""
RESIDUAL_ADD = "residual-add"
"""The rule of an Add behind a convolution: see `place`."""
SOFTMAX = "Softmax"
"""In a list of types: the input of Softmax and LogSoftmax."""
DEFAULT_OP_TYPES = ("Conv", "Gemm", "MatMul")
"""TensorRT runs ConvTranspose in float whatever stands before it, so its Q/DQ would only cost accuracy."""
_RANK_OF_EXPERTS = 3
"""TensorRT-RTX runs a batch of matrices with scales for each in INT8; with two batch axes it does not."""
_TWO_ACTIVATIONS = "two-activations"
_NONE: Mapping[str, str] = MappingProxyType({})
Explain = Callable[[ir.Node, ir.Value, ir.Value, int | None], str]
"""Of a layer, its weight, its activation and the axis of its channels: why it stays float, or nothing."""
_NO_FORMS: Mapping[str, CodeFormat] = MappingProxyType({})


def place(
    model: ir.Model,
    *,
    form: CodeFormat = INT8,
    forms: Mapping[str, CodeFormat] = _NO_FORMS,
    skip: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    force: Sequence[str] = (),
    kept: Mapping[str, str] = _NONE,
    by_matrix: bool = False,
    per_token: bool = False,
    attention: Collection[str] | None = (),
    explain: Explain = explain_float,
) -> Placement:
    """Returns where Q/DQ pairs go, by TensorRT's rules for explicit quantization.

    1. weighted-input: Conv, Gemm and MatMul with a constant weight take activations and weights of 8 bits;
       one scale for the activation, one per output channel for the weight.
    2. residual-add: where an INT8 Conv ends in an Add, the Add's other input is INT8 too; else the fused
       convolution has to write floats (TensorRT developer guide, "Q/DQ placement recommendations"). Beside an
       FP8 Conv it stays float: the builder makes the same kernels of both, and it would only cost accuracy.
    3. attention: both MatMuls of two activations around a Softmax take codes, or none, where TensorRT fuses
       them with it (`attention.place_attention`): in FP8 all such, in INT8 those that are named.
       two-activations: where "Attention" is among the types, every MatMul of two activations takes codes,
       whatever becomes of it; else all others stay float.
    4. indices, filled, filter-bank, few-outputs, head, gate (`explain_float`), unequal matrices
       (`explain_unequal_matrices`) and in FP8 narrow (`explain_narrow`): layers where codes win nothing or
       lose much stay float.
    5. softmax-input: what Softmax and LogSoftmax get is INT8 where "Softmax" is among the types; they compute
       in float all the same, and TensorRT fuses attention no more.
    6. Nothing else. Biases stay float. The reader of a tensor quantizes it: TensorRT moves that pair back
       through MaxPool, Concat, Resize, Reshape, Transpose, Split and Slice, which then work on INT8, and no
       pair stands between a Conv, its BatchNormalization and its activation. So what no such layer reads
       stays float: Softmax, LayerNormalization, Gelu and SiLU, embeddings, the arithmetic that decodes boxes
       and scores, and with it every output of the model. ConvTranspose, LSTM and GRU have no INT8 kernel.
    11. given: a layer whose weight comes behind a DequantizeLinear stays as it is. Where a tensor has Q/DQ
        already, a new layer reads that, and gets no other.

    Args:
        model: The graph; its nodes have unique names.
        form: The number format of the layers: INT8, FP8 or NVFP4. What a format is not for (`explain_other`)
            gets the one that it names.
        forms: Names of layers that have another one.
        skip: Regular expressions searched in node names; these nodes keep their precision.
        op_types: The types of nodes to quantize.
        force: Regular expressions of nodes that rule 4 does not hold back.
        kept: Names of nodes that keep their precision, each with the reason, whoever decided it. A node that
            `skip` names as well has this reason. Names that the graph lacks are passed over.
        by_matrix: Whether an INT8 or FP8 weight of several matrices, such as experts, has scales for each
            matrix and output channel; else it has one scale, or stays float where that would wipe out one.
        per_token: Whether each row of what a MatMul or Gemm reads has a scale of its own, found in each run:
            see `tokens.explain_one_scale` for those that have one scale all the same.
        attention: The names of the MatMuls that INT8 was found to cost next to nothing; None: all for which
            it can be tried.
        explain: What tells why a layer of rule 4 stays float.
    """
    names = [str(node.name) for node in model.graph]
    skipped = {name: pattern for pattern in reversed(skip) for name in names if re.search(pattern, name)}
    left = {name: f"skipped by {pattern!r}" for name, pattern in skipped.items()} | dict(kept)
    quantized: list[QuantizedNode] = []
    unquantized: list[KeptNode] = []
    given = {node: reason for node in model.graph if (reason := explain_given(node))}
    for node in filter(holds_weights, model.graph):
        if node in given:
            continue
        name = str(node.name)
        own = forms.get(name, form)
        chosen = own.otherwise if own.otherwise is not None and explain_other(node) else own
        splits = by_matrix and chosen in (INT8, FP8)  # nobody has measured it in others
        decision = left[name] if name in left else _decide(node, chosen, op_types, force, splits, explain)
        if isinstance(decision, str):
            unquantized.append(KeptNode(name, node.op_type, decision))
        else:
            quantized.append(by_token(node, decision) if per_token else decision)
    layers = {node.name: node for node in quantized}
    if ATTENTION not in op_types and "MatMul" in op_types:
        products, reasons = place_attention(model.graph, form.otherwise or form, forms, layers, left)
        quantized += products
        taken = {node.name for node in products}
        unquantized = [
            item if item.name in left else replace(item, reason=reasons.get(item.name, item.reason))
            for item in unquantized
            if item.name not in taken
        ]
    quantized += _residual_adds(model, {name: node.scheme.form for name, node in layers.items()}, left)
    if SOFTMAX in op_types:
        quantized += _softmax_inputs(model, form, forms, left)
    order = {name: index for index, name in enumerate(names)}
    placement = Placement(
        tuple(sorted(quantized, key=lambda node: order[node.name])),
        tuple(unquantized),
        tuple(KeptNode(str(node.name), node.op_type, reason) for node, reason in given.items()),
    )
    return placement if attention is None else choose_attention(placement, attention)


def find_unmatched(
    model: ir.Model, patterns: Sequence[str], *, in_weights: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Yields each pattern that no name of a node (or weight) has, with the node names nearest to it."""
    nodes = [str(node.name) for node in model.graph]
    names = [*nodes, *(model.graph.initializers if in_weights else ())]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            yield pattern, difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.3)


def holds_weights(node: ir.Node) -> bool:
    """Returns whether a node counts as a layer: by its type, or because a constant matrix is its weight."""
    is_fused = node.domain == "com.microsoft" and node.op_type in _FUSED
    if node.op_type not in _WEIGHTED_IF_CONSTANT and not is_fused:
        return node.op_type in WEIGHTED
    constants = [value for value in node.inputs if value is not None and value.is_initializer()]
    return any(len(value.shape or ()) > 1 and value.dtype in FLOAT_TYPES for value in constants)


def _reason_for_type(node: ir.Node, form: CodeFormat) -> str:
    op_type = node.op_type
    if op_type == "ConvTranspose":
        return "TensorRT runs ConvTranspose in float"
    if op_type not in QUANTIZABLE:
        return f"{op_type} stays float: TensorRT has no {form.name.upper()} kernel for it"
    if op_type == "MatMul" and not _constants(node):
        name = form.name.upper()
        return f"two-activations: TensorRT fuses attention in float; {name} with Attention in --op-types"
    return f"{op_type} is not among the types to quantize"


def _is_wanted(node: ir.Node, op_types: Sequence[str]) -> bool:
    if node.op_type == "MatMul" and not _constants(node):
        return ATTENTION in op_types
    return node.op_type in QUANTIZABLE and node.op_type in op_types


def _constants(node: ir.Node) -> list[int]:
    return [index for index in (0, 1) if (value := node.inputs[index]) is not None and value.is_initializer()]


def _decide(
    node: ir.Node,
    form: CodeFormat,
    op_types: Sequence[str],
    force: Sequence[str],
    by_matrix: bool,
    explain: Explain,
) -> QuantizedNode | str:
    """Returns how a layer is quantized, or why it stays float."""
    if not _is_wanted(node, op_types):
        return _reason_for_type(node, form)
    if constants := _constants(node):
        return _weighted_input(node, form, 0 if constants == [0] else 1, force, by_matrix, explain)
    if node.op_type != "MatMul":
        return "its weight is not a constant"
    if any(value is None or value.dtype not in FLOAT_TYPES for value in node.inputs):
        return "its inputs are not float"
    return with_codes(node, form, _TWO_ACTIVATIONS, 0, 1)


def _weighted_input(
    node: ir.Node, form: CodeFormat, place: int, force: Sequence[str], by_matrix: bool, explain: Explain
) -> QuantizedNode | str:
    weight, activation = node.inputs[place], node.inputs[1 - place]
    if weight is None or activation is None or activation.is_initializer():
        return "it has no activation to quantize"
    if weight.dtype not in FLOAT_TYPES or activation.dtype not in FLOAT_TYPES:
        return f"its inputs are {activation.dtype} and {weight.dtype}, not float"
    if place == 0 and node.op_type != "MatMul":
        return "its first input is the constant one"
    if is_quantized_otherwise(activation, form):
        return f"given: its input is already quantized, and not in {form.name.upper()} with one scale"
    axis = find_channel_axis(node, place, len(weight.shape or ()))
    is_forced = any(re.search(pattern, str(node.name)) for pattern in force)
    if not is_forced and (reason := explain(node, weight, activation, axis)):
        return reason
    if not is_forced and form is FP8 and (reason := explain_narrow(node, weight)):
        return reason
    rank = len(weight.shape or ())
    granularity: Granularity = choose_granularity(axis)
    if axis is None and node.op_type == "MatMul":
        if by_matrix and rank == _RANK_OF_EXPERTS:
            granularity = PerToken(rank - 1 - place)  # the summed axis: the last of a first operand
        elif not is_forced and (reason := explain_unequal_matrices(weight)):
            return reason
    layer = with_codes(node, form, "weighted-input", 1 - place)
    scheme = replace(layer.scheme, weight=Encoding(form, granularity))
    if form is NVFP4:
        rows = Encoding(form, PerBlock(len(activation.shape or ()) - 1, BLOCK), is_dynamic=True)
        blocks = Encoding(form, PerBlock(find_summed_axis(node), BLOCK))
        scheme = replace(scheme, inputs=((1 - place, rows),), weight=blocks)
    return replace(layer, scheme=scheme, weight=(place, str(weight.name)))


def with_codes(node: ir.Node, form: CodeFormat, rule: str, *places: int) -> QuantizedNode:
    """Returns a node with codes at the places, with one scale for each activation."""
    values = [(place, value) for place in places if (value := node.inputs[place]) is not None]
    inputs = ((place, _encode(value, form, rule)) for place, value in values)
    tensors = tuple((place, str(value.name)) for place, value in values)
    return QuantizedNode(str(node.name), node.op_type, LayerScheme(rule, tuple(inputs)), tensors)


def _encode(value: ir.Value, form: CodeFormat, rule: str) -> Encoding:
    if rule == _TWO_ACTIVATIONS:
        return encode_operand(value, form)
    return Encoding(form, is_given=find_given(value, form) is not None)


def _residual_adds(
    model: ir.Model, layers: Mapping[str, CodeFormat], skipped: Collection[str]
) -> Iterator[QuantizedNode]:
    for node in model.graph:
        if node.op_type != "Add" or node.name in skipped:
            continue
        first, second = (_find_quantized_conv(value, layers) for value in node.inputs)
        place = 1 if first else 0  # where both are convolutions, the second is the shortcut
        conv = first or second
        if conv and layers[conv] is INT8 and _same_shape(node) and _is_float_activation(node.inputs[place]):
            yield with_codes(node, INT8, RESIDUAL_ADD, place)


def _softmax_inputs(
    model: ir.Model, form: CodeFormat, forms: Mapping[str, CodeFormat], skipped: Collection[str]
) -> Iterator[QuantizedNode]:
    for node in model.graph:
        is_softmax = node.op_type in ("Softmax", "LogSoftmax") and node.name not in skipped
        if is_softmax and _is_float_activation(node.inputs[0]):
            own = forms.get(str(node.name), form)
            yield with_codes(node, own.otherwise or own, "softmax-input", 0)


def _is_float_activation(value: ir.Value | None) -> bool:
    is_activation = value is not None and not value.is_initializer() and value.dtype in FLOAT_TYPES
    return is_activation and find_operand(value) is None


def _find_quantized_conv(value: ir.Value | None, layers: Collection[str]) -> str:
    """Returns the name of the quantized convolution that ends in this value alone; empty if none does."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Conv" or producer.name not in layers:
        return ""
    return str(producer.name) if len(value.uses()) == 1 and not value.is_graph_output() else ""


def _same_shape(node: ir.Node) -> bool:
    first, second = (None if value is None else value.shape for value in node.inputs)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b or _may_be_equal(a, b) for a, b in zip(first, second, strict=True))


def _may_be_equal(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    """Returns whether two unlike dims may turn out equal: one is open and neither is 1, which broadcasts."""
    return not (isinstance(first, int) and isinstance(second, int)) and 1 not in (first, second)
