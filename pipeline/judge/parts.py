"""What the outputs of a model are made of: of boxes and scores in one tensor, the louder hide the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES

_PASSED_ON = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_SQUASHED = ("Softmax", "Sigmoid", "LogSoftmax")
_MOST_PARTS = 8
"""Of one Concat: more are the steps of a loop, or patches, and not boxes and scores."""


def find_parts(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    """Returns the tensors that are joined, at last, to give each output; only outputs that a Concat makes."""
    found = {str(value.name): _names(_joined(value)) for value in model.graph.outputs}
    return {name: parts for name, parts in found.items() if len(parts) > 1}


def list_judged_outputs(model: ir.Model) -> tuple[str, ...]:
    """Returns the tensors to judge by: the float outputs, their parts, and what is squashed to give them.

    Saturated scores hide what is lost; where they are not saturated, only they tell what it matters.
    """
    return _names(seen for value in model.graph.outputs for seen in (value, *_behind(value)))


def _names(values: Iterator[ir.Value]) -> tuple[str, ...]:
    """Returns the name of each that is float and computed, once."""
    computed = (value for value in values if value.producer() is not None and value.dtype in FLOAT_TYPES)
    return tuple(dict.fromkeys(str(value.name) for value in computed))


def _joined(value: ir.Value) -> Iterator[ir.Value]:
    node = _maker(value)
    if node is None or not _joins(node):
        yield value
        return
    for part in node.inputs:
        if part is not None:
            yield from _joined(part)


def _joins(node: ir.Node) -> bool:
    return node.op_type == "Concat" and len(node.inputs) <= _MOST_PARTS


def _behind(value: ir.Value) -> Iterator[ir.Value]:
    """Yields the parts of a value, and what is squashed to give it or them."""
    node = _maker(value)
    if node is None or not (_joins(node) or node.op_type in _SQUASHED):
        return
    for before in node.inputs:
        if before is not None:
            yield before
            yield from _behind(before)


def _maker(value: ir.Value) -> ir.Node | None:
    """Returns the node that computes the values, before they are put into another shape."""
    node = value.producer()
    while node is not None and node.op_type in _PASSED_ON:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node
