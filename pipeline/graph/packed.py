"""Query, key and value of attention, packed in one product: TensorRT-RTX multiplies there in float.

It takes such a product apart before it looks for kernels, and the three parts read dequantized codes. That
was measured with the builder of TensorRT-RTX 1.7.1, in INT8 and FP8, beside FP16 and FP32, for all its
targets, and whether or not the attention has codes itself. It needs all of

- one product, perhaps with a bias, whose three thirds become the query, the key and the value;
- heads, that is a Reshape before or after the product is parted;
- nothing computed between the two products but a multiplication of one of the thirds with a constant.

Two thirds of a product, thirds within each head, attention with one head and separate products run on codes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from trtq.pipeline.graph.operands import find_constant

REASON = "packed: TensorRT-RTX multiplies in float where one product gives query, key and value"
_PRODUCTS = ("Gemm", "MatMul")
_PARTS = ("Gather", "Slice", "Split")
_MOVES = frozenset({*_PARTS, "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_NUM_PARTS = 3
_CHANNELS, _RANKS = 2, (3, 5)
"""The axis that is parted of (samples, tokens, channels), or (samples, tokens, parts, heads, channels)."""


@dataclass(frozen=True, slots=True)
class _Third:
    """Where an operand of attention comes from.

    Attributes:
        product: What it is taken out of.
        start: From which place in the channels on.
        num_scalings: How often it is multiplied with a constant.
    """

    product: ir.Node
    start: int
    num_scalings: int


def find_packed(graph: ir.Graph) -> set[str]:
    """Returns the names of the products that give query, key and value at once."""
    found: dict[ir.Node, set[_Third]] = {}
    for value in _list_multiplied(graph):
        if (third := _trace(value)) is not None:
            found.setdefault(third.product, set()).add(third)
    return {str(product.name) for product, thirds in found.items() if _are_packed(thirds)}


def _list_multiplied(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields what is multiplied with another activation."""
    for node in graph:
        values = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if node.op_type == "MatMul" and len(values) == len(node.inputs):
            yield from values


def _are_packed(thirds: Collection[_Third]) -> bool:
    starts = sorted({third.start for third in thirds})
    is_whole = len(starts) == len(thirds) == _NUM_PARTS and starts[0] == 0 and starts[2] == 2 * starts[1]
    return is_whole and sum(third.num_scalings for third in thirds) <= 1


def _trace(value: ir.Value | None) -> _Third | None:
    """Returns which third of a product a value comes from; None if it comes from no third of one."""
    path: list[ir.Value] = []
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _PRODUCTS:
            return _read_path(node, path)
        path.append(value)
        value = _find_data(node)
    return None


def _find_data(node: ir.Node) -> ir.Value | None:
    """Returns what a node moves, or adds a constant to or multiplies with one; None if it does more."""
    if node.op_type in _MOVES:
        return node.inputs[0]
    computed = [item for item in node.inputs if item is not None and not item.is_initializer()]
    return computed[0] if node.op_type in ("Add", "Mul") and len(computed) == 1 else None


def _read_path(product: ir.Node, path: Sequence[ir.Value]) -> _Third | None:
    """Returns the third that is taken behind a product; `path` leads up to it and begins at the operand."""
    makers = [node for value in path if (node := value.producer()) is not None]
    place = max((index for index, node in enumerate(makers) if node.op_type in _PARTS), default=None)
    op_types = {node.op_type for node in makers[:place]}
    if place is None or "Add" in op_types or not any(node.op_type == "Reshape" for node in makers):
        return None
    start = _START[makers[place].op_type](path[place])
    if start is None or not _parts_channels(makers[place], makers[place + 1 :], product):
        return None
    return _Third(product, start, sum(node.op_type == "Mul" for node in makers[:place]))


def _parts_channels(parting: ir.Node, before: Sequence[ir.Node], product: ir.Node) -> bool:
    """Whether a node parts the channels of a product into contiguous thirds, behind these nodes."""
    axis, order = _find_axis(parting), tuple[int, ...]()
    if axis is None:
        return False
    for node in before:
        if node.op_type == "Transpose":
            order = tuple(node.attributes.get_ints("perm", ()))
            if not -len(order) <= axis < len(order):
                return False
            axis = order[axis]
        elif node.op_type == "Reshape":
            rank = len(order) or _find_rank(node)
            return rank in _RANKS and axis in (_CHANNELS, _CHANNELS - rank)
        elif node.op_type != "Add":
            return False
    shape = product.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _find_rank(reshape: ir.Node) -> int:
    """Returns how many axes a Reshape makes; 0 if the graph does not tell."""
    shape, made = find_constant(reshape, 1), reshape.outputs[0].shape
    return shape.size if shape is not None else len(made or ())


def _find_axis(parting: ir.Node) -> int | None:
    if parting.op_type != "Slice":
        return parting.attributes.get_int("axis", 0)
    axes = find_constant(parting, 3)
    return None if axes is None or axes.size != 1 else int(axes.item())


def _start_of_split(value: ir.Value) -> int | None:
    node = value.producer()
    assert node is not None
    sizes = find_constant(node, 1) if len(node.inputs) > 1 else None
    is_even = len(node.outputs) == _NUM_PARTS and (sizes is None or len({*sizes.tolist()}) == 1)
    return value.index() if is_even else None


def _read_start(value: ir.Value) -> int | None:
    """Returns the one index that a Slice begins at, or that a Gather takes."""
    node = value.producer()
    assert node is not None
    found = find_constant(node, 1)
    return None if found is None or found.size != 1 else int(found.item())


_START: dict[str, Callable[[ir.Value], int | None]] = {
    "Gather": _read_start,
    "Slice": _read_start,
    "Split": _start_of_split,
}
