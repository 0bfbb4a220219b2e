"""What the outputs of a model are made of: of boxes and scores in one tensor, the louder hide the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeAlias

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES

_Parts: TypeAlias = tuple[tuple[ir.Value, ...], ...]
PASSED_ON = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""What they make has the values of their first input."""
_SQUASHED = ("Softmax", "Sigmoid", "LogSoftmax")
_READ_NO_VALUES = ("Shape", "Size")
_MOST_PARTS = 8
"""Of one Concat: more are the steps of a loop, or patches, and not boxes and scores."""


def list_parts(value: ir.Value) -> _Parts:
    """Returns the parts that are joined, at last, to give the value; only itself where no Concat makes it.

    A part is one tensor; or, where several were joined alike before they were joined to each other, those of
    the same place: of scales with boxes and scores each, all boxes and all scores. A scale without an object
    would say nothing alone.
    """
    known: dict[ir.Value, _Parts] = {}
    todo = [value]
    while todo:
        node = _maker(todo[-1])
        joined = [item for item in node.inputs if item is not None] if node and joins(node) else []
        if missing := [item for item in joined if item not in known]:
            todo += missing
        else:
            item = todo.pop()
            known[item] = _merge([known[part] for part in joined]) if joined else ((item,),)
    return known[value]


def _merge(found: Sequence[_Parts]) -> _Parts:
    """Returns the parts of what is joined of tensors with these parts."""
    alike = [tuple(dict.fromkeys(chain(*groups))) for groups in zip(*found, strict=False)]
    is_alike = len(found[0]) > 1 and len({len(parts) for parts in found}) == 1
    if is_alike and sum(map(len, alike)) == len({*chain(*alike)}):  # none in two places
        return tuple(alike)
    return tuple((item,) for item in dict.fromkeys(chain(*chain(*found))))


def list_judged_outputs(model: ir.Model) -> tuple[str, ...]:
    """Returns the tensors to judge by: float outputs, their parts, and what is squashed or picked from.

    Saturated scores hide what is lost; where they are not saturated, only they tell what it matters. An
    index of a class says nothing until it changes: the scores that it is picked from are judged instead.
    """
    values = [seen for value in model.graph.outputs for seen in _walk_back(value)]
    return tuple(dict.fromkeys(str(value.name) for value in values if is_computed(value)))


def is_computed(value: ir.Value) -> bool:
    """Whether a value is float and comes of a node: what is given loses nothing."""
    node = value.producer()
    return node is not None and node.op_type != "Constant" and value.dtype in FLOAT_TYPES


def joins(node: ir.Node | None) -> bool:
    """Whether a node puts a few tensors into one."""
    return node is not None and node.op_type == "Concat" and len(node.inputs) <= _MOST_PARTS


def is_joined(value: ir.Value) -> bool:
    """Whether a few tensors were put together to give the value, before others changed its shape."""
    return joins(_maker(value))


def _walk_back(value: ir.Value) -> Iterator[ir.Value]:
    """Yields a value and what it is joined, squashed or picked from, in the order of inputs, each once."""
    seen: set[ir.Value] = set()
    todo = [value]
    while todo:
        if (value := todo.pop()) in seen:
            continue
        seen.add(value)
        yield value
        todo += [before for before in reversed(_list_sources(value)) if before is not None]


def _list_sources(value: ir.Value) -> Sequence[ir.Value | None]:
    """Returns what a value is judged by beside itself: tensors that are joined, squashed, or picked from."""
    if value.dtype is not None and value.dtype not in FLOAT_TYPES:
        node = value.producer()
        return () if node is None or node.op_type in _READ_NO_VALUES else node.inputs
    node = _maker(value)
    return node.inputs if node is not None and (joins(node) or node.op_type in _SQUASHED) else ()


def _maker(value: ir.Value) -> ir.Node | None:
    """Returns the node that computes the values, before they are put into another shape."""
    node = value.producer()
    while node is not None and node.op_type in PASSED_ON:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node
