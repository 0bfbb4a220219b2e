"""Which tensors hold no negative number, and which quotients are weighted means."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from trtq.calibrators.node_facts import STANDARD, find_axes, list_dims, made_by, read_constant
from trtq.models.tensors import iterate_values

_POSITIVE = (
    "Abs", "Exp", "HardSigmoid", "Hardmax", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid",
    "Softmax", "Softplus", "Sqrt",
)  # fmt: skip
"""What they make of floats is never negative."""
_POSITIVE_INTEGERS = ("Hardmax", "Relu")
"""Sums and squares of integers wrap around."""
_KEPT = (
    "AveragePool", "Cast", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "Identity",
    "ReduceMean", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""What they make is not negative if their first input is not."""
_ALL = ("Add", "Concat", "Max", "Mul", "Sum")
"""What they make is not negative if none of their inputs is."""
_DEEPEST = 16
"""How many nodes are looked through."""
_UNSIGNED = (
    ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """What a quotient sum(x * w) / max(sum(w), least) takes the mean of.

    Attributes:
        value: x, which bounds the quotient if no weight is negative.
        inputs: The inputs of the model of which none may be negative for that.
    """

    value: str
    inputs: Collection[str]


def list_deciding(value: ir.Value | None, depth: int = _DEEPEST) -> set[str] | None:
    """Returns the inputs of the model that decide whether a tensor holds negative numbers.

    If none of these does, neither does the tensor. An empty set: it never does. None: nothing is known.
    """
    if value is None or not depth:
        return None
    if value.const_value is not None:
        return set() if all((piece >= 0).all() for piece in iterate_values(value.const_value)) else None
    if value.dtype in _UNSIGNED:
        return set()
    node = value.producer()
    if node is None:
        return {str(value.name)} if value.is_graph_input() else None
    kind = node.op_type if node.domain in STANDARD else ""
    low = read_constant(node, 1) if kind == "Clip" else None
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    if kind in (_POSITIVE if is_float else _POSITIVE_INTEGERS) or (low is not None and (low >= 0).all()):
        return set()
    is_moved = kind not in ("Cast", "ReduceSum", *_ALL)
    if value.dtype is None or not (is_moved or is_float):  # integers wrap around
        return None
    power = read_constant(node, 1) if kind == "Pow" and is_float else None
    is_even = power is not None and bool((power % 2 == 0).all())
    if is_even or (kind == "Mul" and node.inputs[0] is node.inputs[1]):
        return set()
    if kind in _KEPT:
        return list_deciding(node.inputs[0], depth - 1)
    found = [list_deciding(item, depth - 1) for item in node.inputs] if kind in _ALL else [None]
    known = [item for item in found if item is not None]
    return set().union(*known) if len(known) == len(found) else None


def find_mean(node: ir.Node) -> WeightedMean | None:
    """Returns what a Div is the mean of, as sentence encoders end with: masked tokens count nothing."""
    total = made_by(node.inputs[0], "ReduceSum") if node.op_type == "Div" else None
    product = total and made_by(total.inputs[0], "Mul")
    clip = made_by(node.inputs[1], "Clip") if product else None
    weights = clip and made_by(clip.inputs[0], "ReduceSum")
    if not (total and product and clip and weights):
        return None
    least = read_constant(clip, 1)
    shared = [weights.inputs[0] is item for item in product.inputs]
    alike = find_axes(total) == find_axes(weights) and all(
        total.attributes.get_int(name, other) == weights.attributes.get_int(name, other)
        for name, other in (("keepdims", 1), ("noop_with_empty_axes", 0))
    )
    inputs = list_deciding(weights.inputs[0])
    is_open = len(clip.inputs) < 3 or clip.inputs[2] is None  # else the weights may add up to more
    if least is None or not (least > 0).all() or shared.count(True) != 1 or not alike or inputs is None:
        return None
    if not is_open:
        return None
    other = product.inputs[shared.index(False)]
    ours, theirs, axes = list_dims(other), list_dims(weights.inputs[0]), find_axes(total)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    places = range(len(ours)) if axes is None else axes
    are_whole = all(ours[place] is not None and ours[place] == theirs[place] for place in places)
    return WeightedMean(str(other.name), inputs) if are_whole and other is not None else None
