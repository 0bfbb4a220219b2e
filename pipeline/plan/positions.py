"""Whether the tables that a model looks up by position, as of rotary angles, reach as far as its sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.models.signature import TensorSpec
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.fold import refuse_missing_entries
from trtq.pipeline.graph.state import find_batches, find_cache_axes, is_cache

_PLACES = (ir.DataType.INT64, ir.DataType.INT32)
_POSITIONS = re.compile("position", re.IGNORECASE)
_MASK = re.compile("mask", re.IGNORECASE)


def check_positions(
    model: ir.Model, inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Computes where a model looks into its tables for the last tokens, and refuses what is not there.

    Places that are computed from positions and masks alone are checked; others, as those of tokens, are not.

    Args:
        model: With static shapes; what depends on no input is folded.
        inputs: Of the model with its open dims.
        shapes: Of the inputs.

    Yields:
        What cannot be checked, for people.

    Raises:
        ModelError: A table is too short.
    """
    past = _count_past(inputs, shapes)
    for node, table, places in _list_lookups(model):
        needed = _find_inputs(places)
        feeds = {str(value.name): _fill(value, past) for value in needed}
        known = {name: array for name, array in feeds.items() if array is not None}
        if known and len(known) == len(feeds):
            graph = ir.convenience.extract(model.graph, list(needed), [places])
            part = ir.Model(graph, ir_version=model.ir_version)
            try:
                found = run(open_session(part, optimize=False), [str(places.name)], known)[0]
            except ModelError:
                yield f"whether {table.name!r} has an entry for each position is not checked"
                continue
            axis = node.attributes.get_int("axis", 0) if node.op_type == "Gather" else 0
            refuse_missing_entries(node, table, table.shape.numpy()[axis], found)  # type: ignore[union-attr]


def _count_past(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many tokens came before; 0 if no cache tells."""
    caches = [item for item in inputs if is_cache(item.name, item.shape)]
    batches = find_batches(item.shape for item in inputs if item not in caches)
    axes = {item.name: find_cache_axes(item.name, item.shape, batches).positions for item in caches}
    return max((shapes[name][axis] for name, axis in axes.items() if axis is not None), default=0)


def _list_lookups(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """Yields nodes with a constant table of floats, the table, and the places in it that are computed."""
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None and value.dtype is not None]
        if node.op_type not in ("Gather", "RotaryEmbedding"):
            continue
        table = next((value for value in inputs if value.is_initializer() and value.shape), None)
        places = next((value for value in inputs if value.dtype in _PLACES), None)
        if table is None or places is None or places.is_initializer() or table.dtype not in FLOAT_TYPES:
            continue
        yield node, table, places


def _find_inputs(value: ir.Value) -> dict[ir.Value, None]:
    """Returns the inputs of the graph that a value is computed from."""
    found: dict[ir.Value, None] = {}
    seen, todo = {value}, [value]
    while todo:
        current = todo.pop()
        if current.is_graph_input():
            found[current] = None
        producer = current.producer()
        before = [] if producer is None else [item for item in producer.inputs if item is not None]
        todo += [item for item in before if item not in seen]
        seen.update(before)
    return found


def _fill(value: ir.Value, past: int) -> NDArray[Any] | None:
    """Returns positions behind what came before, or a mask of ones; None for another input."""
    if value.shape is None or value.dtype is None:
        return None
    name, shape, dtype = str(value.name), tuple(value.shape.numpy()), value.dtype.numpy()
    if _MASK.search(name):
        return np.ones(shape, dtype)
    if not _POSITIONS.search(name) or not value.dtype.is_integer():
        return None
    return (
        np.broadcast_to(past + np.arange(shape[-1] if shape else 1), shape or (1,))
        .reshape(shape)
        .astype(dtype)
    )
