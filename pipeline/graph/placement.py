"""Which tensors are quantized, by which rule, and which layers keep their precision and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.worth import explain_float

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ATTENTION = "Attention"
"""In a list of types: the MatMul of two activations."""
SOFTMAX = "Softmax"
"""In a list of types: the input of Softmax and LogSoftmax."""
DEFAULT_OP_TYPES = ("Conv", "Gemm", "MatMul")
"""TensorRT runs ConvTranspose in float whatever stands before it, so its Q/DQ would only cost accuracy."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A constant weight; `axis` is that of the output channels, None for one scale for all."""

    tensor: str
    axis: int | None


@dataclass(frozen=True, slots=True)
class QuantizedNode:
    """A node that will run in INT8, or an Add or Softmax that takes one INT8 input.

    `activations` are the places of its inputs that get Q/DQ; `weight` is the place and the weight.
    """

    name: str
    op_type: str
    rule: str
    activations: tuple[tuple[int, str], ...]
    weight: tuple[int, QuantizedWeight] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The decision for every node with weights, in graph order."""

    quantized: tuple[QuantizedNode, ...]
    kept: tuple[KeptNode, ...]

    @property
    def activations(self) -> tuple[str, ...]:
        """The tensors that need a range, in graph order."""
        return tuple(dict.fromkeys(tensor for node in self.quantized for _, tensor in node.activations))

    @property
    def layers(self) -> tuple[QuantizedNode, ...]:
        """The quantized nodes but Add and Softmax: those whose INT8 kernel counts as coverage."""
        return tuple(node for node in self.quantized if node.op_type in QUANTIZABLE)

    def with_one_scale(self) -> Placement:
        """Returns the same decisions with one scale for each weight, instead of one an output channel."""
        return replace(
            self,
            quantized=tuple(
                node
                if node.weight is None
                else replace(node, weight=(node.weight[0], replace(node.weight[1], axis=None)))
                for node in self.quantized
            ),
        )


def place(
    model: ir.Model,
    *,
    skip: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    force: Sequence[str] = (),
) -> Placement:
    """Returns where Q/DQ pairs go, by TensorRT's rules for explicit quantization.

    1. weighted-input: Conv, Gemm and MatMul with a constant weight take INT8 activations and INT8 weights;
       one scale for the activation, one per output channel for the weight.
    2. residual-add: where a quantized Conv ends in an Add, the Add's other input is INT8 too; else the fused
       convolution has to write floats (TensorRT developer guide, "Q/DQ placement recommendations").
    3. two-activations: a MatMul of two activations, as in attention, is INT8 on both sides where "Attention"
       is among the types; else float, where TensorRT fuses attention as a whole.
    4. indices, 5. filter-bank, 6. few-outputs, 7. head, 8. gate: layers where INT8 wins nothing or loses much
       stay float (`explain_float`).
    9. softmax-input: what Softmax and LogSoftmax get is INT8 where "Softmax" is among the types; they compute
       in float all the same, and TensorRT fuses attention no more.
    10. Nothing else. Biases stay float. The reader of a tensor quantizes it: TensorRT moves that pair back
       through MaxPool, Concat, Resize, Reshape, Transpose, Split and Slice, which then work on INT8, and no
       pair stands between a Conv, its BatchNormalization and its activation. So what no such layer reads
       stays float: Softmax, LayerNormalization, Gelu and SiLU, embeddings, the arithmetic that decodes boxes
       and scores, and with it every output of the model. ConvTranspose, LSTM and GRU have no INT8 kernel.

    Args:
        model: The graph; its nodes have unique names.
        skip: Regular expressions searched in node names; these nodes keep their precision.
        op_types: The types of nodes to quantize.
        force: Regular expressions of nodes that rules 4 to 8 do not hold back.
    """
    quantized: list[QuantizedNode] = []
    kept: list[KeptNode] = []
    for node in model.graph:
        if node.op_type not in WEIGHTED:
            continue
        name = str(node.name)
        pattern = next((pattern for pattern in skip if re.search(pattern, name)), None)
        if pattern is not None:
            kept.append(KeptNode(name, node.op_type, f"skipped by {pattern!r}"))
        elif node.op_type not in QUANTIZABLE or not _is_wanted(node, op_types):
            kept.append(KeptNode(name, node.op_type, _reason_for_type(node)))
        else:
            is_forced = any(re.search(pattern, name) for pattern in force)
            decision = _decide(node, is_forced=is_forced)
            (quantized if isinstance(decision, QuantizedNode) else kept).append(decision)  # type: ignore[arg-type]
    layers = {node.name for node in quantized}
    skipped = {str(node.name) for node in model.graph if any(re.search(p, str(node.name)) for p in skip)}
    quantized += _residual_adds(model, layers, skipped)
    if SOFTMAX in op_types:
        quantized += _softmax_inputs(model, skipped)
    return Placement(tuple(_in_graph_order(model, quantized)), tuple(kept))


def find_unmatched(model: ir.Model, patterns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each pattern that is found in no node name, with the names nearest to it."""
    names = [str(node.name) for node in model.graph]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            yield pattern, difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)


def _reason_for_type(node: ir.Node) -> str:
    op_type = node.op_type
    if op_type == "ConvTranspose":
        return "TensorRT runs ConvTranspose in float"
    if op_type not in QUANTIZABLE:
        return f"{op_type} stays float: TensorRT has no INT8 kernel for it"
    if op_type == "MatMul" and not _constants(node):
        return "two-activations: TensorRT fuses attention in float; INT8 with Attention in --op-types"
    return f"{op_type} is not among the types to quantize"


def _is_wanted(node: ir.Node, op_types: Sequence[str]) -> bool:
    if node.op_type == "MatMul" and not _constants(node):
        return ATTENTION in op_types
    return node.op_type in op_types


def _constants(node: ir.Node) -> list[int]:
    return [index for index in (0, 1) if (value := node.inputs[index]) is not None and value.is_initializer()]


def _decide(node: ir.Node, *, is_forced: bool) -> QuantizedNode | KeptNode:
    name, op_type = str(node.name), node.op_type
    if constants := _constants(node):
        return _weighted_input(node, constants, is_forced=is_forced)
    if op_type != "MatMul":
        return KeptNode(name, op_type, "its weight is not a constant")
    if any(value is None or value.dtype not in FLOAT_TYPES for value in node.inputs):
        return KeptNode(name, op_type, "its inputs are not float")
    tensors = tuple((index, str(value.name)) for index, value in enumerate(node.inputs) if value is not None)
    return QuantizedNode(name, op_type, "two-activations", tensors)


def _weighted_input(node: ir.Node, constants: list[int], *, is_forced: bool) -> QuantizedNode | KeptNode:
    name, op_type = str(node.name), node.op_type
    place = 0 if constants == [0] else 1
    weight, activation = node.inputs[place], node.inputs[1 - place]
    if weight is None or activation is None or activation.is_initializer():
        return KeptNode(name, op_type, "it has no activation to quantize")
    if weight.dtype not in FLOAT_TYPES or activation.dtype not in FLOAT_TYPES:
        return KeptNode(name, op_type, f"its inputs are {activation.dtype} and {weight.dtype}, not float")
    if place == 0 and op_type != "MatMul":
        return KeptNode(name, op_type, "its first input is the constant one")
    axis = find_channel_axis(node, place, len(weight.shape or ()))
    if not is_forced and (reason := explain_float(node, weight, activation, axis)):
        return KeptNode(name, op_type, reason)
    return QuantizedNode(
        name,
        op_type,
        "weighted-input",
        ((1 - place, str(activation.name)),),
        (place, QuantizedWeight(str(weight.name), axis)),
    )


def find_channel_axis(node: ir.Node, place: int, rank: int) -> int | None:
    """Returns the axis of a weight's output channels, on which TensorRT runs INT8 (others run in float).

    Args:
        node: A Conv, ConvTranspose, Gemm or MatMul.
        place: Which of its inputs the weight is.
        rank: Of the weight. A batch of matrices has one scale for all: None.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
        return None if grouped else 1
    if node.op_type == "Gemm":
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        return 0 if transposed else 1
    if rank != 2:
        return None
    return 1 if place == 1 else 0


def _residual_adds(model: ir.Model, layers: set[str], skipped: set[str]) -> Iterator[QuantizedNode]:
    for node in model.graph:
        if node.op_type != "Add" or node.name in skipped:
            continue
        ends = [_ends_quantized_conv(value, layers) for value in node.inputs]
        if not any(ends) or not _same_shape(node):
            continue
        place = 1 if ends[0] else 0  # where both are convolutions, the second is the shortcut
        other = node.inputs[place]
        if other is None or other.is_initializer() or other.dtype not in FLOAT_TYPES:
            continue
        yield QuantizedNode(str(node.name), "Add", "residual-add", ((place, str(other.name)),))


def _softmax_inputs(model: ir.Model, skipped: set[str]) -> Iterator[QuantizedNode]:
    for node in model.graph:
        if node.op_type not in ("Softmax", "LogSoftmax") or node.name in skipped:
            continue
        value = node.inputs[0]
        if value is not None and not value.is_initializer() and value.dtype in FLOAT_TYPES:
            yield QuantizedNode(str(node.name), node.op_type, "softmax-input", ((0, str(value.name)),))


def _ends_quantized_conv(value: ir.Value | None, layers: set[str]) -> bool:
    producer = value.producer() if value is not None else None
    return (
        producer is not None
        and producer.op_type == "Conv"
        and producer.name in layers
        and value is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _same_shape(node: ir.Node) -> bool:
    first, second = (None if value is None else value.shape for value in node.inputs)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(a == b or _may_be_equal(a, b) for a, b in zip(first, second, strict=True))


def _may_be_equal(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    """Returns whether two unlike dims may turn out equal: one is open and neither is 1, which broadcasts."""
    return not (isinstance(first, int) and isinstance(second, int)) and 1 not in (first, second)


def _in_graph_order(model: ir.Model, nodes: list[QuantizedNode]) -> Iterator[QuantizedNode]:
    by_name = {node.name: node for node in nodes}
    for node in model.graph:
        if node.name in by_name:
            yield by_name[str(node.name)]
