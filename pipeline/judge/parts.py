"""What the outputs of a model are made of: of boxes and scores in one tensor, the louder hide the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES

_PASSED_ON = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_SQUASHED = ("Softmax", "Sigmoid", "LogSoftmax")
_MOST_PARTS = 8
"""Of one Concat: more are the steps of a loop, or patches, and not boxes and scores."""


def find_parts(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    """Returns the tensors that are joined, at last, to give each output; only outputs that a Concat makes."""
    found = {
        str(value.name): _names(part for part in _walk_back(value, _joins) if not _joins(_maker(part)))
        for value in model.graph.outputs
    }
    return {name: parts for name, parts in found.items() if len(parts) > 1}


def list_judged_outputs(model: ir.Model) -> tuple[str, ...]:
    """Returns the tensors to judge by: the float outputs, their parts, and what is squashed to give them.

    Saturated scores hide what is lost; where they are not saturated, only they tell what it matters.
    """
    return _names(seen for value in model.graph.outputs for seen in _walk_back(value, _joins_or_squashes))


def _names(values: Iterator[ir.Value]) -> tuple[str, ...]:
    """Returns the name of each that is float and computed, once."""
    computed = (value for value in values if value.producer() is not None and value.dtype in FLOAT_TYPES)
    return tuple(dict.fromkeys(str(value.name) for value in computed))


def _walk_back(value: ir.Value, follows: Callable[[ir.Node | None], bool]) -> Iterator[ir.Value]:
    """Yields a value and what such nodes make it of, in the order of their inputs, each once."""
    seen: set[ir.Value] = set()
    todo = [value]
    while todo:
        if (value := todo.pop()) in seen:
            continue
        seen.add(value)
        yield value
        node = _maker(value)
        if node is not None and follows(node):
            todo += [before for before in reversed(node.inputs) if before is not None]


def _joins(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Concat" and len(node.inputs) <= _MOST_PARTS


def _joins_or_squashes(node: ir.Node | None) -> bool:
    return _joins(node) or (node is not None and node.op_type in _SQUASHED)


def _maker(value: ir.Value) -> ir.Node | None:
    """Returns the node that computes the values, before they are put into another shape."""
    node = value.producer()
    while node is not None and node.op_type in _PASSED_ON:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node
