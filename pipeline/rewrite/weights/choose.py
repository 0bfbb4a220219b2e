"""Which weights are stored in fewer bits, and which keep their precision and why."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.families import LAST_OF_DIFFUSION
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats.blocks import choose_block_size
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import Granularity, PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.axes import choose_granularity, find_channel_axis
from trtq.pipeline.graph.operands import find_operand
from trtq.pipeline.graph.placement import Placement, QuantizedNode, QuantizedWeight
from trtq.pipeline.graph.worth import explain_unequal_matrices

SENSITIVE = rf"(^|[/.:])(lm_head|classifier|score|head)(?![a-z0-9])|{LAST_OF_DIFFUSION}"
"""The last layers of language models, diffusion transformers and classifiers: little memory, much harm."""
_PLACES = {"MatMul": (0, 1), "Gemm": (1,), "Gather": (0,), "Conv": (1,)}
"""The inputs that are weights where they are constant."""
_PRODUCTS = ("Gemm", "MatMul")
_RANK_OF_EXPERTS = 3
_FEWEST = 4096  # elements; below it the extra nodes cost more than they save


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """A weight that is stored in fewer bits, and all nodes that read it."""

    tensor: str
    shape: tuple[int, ...]
    encoding: Encoding
    readers: tuple[QuantizedNode, ...]

    @property
    def num_elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> PerBlock:
        """The blocks of a format that has them."""
        assert isinstance(self.encoding.granularity, PerBlock)
        return self.encoding.granularity


def choose_weights(
    model: ir.Model,
    scheme: WeightScheme,
    skip: Sequence[str] = (),
    taken: Collection[str] = (),
    *,
    by_matrix: bool = True,
) -> Placement:
    """Returns which weights of MatMul, Gemm and Gather, and in 8 bits of Conv, are stored in fewer bits.

    A weight is chosen if every node that reads it can take it in the same form. Blocks lie along the axis
    that is summed over (along the row of an embedding), since the products of a block share its scale. A kept
    weight is told by the nodes that read it.

    Args:
        model: The float graph; its nodes have unique names.
        scheme: The format, and whether sensitive names are kept.
        skip: Regular expressions searched in the names of nodes and of weights.
        taken: Names of weights that are quantized in another way.
        by_matrix: Whether weights in 8 bits of several unequal matrices, such as experts, have scales for
            each matrix and output channel; else they are kept.
    """
    chosen: list[QuantizedNode] = []
    kept: list[KeptNode] = []
    for value in _weights(model):
        if value.name in taken:
            continue
        own = scheme.choose((str(value.name), *(str(node.name) for node in value.consumers())))
        patterns = (*skip, *([SENSITIVE] if own.keep_sensitive else []))
        decision = _decide(value, own, patterns, by_matrix)
        if isinstance(decision, str):
            readers = (node for node in value.consumers() if node.op_type in _PLACES)
            kept += [KeptNode(str(node.name), node.op_type, decision) for node in readers]
        else:
            held = LayerScheme("weight-alone", weight=decision)
            chosen += [
                QuantizedNode(str(use.node.name), use.node.op_type, held, (), (use.idx, str(value.name)))
                for use in value.uses()
            ]
    return Placement(tuple(chosen), tuple(kept))


def choose_stored(
    model: ir.Model, placement: Placement, scheme: WeightScheme, skip: Sequence[str] = ()
) -> Placement:
    """Returns the placement with the weights of products stored in fewer bits where they can be (W4A8).

    Why others are not is told of them as kept, though their layers are quantized.

    Args:
        model: The float graph.
        placement: Of 8 bits.
        scheme: A format with blocks.
        skip: As for `choose_weights`.
    """
    patterns = (*skip, *([SENSITIVE] if scheme.keep_sensitive else []))
    quantized: list[QuantizedNode] = []
    kept: list[KeptNode] = []
    for node in placement.quantized:
        weight = node.held_weight
        if weight is None or not node.activations or node.op_type not in _PRODUCTS:
            quantized.append(node)
            continue
        decision = _decide(model.graph.initializers[weight.tensor], scheme, patterns, by_matrix=False)
        if isinstance(decision, str):
            kept.append(KeptNode(node.name, node.op_type, decision))
            quantized.append(node)
        else:
            held = replace(weight.encoding, stored=decision)
            quantized.append(replace(node, scheme=replace(node.scheme, weight=held)))
    return Placement(tuple(quantized), tuple(kept))


def group_by_weight(model: ir.Model, placement: Placement) -> tuple[ChosenWeight, ...]:
    """Returns the weights of the float graph that a placement stores in fewer bits, each with its readers."""
    return _group(model, ((node, node.held_weight) for node in placement.weights_alone))


def group_stored(model: ir.Model, placement: Placement) -> tuple[ChosenWeight, ...]:
    """Returns the same, and the weights that are stored in fewer bits than they are computed with."""

    def find(node: QuantizedNode) -> QuantizedWeight | None:
        weight = node.held_weight
        if weight is None or not node.activations:
            return weight
        stored = weight.encoding.stored
        return None if stored is None else QuantizedWeight(weight.tensor, stored)

    return _group(model, ((node, find(node)) for node in placement.quantized))


def _group(
    model: ir.Model, nodes: Iterable[tuple[QuantizedNode, QuantizedWeight | None]]
) -> tuple[ChosenWeight, ...]:
    readers: dict[QuantizedWeight, list[QuantizedNode]] = {}
    for node, weight in nodes:
        if weight is not None:
            readers.setdefault(weight, []).append(node)
    return tuple(
        ChosenWeight(held.tensor, _shape(model.graph.initializers[held.tensor]), held.encoding, tuple(users))
        for held, users in readers.items()
    )


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    """Yields the initializers that a node of the graph takes as a weight, in the order of these nodes."""
    read = (node.inputs[place] for node in model.graph for place in _PLACES.get(node.op_type, ()))
    for value in dict.fromkeys(read):
        if value is not None and value.is_initializer() and value.dtype in FLOAT_TYPES:
            yield value


def _decide(
    value: ir.Value, scheme: WeightScheme, patterns: Sequence[str], by_matrix: bool
) -> Encoding | str:
    """Returns how a weight is stored, or why it is kept."""
    shape = _shape(value)
    if math.prod(shape) < _FEWEST:
        return f"its weight has only {math.prod(shape)} elements"
    names = (str(value.name), *(str(node.name) for node in value.consumers()))
    for pattern in patterns:
        if found := next((name for name in names if re.search(pattern, name)), None):
            what = "its name is a sensitive one" if pattern == SENSITIVE else f"skipped by {pattern!r}"
            return what if found == names[0] or len(names) == 2 else f"{what} (shared with {found})"
    if value.is_graph_output():
        return "its weight is an output of the model as well"
    wanted = {_granularity(value, use.node, use.idx, scheme, by_matrix) for use in value.uses()}
    if reason := next((item for item in wanted if isinstance(item, str)), None):
        return reason if len(value.uses()) == 1 else f"its weight is shared, and of another reader {reason}"
    if len(wanted) > 1:
        return f"its weight is shared by {', '.join(names[1:])}, which would need different scales"
    granularity = wanted.pop()
    assert not isinstance(granularity, str)
    if isinstance(granularity, PerBlock) and scheme.number_format.block_sizes:
        size = choose_block_size(shape[granularity.axis], granularity.size)
        if size is None:
            return f"no block of 16 to {granularity.size} divides its {shape[granularity.axis]} inputs"
        granularity = PerBlock(granularity.axis, size)
    return Encoding(scheme.number_format, granularity, has_coded_scales=scheme.double_quantization)


def _granularity(
    value: ir.Value, node: ir.Node, place: int, scheme: WeightScheme, by_matrix: bool
) -> Granularity | str:
    """Returns how this reader wants the weight's scales, or why it cannot take the weight."""
    rank = len(value.shape or ())
    if place not in _PLACES.get(node.op_type, ()) or node.graph is not value.graph:
        return f"{node.op_type} {node.name!r} takes it as no weight"
    if node.op_type == "Gather" and (rank != 2 or node.attributes.get_int("axis", 0) != 0):
        return f"Gather {node.name!r} takes no rows of a table from it"
    output = 0 if node.op_type == "Gather" else find_channel_axis(node, place, rank)
    if not scheme.number_format.block_sizes:
        unequal = explain_unequal_matrices(value) if output is None else ""
        if unequal and by_matrix and node.op_type == "MatMul" and rank == _RANK_OF_EXPERTS:
            summed = rank - 1 - place  # the last of a first operand
            return PerBlock(summed, _shape(value)[summed])  # scales by matrix and output channel
        return unequal or choose_granularity(output)
    if node.op_type == "Conv":
        return "TensorRT has no INT4 or NF4 for convolutions"
    if node.op_type in _PRODUCTS and find_operand(node.inputs[1 - place]) is not None:
        return "its activation is already quantized, and TensorRT then computes blocks incorrectly"
    if rank != 2 or output is None:
        return f"its weight has {rank} axes, blocks need 2"
    return PerBlock(1 - output, scheme.block_size)


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(value.shape.numpy()) if value.shape is not None else ()
