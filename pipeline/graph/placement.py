"""Which tensors are quantized, by which rule, and which layers keep their precision and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats import INT8, INT8_OF_7_BITS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import Granularity, PerBlock, PerChannel, PerTensor, PerToken
from trtq.pipeline.graph.given import explain_given, find_given, is_quantized_otherwise
from trtq.pipeline.graph.operands import find_operand
from trtq.pipeline.graph.worth import explain_float, explain_unequal_matrices

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_WEIGHTED_IF_CONSTANT = ("Einsum", "DeformConv")
_FUSED = frozenset({
    "Attention", "DecoderAttention", "FusedConv", "FusedGemm", "FusedMatMul", "GemmFastGelu", "GemmFloat8",
    "LongformerAttention", "MoE", "NhwcFusedConv", "PackedAttention", "TransposeMatMul",
})  # fmt: skip
"""The layers of ONNX Runtime's own domain, with a weight among their inputs where it is constant."""
QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ATTENTION = "Attention"
"""In a list of types: the MatMul of two activations."""
SOFTMAX = "Softmax"
"""In a list of types: the input of Softmax and LogSoftmax."""
DEFAULT_OP_TYPES = ("Conv", "Gemm", "MatMul")
"""TensorRT runs ConvTranspose in float whatever stands before it, so its Q/DQ would only cost accuracy."""
_RANK_OF_EXPERTS = 3
"""TensorRT-RTX runs a batch of matrices with scales for each in INT8; with two batch axes it does not."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A constant weight, and how it is held."""

    tensor: str
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class QuantizedNode:
    """A node that takes codes, and how.

    `activations` are place and name of the inputs behind Q/DQ, none where the weight alone is quantized;
    `weight` is place and name of its constant weight.
    """

    name: str
    op_type: str
    scheme: LayerScheme
    activations: tuple[tuple[int, str], ...] = ()
    weight: tuple[int, str] | None = None

    @property
    def held_weight(self) -> QuantizedWeight | None:
        """The weight and its encoding."""
        if self.weight is None or self.scheme.weight is None:
            return None
        return QuantizedWeight(self.weight[1], self.scheme.weight)

    def to_key(self) -> tuple[object, ...]:
        """Returns all that a quantized model depends on, for a digest: the encodings too."""
        inputs = tuple((place, _describe(encoding)) for place, encoding in self.scheme.inputs)
        weight = None if self.scheme.weight is None else _describe(self.scheme.weight)
        return self.name, self.scheme.rule, self.activations, inputs, self.weight, weight

    def to_plain(self) -> dict[str, Any]:
        """Returns it as `inspect --json` shows it."""
        plain = {"name": self.name, "op_type": self.op_type, "rule": self.scheme.rule}
        weight = None
        if self.weight is not None and self.scheme.weight is not None:
            place, tensor = self.weight
            weight = (place, {"tensor": tensor, "axis": self.scheme.weight.channel_axis})
        return {**plain, "activations": self.activations, "weight": weight}


def _describe(encoding: Encoding) -> tuple[object, ...]:
    form = encoding.format
    stored = None if encoding.stored is None else _describe(encoding.stored)
    flags = encoding.is_dynamic, encoding.is_given, encoding.has_coded_scales, stored
    return form.name, form.lowest, form.largest, str(encoding.granularity), *flags


@dataclass(frozen=True, slots=True)
class Placement:
    """For every node with weights, in graph order, what is done.

    Attributes:
        quantized: How each node is quantized.
        kept: Why each other one is kept float.
        given: Those that come quantized, which nothing is done to, and what of each does.
    """

    quantized: tuple[QuantizedNode, ...] = ()
    kept: tuple[KeptNode, ...] = ()
    given: tuple[KeptNode, ...] = ()

    @property
    def encodings(self) -> dict[str, Encoding]:
        """How each tensor is held that quantized nodes read, in graph order."""
        layers = ((dict(node.scheme.inputs), node.activations) for node in self.quantized)
        return {tensor: inputs[place] for inputs, tensors in layers for place, tensor in tensors}

    @property
    def activations(self) -> tuple[str, ...]:
        """The tensors that get Q/DQ, and so need a range, in graph order."""
        return tuple(name for name, encoding in self.encodings.items() if not encoding.is_given)

    @property
    def formats(self) -> dict[str, CodeFormat]:
        """The number format of each tensor that gets Q/DQ."""
        return {name: self.encodings[name].format for name in self.activations}

    @property
    def layers(self) -> tuple[QuantizedNode, ...]:
        """The nodes whose kernel works on codes, which counts as coverage: not Add and Softmax."""
        return tuple(node for node in self.quantized if node.activations and node.op_type in QUANTIZABLE)

    @property
    def weights_alone(self) -> tuple[QuantizedNode, ...]:
        """The nodes that take floats and a weight of few bits."""
        return tuple(node for node in self.quantized if not node.activations)

    @property
    def has_few_bits(self) -> bool:
        """Whether a weight is stored in fewer bits than it is computed with."""
        weights = (node.scheme.weight for node in self.quantized)
        return bool(self.weights_alone) or any(weight and weight.stored for weight in weights)

    @property
    def min_opset(self) -> int:
        """The first opset that holds the formats; 21 where the scales of a weight lie along several axes."""
        weights = [node.scheme.weight for node in self.quantized if node.scheme.weight is not None]
        if any(weight.stored or isinstance(weight.granularity, PerToken | PerBlock) for weight in weights):
            return 21
        held = (*self.encodings.values(), *weights)
        return max((encoding.format.first_opset for encoding in held), default=13)

    def with_one_scale(self) -> Placement:
        """Returns the same decisions with one scale for each weight, instead of one an output channel."""
        return self._with_weights(lambda weight: replace(weight, granularity=PerTensor()))

    def with_weights_of_7_bits(self) -> Placement:
        """Returns the same decisions with codes from -63 to 63 for what is INT8 of weights."""
        return self._with_weights(
            lambda weight: replace(weight, format=INT8_OF_7_BITS) if weight.format is INT8 else weight
        )

    def _with_weights(self, change: Callable[[Encoding], Encoding]) -> Placement:
        def changed(node: QuantizedNode) -> QuantizedNode:
            weight = node.scheme.weight and change(node.scheme.weight)
            return replace(node, scheme=replace(node.scheme, weight=weight))

        return replace(self, quantized=tuple(map(changed, self.quantized)))


def place(
    model: ir.Model,
    *,
    form: CodeFormat = INT8,
    skip: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    force: Sequence[str] = (),
    kept: Mapping[str, str] = _NONE,
    by_matrix: bool = False,
) -> Placement:
    """Returns where Q/DQ pairs go, by TensorRT's rules for explicit quantization.

    1. weighted-input: Conv, Gemm and MatMul with a constant weight take activations and weights of 8 bits;
       one scale for the activation, one per output channel for the weight.
    2. residual-add: where a quantized Conv ends in an Add, the Add's other input is INT8 too; else the fused
       convolution has to write floats (TensorRT developer guide, "Q/DQ placement recommendations").
    3. two-activations: a MatMul of two activations, as in attention, is INT8 on both sides where "Attention"
       is among the types; else float, where TensorRT fuses attention as a whole.
    4. indices, filled, filter-bank, few-outputs, head, gate (`explain_float`) and unequal matrices
       (`explain_unequal_matrices`): layers where INT8 wins nothing or loses much stay float.
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
        form: The number format of the layers: INT8 or FP8.
        skip: Regular expressions searched in node names; these nodes keep their precision.
        op_types: The types of nodes to quantize.
        force: Regular expressions of nodes that rule 4 does not hold back.
        kept: Names of nodes that keep their precision, each with the reason, whoever decided it. A node that
            `skip` names as well has this reason. Names that the graph lacks are passed over.
        by_matrix: Whether a weight of several matrices, such as experts, has scales for each matrix and
            output channel; else it has one scale, or stays float where that would wipe out a matrix.
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
        decision = left[name] if name in left else _decide(node, form, op_types, force, by_matrix)
        if isinstance(decision, str):
            unquantized.append(KeptNode(name, node.op_type, decision))
        else:
            quantized.append(decision)
    quantized += _residual_adds(model, form, {node.name for node in quantized}, left)
    if SOFTMAX in op_types:
        quantized += _softmax_inputs(model, form, left)
    order = {name: index for index, name in enumerate(names)}
    return Placement(
        tuple(sorted(quantized, key=lambda node: order[node.name])),
        tuple(unquantized),
        tuple(KeptNode(str(node.name), node.op_type, reason) for node, reason in given.items()),
    )


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
    node: ir.Node, form: CodeFormat, op_types: Sequence[str], force: Sequence[str], by_matrix: bool
) -> QuantizedNode | str:
    """Returns how a layer is quantized, or why it stays float."""
    if not _is_wanted(node, op_types):
        return _reason_for_type(node, form)
    if constants := _constants(node):
        return _weighted_input(node, form, 0 if constants == [0] else 1, force, by_matrix)
    if node.op_type != "MatMul":
        return "its weight is not a constant"
    if any(value is None or value.dtype not in FLOAT_TYPES for value in node.inputs):
        return "its inputs are not float"
    return _with_codes(node, form, "two-activations", 0, 1)


def _weighted_input(
    node: ir.Node, form: CodeFormat, place: int, force: Sequence[str], by_matrix: bool
) -> QuantizedNode | str:
    weight, activation = node.inputs[place], node.inputs[1 - place]
    if weight is None or activation is None or activation.is_initializer():
        return "it has no activation to quantize"
    if weight.dtype not in FLOAT_TYPES or activation.dtype not in FLOAT_TYPES:
        return f"its inputs are {activation.dtype} and {weight.dtype}, not float"
    if place == 0 and node.op_type != "MatMul":
        return "its first input is the constant one"
    if is_quantized_otherwise(activation, form):
        return f"given: its input comes quantized, and not in {form.name.upper()} with one scale"
    axis = find_channel_axis(node, place, len(weight.shape or ()))
    is_forced = any(re.search(pattern, str(node.name)) for pattern in force)
    if not is_forced and (reason := explain_float(node, weight, activation, axis)):
        return reason
    rank = len(weight.shape or ())
    granularity: Granularity = choose_granularity(axis)
    if axis is None and node.op_type == "MatMul":
        if by_matrix and rank == _RANK_OF_EXPERTS:
            granularity = PerToken(rank - 1 - place)  # the summed axis: the last of a first operand
        elif not is_forced and (reason := explain_unequal_matrices(weight)):
            return reason
    layer = _with_codes(node, form, "weighted-input", 1 - place)
    scheme = replace(layer.scheme, weight=Encoding(form, granularity))
    return replace(layer, scheme=scheme, weight=(place, str(weight.name)))


def _with_codes(node: ir.Node, form: CodeFormat, rule: str, *places: int) -> QuantizedNode:
    """Returns a node with codes at the places, with one scale for each activation."""
    values = [(place, value) for place in places if (value := node.inputs[place]) is not None]
    inputs = (
        (place, Encoding(form, is_given=find_given(value, form) is not None)) for place, value in values
    )
    tensors = tuple((place, str(value.name)) for place, value in values)
    return QuantizedNode(str(node.name), node.op_type, LayerScheme(rule, tuple(inputs)), tensors)


def choose_granularity(axis: int | None) -> PerChannel | PerTensor:
    """Returns one scale for each output channel, or for all where they lie on no one axis."""
    return PerTensor() if axis is None else PerChannel(axis)


def find_channel_axis(node: ir.Node, place: int, rank: int) -> int | None:
    """Returns the axis of a weight's output channels, on which TensorRT runs INT8 (others run in float).

    None where one scale is for all: a batch of matrices, and a ConvTranspose with groups.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) == 1 else 1
    return place if rank == 2 else None


def _residual_adds(
    model: ir.Model, form: CodeFormat, layers: set[str], skipped: Collection[str]
) -> Iterator[QuantizedNode]:
    for node in model.graph:
        if node.op_type != "Add" or node.name in skipped:
            continue
        ends = [_ends_quantized_conv(value, layers) for value in node.inputs]
        place = 1 if ends[0] else 0  # where both are convolutions, the second is the shortcut
        if any(ends) and _same_shape(node) and _is_float_activation(node.inputs[place]):
            yield _with_codes(node, form, "residual-add", place)


def _softmax_inputs(model: ir.Model, form: CodeFormat, skipped: Collection[str]) -> Iterator[QuantizedNode]:
    for node in model.graph:
        is_softmax = node.op_type in ("Softmax", "LogSoftmax") and node.name not in skipped
        if is_softmax and _is_float_activation(node.inputs[0]):
            yield _with_codes(node, form, "softmax-input", 0)


def _is_float_activation(value: ir.Value | None) -> bool:
    is_activation = value is not None and not value.is_initializer() and value.dtype in FLOAT_TYPES
    return is_activation and find_operand(value) is None


def _ends_quantized_conv(value: ir.Value | None, layers: set[str]) -> bool:
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Conv" or producer.name not in layers:
        return False
    return len(value.uses()) == 1 and not value.is_graph_output()


def _same_shape(node: ir.Node) -> bool:
    first, second = (None if value is None else value.shape for value in node.inputs)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b or _may_be_equal(a, b) for a, b in zip(first, second, strict=True))


def _may_be_equal(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    """Returns whether two unlike dims may turn out equal: one is open and neither is 1, which broadcasts."""
    return not (isinstance(first, int) and isinstance(second, int)) and 1 not in (first, second)
