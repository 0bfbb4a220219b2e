"""The plain nodes of attention: heads, the cache, the mask, the products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor

LOWEST = -65504.0
"""What a masked score is in place of minus infinity: the softmax makes 0 of it in FP16 and in FP32."""
Input = ir.Value | np.ndarray[Any, Any] | None


class NoPlainFormError(Exception):
    """What a node has that no plain form here does; raised before any of its outputs is replaced."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes nodes before another one, called after it."""

    edit: GraphEditor
    node: ir.Node
    dtype: ir.DataType

    def add(self, op_type: str, inputs: Sequence[Input], word: str, **attributes: Any) -> ir.Value:
        """Returns the output of a new node; arrays become constants."""
        both = f"{self.node.name}/{word}"
        values = [
            self.edit.add_constant(f"{both}_{place}", item) if isinstance(item, np.ndarray) else item
            for place, item in enumerate(inputs)
        ]
        return self.edit.insert(
            op_type, values, attributes, like=ir.Value(), output=both, name=both, before=self.node
        )

    def find_presents(self) -> list[ir.Value | None]:
        """Returns the outputs that hold the new key and the new value, those that the node has."""
        return [self.node.outputs[place] if len(self.node.outputs) > place else None for place in (1, 2)]

    def refuse_scores(self) -> None:
        """Raises NoPlainFormError if something reads the scores, the last output."""
        scores = self.node.outputs[3] if len(self.node.outputs) > 3 else None
        if scores is not None and (scores.uses() or scores.is_graph_output()):
            raise NoPlainFormError("its scores as an output")

    def finish(self, result: ir.Value) -> None:
        """Puts the result in the place of the node's first output; the node that makes it gets its name."""
        self.edit.replace(self.node.outputs[0], result, rename="")
        self.edit.remove(self.node)
        maker = result.producer()
        assert maker is not None
        maker.name = self.node.name

    def number(self, value: float) -> np.ndarray[Any, Any]:
        """Returns a number of the dtype that attention computes in."""
        return np.array(value, self.dtype.numpy())

    def cast(self, value: ir.Value, dtype: ir.DataType, word: str) -> ir.Value:
        """Returns a value in another dtype."""
        return self.add("Cast", [value], word, to=int(dtype))

    def size(self, value: ir.Value, axis: int, word: str) -> ir.Value:
        """Returns a size of a value: int64, shape (1,)."""
        return self.add("Gather", [self.add("Shape", [value], f"{word}_shape"), integers(axis)], word)


@dataclass(frozen=True, slots=True)
class Heads:
    """Query, key and value by heads: (batch, heads, positions, size of a head); the query is scaled."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    num_queries: int
    num_keys: int


def read_input(node: ir.Node, place: int) -> ir.Value | None:
    """Returns an input of a node; None if it has none there."""
    return node.inputs[place] if len(node.inputs) > place else None


def integers(*values: int) -> np.ndarray[Any, Any]:
    """Returns numbers of int64, one-dimensional."""
    return np.array(values, np.int64)


def split_heads(write: Writer, value: ir.Value, count: int, word: str) -> ir.Value:
    """Returns (batch, positions, count * size) as (batch, count, positions, size)."""
    parted = write.add("Reshape", [value, integers(0, 0, count, -1)], f"{word}_parted")
    return write.add("Transpose", [parted], f"{word}_heads", perm=[0, 2, 1, 3])


def join_heads(write: Writer, value: ir.Value, word: str) -> ir.Value:
    """Returns (batch, heads, positions, size) as (batch, positions, heads * size)."""
    turned = write.add("Transpose", [value], f"{word}_turned", perm=[0, 2, 1, 3])
    return write.add("Reshape", [turned, integers(0, 0, -1)], word)


def grow(
    write: Writer, past: ir.Value | None, new: ir.Value, present: ir.Value | None, word: str
) -> ir.Value:
    """Returns the cache and what is new, which is the output of the node from then on."""
    whole = new if past is None else write.add("Concat", [past, new], word, axis=2)
    if present is not None and (present.uses() or present.is_graph_output()):
        write.edit.replace(present, whole, rename="")
    return whole


def list_positions(write: Writer, past: ir.Value | None, new: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Returns the places of what is new, and of all, from 0 on: int64, one-dimensional.

    Args:
        write: Writes the nodes.
        past: (batch, heads, positions, size); None: there is nothing before.
        new: Likewise.
    """
    scalar = integers()
    count = write.size(new, 2, "num_new")
    before = write.size(past, 2, "num_past") if past is not None else write.add("Sub", [count, count], "none")
    total = write.add("Add", [before, count], "num_all")
    ends = [
        write.add("Reshape", [end, scalar], f"{word}_end") for word, end in (("past", before), ("all", total))
    ]
    one, zero = np.array(1, np.int64), np.array(0, np.int64)
    return write.add("Range", [*ends, one], "new_places"), write.add("Range", [zero, ends[1], one], "places")


def find_causal(write: Writer, new: ir.Value, places: ir.Value, window: int = -1) -> ir.Value:
    """Returns which places each new one sees: bool, (new, all); those of the window, itself included."""
    rows = write.add("Unsqueeze", [new, integers(1)], "rows")
    seen = write.add("LessOrEqual", [places, rows], "seen") if window < 0 else None
    if seen is not None:
        return seen
    distance = write.add("Sub", [rows, places], "distance")
    ahead = write.add("GreaterOrEqual", [distance, np.array(0, np.int64)], "not_ahead")
    near = write.add("Less", [distance, np.array(window, np.int64)], "near")
    return write.add("And", [ahead, near], "seen")


def score(write: Writer, heads: Heads, softcap: float) -> ir.Value:
    """Returns the scores: (batch, query heads, new, all). Heads that share a key are rows of one product."""
    keys = write.add("Transpose", [heads.key], "keys", perm=[0, 1, 3, 2])
    query = heads.query
    if heads.num_queries != heads.num_keys:
        query = _gather_rows(write, heads.query, heads.num_keys, 3, "queries")
    scores = write.add("MatMul", [query, keys], "scores")
    if heads.num_queries != heads.num_keys:
        rows = write.size(heads.query, 2, "num_rows")
        sizes: list[Input] = [integers(0, heads.num_queries), rows, integers(-1)]
        scores = write.add("Reshape", [scores, write.add("Concat", sizes, "sizes", axis=0)], "scores_by_head")
    if softcap:
        capped = write.add("Tanh", [write.add("Div", [scores, write.number(softcap)], "below")], "tanh")
        scores = write.add("Mul", [capped, write.number(softcap)], "capped")
    return scores


def attend(write: Writer, heads: Heads, probabilities: ir.Value) -> ir.Value:
    """Returns what the heads see: (batch, query heads, new, size)."""
    if heads.num_queries == heads.num_keys:
        return write.add("MatMul", [probabilities, heads.value], "attended")
    rows = _gather_rows(write, probabilities, heads.num_keys, 3, "probability_rows")
    attended = write.add("MatMul", [rows, heads.value], "attended_rows")
    count = write.size(heads.query, 2, "num_attended")
    sizes: list[Input] = [integers(0, heads.num_queries), count, integers(-1)]
    return write.add("Reshape", [attended, write.add("Concat", sizes, "attended_sizes", axis=0)], "attended")


def mask(write: Writer, scores: ir.Value, seen: ir.Value, word: str) -> ir.Value:
    """Returns the scores with what is not seen as low as numbers go."""
    return write.add("Where", [seen, scores, write.number(LOWEST)], word)


def _gather_rows(write: Writer, value: ir.Value, count: int, last: int, word: str) -> ir.Value:
    """Returns (batch, heads, rows, size) as (batch, count, heads / count * rows, size)."""
    sizes: list[Input] = [integers(0, count, -1), write.size(value, last, f"{word}_width")]
    return write.add("Reshape", [value, write.add("Concat", sizes, f"{word}_sizes", axis=0)], word)
