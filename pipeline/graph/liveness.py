"""How much memory the tensors of a graph take while it runs: which are alive at the same time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from trtq.pipeline.graph.edit import list_bodies
from trtq.pipeline.graph.fold import fold_constants
from trtq.pipeline.graph.foreign_operators import infer_foreign_shapes
from trtq.pipeline.graph.opset import infer_shapes

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Their output is their input's memory under another shape."""
_IN_PLACE = frozenset({
    "Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "Clip", "Sqrt", "Exp", "Neg", "Pow",
    "HardSwish", "HardSigmoid", "LeakyRelu", "PRelu", "Softmax", "LayerNormalization", "BatchNormalization",
    "Where", "Softplus", "Mish", "Elu", "Abs", "Reciprocal", "Min", "Max",
})  # fmt: skip
"""Their output may take the memory of an input of the same size that nobody needs any more."""
_FLOAT = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that tensors take at one time.

    Attributes:
        nbytes: Inputs and outputs of the model included, weights not.
        node: While this node runs.
        unknown: How many tensors have no known size: they are not counted.
    """

    nbytes: int
    node: str
    unknown: int


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """Returns the model for inputs of these shapes, with the shape of every tensor that can be told.

    Args:
        model: It is not changed.
        shapes: By the name of the input.

    Raises:
        ModelError: The shapes contradict the model.
    """
    result = model.clone()
    for value in result.graph.inputs:
        if (shape := shapes.get(str(value.name))) is not None:
            value.shape = ir.Shape(shape)
    for value in result.graph.outputs:
        value.shape = None if value.producer() is not None else value.shape
    result = infer_foreign_shapes(result)
    while any(True for _ in fold_constants(result)):  # what computes shapes is constant now
        infer_shapes(result)
    return result


def find_peak_memory(
    model: ir.Model, float_bytes: int, given: Mapping[ir.Value, int] = MappingProxyType({})
) -> Peak:
    """Returns the peak over the nodes in their order; an engine fuses nodes, and takes scratch memory beside.

    A tensor lives from the node that makes it to its last reader. Inputs and outputs of the model live to the
    end: the caller holds them. Views take no memory; a pointwise operator may write over its input.

    Args:
        model: With static shapes.
        float_bytes: Of an element of the float tensors: 4, or 2.
        given: The sizes of tensors that are held in another format.
    """
    roots, last = _lifetimes(model.graph)
    sizes = {root: given.get(root, count_bytes(root, float_bytes)) for root in set(roots.values())}
    ending: dict[int, list[ir.Value]] = defaultdict(list)
    for root, end in last.items():
        ending[end].append(root)
    alive = {value: sizes[value] or 0 for value in model.graph.inputs}
    now = best = sum(alive.values())
    where = ""
    for index, node in enumerate(model.graph):
        read = [roots[value] for value in node.inputs if value in roots and node.op_type in _IN_PLACE]
        for value in (value for value in node.outputs if roots[value] is value):
            over = (root for root in read if last[root] == index and alive.get(root, -1) == sizes[value])
            now -= alive.pop(next(over, value), 0)
            alive[value] = sizes[value] or 0
            now += alive[value]
        if now > best:
            best, where = now, str(node.name)
        now -= sum(alive.pop(root, 0) for root in ending[index])
    return Peak(best, where, sum(size is None for size in sizes.values()))


def count_bytes(value: ir.Value, float_bytes: int) -> int | None:
    """Returns the size of a tensor; None if its shape or dtype is not known.

    Args:
        value: Of a graph with static shapes.
        float_bytes: Of an element, if it is a float.
    """
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return None
    width = float_bytes if value.dtype in _FLOAT else value.dtype.itemsize
    return math.ceil(math.prod(value.shape.numpy()) * width)


def _lifetimes(graph: ir.Graph) -> tuple[dict[ir.Value, ir.Value], dict[ir.Value, int]]:
    """Returns for every tensor whose memory it is, and for every such owner the place of its last reader."""
    roots = {value: value for value in graph.inputs}
    last = {value: len(graph) for value in graph.inputs}
    for index, node in enumerate(graph):
        for value in _read_by(node):
            if value in roots:
                last[roots[value]] = max(last[roots[value]], index)
        source = node.inputs[0] if node.inputs and node.op_type in _VIEWS else None
        for value in node.outputs:
            roots[value] = roots.get(source, value) if source is not None else value
            end = len(graph) if value.is_graph_output() else index
            last[roots[value]] = max(last.get(roots[value], 0), end)
    return roots, last


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yields what a node reads, also in bodies of its own."""
    for reader in (node, *(inner for body in list_bodies(node) for inner in body.all_nodes())):
        yield from (value for value in reader.inputs if value is not None)
