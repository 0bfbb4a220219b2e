"""ONNX Runtime's GroupQueryAttention: its cache, its rotation by position, its window."""

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
    integers,
    join_heads,
    list_positions,
    mask,
    read_input,
    score,
    split_heads,
)
from trtq.pipeline.graph.edit import GraphEditor

_UNKNOWN = ("smooth_softmax", "qk_output", "k_quant_type", "v_quant_type")
_SINK, _KEY_SCALE, _VALUE_SCALE = 11, 12, 13
"""Inputs that no plain form here has."""


def is_meant(node: ir.Node) -> bool:
    """Returns whether it is a GroupQueryAttention."""
    return (node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention")


def unfold(edit: GraphEditor, node: ir.Node) -> None:
    """Puts plain nodes in the place of one.

    ONNX Runtime takes as many tokens of the cache as seqlens_k says, text by text. Here they are all; where
    there is a cache and seqlens_k says another number, the scores are infinite, so that the outputs are NaN.

    Raises:
        NoPlainFormError: It does what the plain nodes do not.
    """
    query = node.inputs[0]
    assert query is not None
    write = Writer(edit, node, query.dtype or ir.DataType.FLOAT)
    _refuse_unknown(write)
    past_key, past_value, lengths = (read_input(node, place) for place in (3, 4, 5))
    count, shared = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    if count < 1 or shared < 1 or count % shared:
        raise NoPlainFormError(f"{count} heads that share {shared} keys")
    queries, keys, values = _part(write, query, count, shared)
    new, places = list_positions(write, past_key, keys)
    if node.attributes.get_int("do_rotary", 0):
        queries, keys = (_rotate(write, item, new, word) for item, word in ((queries, "q"), (keys, "k")))
    scaled = write.add("Mul", [queries, write.number(_find_scale(write, count, shared))], "scaled")
    presents = write.find_presents()
    keys = grow(write, past_key, keys, presents[0], "present_key")
    values = grow(write, past_value, values, presents[1], "present_value")
    heads = Heads(scaled, keys, values, count, shared)
    scores = score(write, heads, node.attributes.get_float("softcap", 0.0))
    if (bias := read_input(write.node, 10)) is not None:
        scores = write.add("Add", [scores, bias], "biased")
    seen = find_causal(write, new, places, node.attributes.get_int("local_window_size", -1))
    scores = mask(write, scores, seen, "masked")
    if past_key is not None and lengths is not None:
        scores = write.add("Add", [scores, _doubt_lengths(write, past_key, lengths, places)], "doubted")
    result = join_heads(
        write, attend(write, heads, write.add("Softmax", [scores], "softmax", axis=-1)), "out"
    )
    write.finish(result)


def _refuse_unknown(write: Writer) -> None:
    node = write.node
    for name in _UNKNOWN:
        if name in node.attributes and node.attributes[name].value not in (0, "NONE"):
            raise NoPlainFormError(f"{name} = {node.attributes[name].value}")
    for place, what in ((_SINK, "a head_sink"), (_KEY_SCALE, "codes in its cache"), (_VALUE_SCALE, "codes")):
        if read_input(write.node, place) is not None:
            raise NoPlainFormError(what)
    write.refuse_scores()


def _find_width(write: Writer, count: int, shared: int) -> int:
    """Returns the size of a head, by the cache or by the query."""
    past, query = read_input(write.node, 3), write.node.inputs[0]
    assert query is not None
    if past is not None and past.shape is not None and isinstance(past.shape[-1], int):
        return past.shape[-1]
    width = None if query.shape is None else query.shape[-1]
    if not isinstance(width, int):
        raise NoPlainFormError("heads of unknown size")
    return width // (count if read_input(write.node, 1) is not None else count + 2 * shared)


def _find_scale(write: Writer, count: int, shared: int) -> float:
    given = write.node.attributes.get_float("scale", 0.0)
    return given or 1 / math.sqrt(_find_width(write, count, shared))


def _part(write: Writer, query: ir.Value, count: int, shared: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Returns query, key and value by heads, out of one packed value where they come so."""
    key, value = read_input(write.node, 1), read_input(write.node, 2)
    if key is None or value is None:
        width = _find_width(write, count, shared)
        ends = np.cumsum([0, count * width, shared * width, shared * width])
        query, key, value = (
            write.add(
                "Slice",
                [query, integers(ends[index]), integers(ends[index + 1]), integers(2)],
                f"{word}_packed",
            )
            for index, word in enumerate(("query", "key", "value"))
        )
    parts = ((query, count, "query"), (key, shared, "key"), (value, shared, "value"))
    first, second, third = (split_heads(write, *part) for part in parts)
    return first, second, third


def _rotate(write: Writer, value: ir.Value, new: ir.Value, word: str) -> ir.Value:
    """Returns heads turned by the angles of their positions (RoFormer, arXiv 2104.09864)."""
    node, given = write.node, read_input(write.node, 9)
    tables = [read_input(write.node, place) for place in (7, 8)]
    shape = None if tables[0] is None else tables[0].shape
    half = None if shape is None else shape[-1]
    if not isinstance(half, int):
        raise NoPlainFormError("cos_cache and sin_cache of unknown size")
    angles = [
        write.add("Gather", [table, new if given is None else given], f"{word}_{name}")
        for table, name in zip(tables, ("cos", "sin"), strict=True)
    ]
    if given is not None:
        angles = [write.add("Unsqueeze", [item, integers(1)], f"{word}_angles") for item in angles]
    ends = (integers(0), integers(2 * half), integers(3))
    part = write.add("Slice", [value, *ends], f"{word}_turned_part")
    rest = write.add("Slice", [value, ends[1], integers(np.iinfo(np.int64).max), ends[2]], f"{word}_rest")
    turn = _turn_pairs if node.attributes.get_int("rotary_interleaved", 0) else _turn_halves
    return write.add("Concat", [turn(write, part, angles, half, word), rest], f"{word}_rotated", axis=-1)


def _turn_halves(write: Writer, part: ir.Value, angles: list[ir.Value], half: int, word: str) -> ir.Value:
    """Turns each element of the first half with that of the second."""
    ends = (integers(0), integers(half), integers(2 * half))
    first = write.add("Slice", [part, ends[0], ends[1], integers(3)], f"{word}_first")
    second = write.add("Slice", [part, ends[1], ends[2], integers(3)], f"{word}_second")
    return write.add("Concat", [*_turn(write, first, second, angles, word)], f"{word}_pair", axis=-1)


def _turn_pairs(write: Writer, part: ir.Value, angles: list[ir.Value], half: int, word: str) -> ir.Value:
    """Turns neighbours."""
    pairs = write.add("Reshape", [part, integers(0, 0, -1, half, 2)], f"{word}_neighbours")
    first, second = (
        write.add("Gather", [pairs, np.array(index, np.int64)], f"{word}_{index}", axis=-1)
        for index in (0, 1)
    )
    turned = [
        write.add("Unsqueeze", [item, integers(-1)], f"{word}_apart")
        for item in _turn(write, first, second, angles, word)
    ]
    joined = write.add("Concat", turned, f"{word}_pair", axis=-1)
    return write.add("Reshape", [joined, integers(0, 0, -1, 2 * half)], f"{word}_flat")


def _turn(
    write: Writer, first: ir.Value, second: ir.Value, angles: list[ir.Value], word: str
) -> tuple[ir.Value, ir.Value]:
    (cosine, sine), both = angles, (first, second)
    by_cosine = [write.add("Mul", [item, cosine], f"{word}_by_cosine") for item in both]
    by_sine = [write.add("Mul", [item, sine], f"{word}_by_sine") for item in both]
    return (
        write.add("Sub", [by_cosine[0], by_sine[1]], f"{word}_new_first"),
        write.add("Add", [by_cosine[1], by_sine[0]], f"{word}_new_second"),
    )


def _doubt_lengths(write: Writer, past: ir.Value, lengths: ir.Value, places: ir.Value) -> ir.Value:
    """Returns (batch, 1, 1, 1): 0 where a text fills the cache, by seqlens_k, or has none; else infinity."""
    last = write.add("Sub", [write.size(places, 0, "num_places"), integers(1)], "last_place")
    said = write.add("Reshape", [write.cast(lengths, ir.DataType.INT64, "said_last"), integers(-1)], "said")
    is_empty = write.add("Equal", [write.size(past, 2, "num_before"), integers(0)], "is_empty")
    holds = write.add("Or", [write.add("Equal", [said, last], "is_full"), is_empty], "holds")
    flags = write.add("Reshape", [write.cast(holds, write.dtype, "held"), integers(-1, 1, 1, 1)], "flags")
    wrong = write.add("Sub", [write.number(1.0), flags], "wrong")
    return write.add("Div", [wrong, flags], "doubt")
