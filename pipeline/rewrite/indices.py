"""The nodes that compute with indices in float: FP16 has all whole numbers up to 2048, BF16 up to 256."""

from __future__ import annotations

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.rewrite.positions import ARITHMETIC, ONE_OPERAND

_MAKERS = {"ArgMax": 0, "ArgMin": 0, "NonMaxSuppression": 0, "NonZero": 0, "TopK": 1}
"""Which output of these operators holds indices."""
_ALONG = ("ArgMax", "ArgMin", "TopK")
"""Those whose indices lie along one axis of the input."""
_LAST = {"TopK": -1}


def find_index_nodes(graph: ir.Graph, largest: int) -> set[ir.Node]:
    """Returns what computes in float with nothing but constants and indices that may exceed a number.

    So do models that turn the place of a maximum in a heat map into a row and a column.

    Args:
        graph: With the shapes of its tensors.
        largest: The largest whole number below which the float format has all others.
    """
    indices, sizes = set[ir.Value](), set[ir.Value]()
    found: set[ir.Node] = set()
    for node in graph:  # in topological order
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _MAKERS:
            if not _is_short(node, largest):
                indices.add(node.outputs[_MAKERS[node.op_type]])
        elif node.op_type in ("Shape", "Size"):
            sizes.update(node.outputs)
        elif node.op_type in ARITHMETIC and (read := _list_operands(node)):
            others = [value for value in read if value not in indices]
            if not all(value.is_initializer() or value in sizes for value in others):
                continue
            (sizes if len(others) == len(read) else indices).update(node.outputs)
            if len(others) < len(read) and any(value.dtype in FLOAT_TYPES for value in node.outputs):
                found.add(node)
    return found


def _is_short(node: ir.Node, largest: int) -> bool:
    """Whether an axis is known to have no more elements, so that no index exceeds the number."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if node.op_type not in _ALONG or shape is None:
        return False
    size = shape[node.attributes.get_int("axis", _LAST.get(node.op_type, 0))]
    return isinstance(size, int) and size <= largest


def _list_operands(node: ir.Node) -> list[ir.Value]:
    """Returns what a node computes with, without truths, axes and the like."""
    read = node.inputs[: 1 if node.op_type in ONE_OPERAND else None]
    return [value for value in read if value is not None and value.dtype is not ir.DataType.BOOL]
