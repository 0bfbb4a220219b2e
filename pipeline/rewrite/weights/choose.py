"""Which weights are stored in fewer bits, and which keep their precision and why."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from trtq.kept import KeptNode
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats.blocks import choose_block_size
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import find_channel_axis

SENSITIVE = r"(^|[/.:])(lm_head|proj_out|norm_out|classifier|score|head)(?![a-z0-9])"
"""The last layers of language models, diffusion transformers and classifiers: little memory, much harm."""
_PLACES = {"MatMul": (0, 1), "Gemm": (1,), "Gather": (0,), "Conv": (1,)}
"""The inputs that are weights where they are constant."""
_FEWEST = 4096  # elements; below it the extra nodes cost more than they save


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that reads a weight, and the place of its input."""

    node: str
    op_type: str
    place: int


@dataclass(frozen=True, slots=True)
class ChosenWeight:
    """A weight that is stored in fewer bits.

    Attributes:
        tensor: Its name.
        shape: Its shape.
        axis: For INT4 and NF4 the axis that blocks lie along; else that of the scales, None for one.
        block_size: For INT4 and NF4, elements to a scale; else 0.
        readers: All nodes that read it.
    """

    tensor: str
    shape: tuple[int, ...]
    axis: int | None
    block_size: int
    readers: tuple[Reader, ...]

    @property
    def num_elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightPlacement:
    """The decision for every weight, in graph order; a kept one is told by the nodes that read it."""

    chosen: tuple[ChosenWeight, ...]
    kept: tuple[KeptNode, ...]


def choose_weights(
    model: ir.Model, scheme: WeightScheme, skip: Sequence[str] = (), taken: Collection[str] = ()
) -> WeightPlacement:
    """Returns which weights of MatMul, Gemm and Gather, and in 8 bits of Conv, are stored in fewer bits.

    A weight is chosen if every node that reads it can take it in the same form. Blocks lie along the axis
    that is summed over (along the row of an embedding), since the products of a block share its scale.

    Args:
        model: The float graph; its nodes have unique names.
        scheme: The format.
        skip: Regular expressions searched in the names of nodes and of weights.
        taken: Names of weights that are quantized in another way.
    """
    patterns = (*skip, *([SENSITIVE] if scheme.keep_sensitive else []))
    chosen: list[ChosenWeight] = []
    kept: list[KeptNode] = []
    for value in _weights(model):
        if value.name in taken:
            continue
        decision = _decide(value, scheme, patterns)
        if isinstance(decision, ChosenWeight):
            chosen.append(decision)
        else:
            kept += [
                KeptNode(str(node.name), node.op_type, decision)
                for node in value.consumers()
                if node.op_type in _PLACES
            ]
    return WeightPlacement(tuple(chosen), tuple(kept))


def find_unmatched_names(model: ir.Model, patterns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each pattern that is found in no name of a node or weight, with the node names nearest to it."""
    nodes = [str(node.name) for node in model.graph]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in (*nodes, *model.graph.initializers)):
            yield pattern, difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.3)


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    """Yields the initializers that a node of the graph takes as a weight, in the order of these nodes."""
    seen: set[ir.Value] = set()
    for node in model.graph:
        for place in _PLACES.get(node.op_type, ()):
            value = node.inputs[place]
            if (
                value is not None
                and value.is_initializer()
                and value not in seen
                and value.dtype in FLOAT_TYPES
            ):
                seen.add(value)
                yield value


def _decide(value: ir.Value, scheme: WeightScheme, patterns: Sequence[str]) -> ChosenWeight | str:
    """Returns the weight as chosen, or why it is kept."""
    shape = tuple(value.shape.numpy()) if value.shape is not None else ()
    if math.prod(shape) < _FEWEST:
        return f"its weight has only {math.prod(shape)} elements"
    names = (str(value.name), *(str(node.name) for node in value.consumers()))
    for pattern in patterns:
        if found := next((name for name in names if re.search(pattern, name)), None):
            what = "its name is a sensitive one" if pattern == SENSITIVE else f"skipped by {pattern!r}"
            return what if found == names[0] or len(names) == 2 else f"{what} (shared with {found})"
    if value.is_graph_output():
        return "its weight is an output of the model as well"
    axes = {_axis(value, use.node, use.idx, scheme) for use in value.uses()}
    if reason := next((axis for axis in axes if isinstance(axis, str)), None):
        return reason if len(value.uses()) == 1 else f"its weight is shared, and of another reader {reason}"
    if len(axes) > 1:
        return f"its weight is shared by {', '.join(names[1:])}, which would need different scales"
    axis = next(iter(axes))
    assert not isinstance(axis, str)
    readers = tuple(Reader(str(use.node.name), use.node.op_type, use.idx) for use in value.uses())
    if scheme.is_per_channel:
        return ChosenWeight(names[0], shape, axis, 0, readers)
    assert axis is not None
    size = choose_block_size(shape[axis], scheme.block_size)
    if size is None:
        return f"no block of 16 to {scheme.block_size} divides its {shape[axis]} inputs"
    return ChosenWeight(names[0], shape, axis, size, readers)


def _axis(value: ir.Value, node: ir.Node, place: int, scheme: WeightScheme) -> int | str | None:
    """Returns the axis of blocks or, for INT8, of scales; or why this reader cannot take the weight."""
    rank = len(value.shape or ())
    if place not in _PLACES.get(node.op_type, ()) or node.graph is not value.graph:
        return f"{node.op_type} {node.name!r} takes it as no weight"
    if node.op_type == "Gather" and (
        rank != 2 or ("axis" in node.attributes and node.attributes["axis"].as_int())
    ):
        return f"Gather {node.name!r} takes no rows of a table from it"
    if scheme.is_per_channel:
        return 0 if node.op_type == "Gather" else find_channel_axis(node, place, rank)
    if node.op_type == "Conv":
        return "TensorRT has no INT4 or NF4 for convolutions"
    if rank != 2:
        return f"its weight has {rank} axes, blocks need 2"
    output = 0 if node.op_type == "Gather" else find_channel_axis(node, place, rank)
    return None if output is None else 1 - output
