"""ONNX's Attention (opset 23) where it keeps a cache, of which TensorRT's takes none."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.decoder_attention.parts import (
    Heads,
    NoPlainFormError,
    Writer,
    attend,
    find_causal,
    grow,
    join_heads,
    list_positions,
    mask,
    read_input,
    score,
    split_heads,
)
from trtq.pipeline.graph.edit import GraphEditor

_MASK, _PAST_KEY, _PAST_VALUE, _NONPAD = 3, 4, 5, 6


def is_meant(node: ir.Node) -> bool:
    """Returns whether it is an Attention with a cache, or with one that begins."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return False
    outputs = (value for value in node.outputs[1:3] if value.uses() or value.is_graph_output())
    return read_input(node, _PAST_KEY) is not None or any(outputs)


def unfold(edit: GraphEditor, node: ir.Node) -> None:
    """Puts plain nodes in the place of one.

    Raises:
        NoPlainFormError: It does what the plain nodes do not.
    """
    query, key, value = (read_input(node, place) for place in range(3))
    assert query is not None
    assert key is not None
    assert value is not None
    write = Writer(edit, node, query.dtype or ir.DataType.FLOAT)
    if read_input(node, _NONPAD) is not None:
        raise NoPlainFormError("nonpad_kv_seqlen beside a cache")
    write.refuse_scores()
    counts = _count_heads(write, query, key)
    if query.shape is not None and len(query.shape) == 4:
        queries, keys, values = query, key, value
    else:
        parts = zip(
            (query, key, value), (counts[0], counts[1], counts[1]), ("query", "key", "value"), strict=True
        )
        queries, keys, values = (split_heads(write, item, count, word) for item, count, word in parts)
    past_key, past_value = read_input(node, _PAST_KEY), read_input(node, _PAST_VALUE)
    new, places = list_positions(write, past_key, keys)
    scaled = write.add(
        "Mul", [queries, write.number(_find_scale(write, query, past_key, counts[0]))], "scaled"
    )
    presents = write.find_presents()
    keys = grow(write, past_key, keys, presents[0], "present_key")
    values = grow(write, past_value, values, presents[1], "present_value")
    heads = Heads(scaled, keys, values, *counts)
    probabilities = _weigh(write, score(write, heads, node.attributes.get_float("softcap", 0.0)), new, places)
    result = attend(write, heads, probabilities)
    if len(query.shape or ()) != 4:
        result = join_heads(write, result, "out")
    write.finish(result)


def _count_heads(write: Writer, query: ir.Value, key: ir.Value | None) -> tuple[int, int]:
    """Returns how many heads queries and keys have."""
    names = ("q_num_heads", "kv_num_heads")
    found: list[int] = []
    for name, value in zip(names, (query, key), strict=True):
        given: object = write.node.attributes.get_int(name, 0)
        shape = None if value is None else value.shape
        if not given and shape is not None and len(shape) == 4:
            given = shape[1]
        if not isinstance(given, int) or given < 1:
            raise NoPlainFormError(f"an unknown number of heads ({name})")
        found.append(given)
    return found[0], found[1]


def _find_scale(write: Writer, query: ir.Value, past: ir.Value | None, count: int) -> float:
    """Returns what a product is multiplied with: 1 / sqrt(size of a head) unless it is given."""
    if "scale" in write.node.attributes:
        return write.node.attributes.get_float("scale", 0.0)
    sizes = [(value.shape[-1], len(value.shape)) for value in (past, query) if value and value.shape]
    size = next(((size, rank) for size, rank in sizes if isinstance(size, int)), None)
    if size is None:
        raise NoPlainFormError("heads of unknown size")
    return 1 / math.sqrt(size[0] if size[1] == 4 else size[0] // count)


def _weigh(write: Writer, scores: ir.Value, new: ir.Value, places: ir.Value) -> ir.Value:
    """Returns the probabilities; those of a place that sees nothing are 0."""
    node, given = write.node, read_input(write.node, _MASK)
    seen = find_causal(write, new, places) if node.attributes.get_int("is_causal", 0) else None
    if given is not None and given.dtype is ir.DataType.BOOL:
        seen = given if seen is None else write.add("And", [given, seen], "seen_of_mask")
    elif given is not None:
        scores = write.add("Add", [scores, given], "biased")
    if seen is not None:
        scores = mask(write, scores, seen, "masked")
    wide = ir.DataType(node.attributes.get_int("softmax_precision", int(write.dtype)))
    if wide is not write.dtype:
        scores = write.cast(scores, wide, "wide")
    result = write.add("Softmax", [scores], "softmax", axis=-1)
    if wide is not write.dtype:
        result = write.cast(result, write.dtype, "narrow")
    if given is not None and seen is not None:
        zero = np.array(0.0, write.dtype.numpy())
        result = write.add("Where", [seen, result, zero], "none_of_nothing")
    return result
