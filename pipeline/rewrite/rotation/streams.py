"""The residual streams of a graph: sums that are read through RMS normalizations alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.kv_cache import OF_SHAPES
from trtq.pipeline.graph.operands import find_constant, list_sizes, read_constant

_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant with an axis of the stream's channels: of what adds to the stream, or reads it.

    Attributes:
        node: Reads it.
        place: Which input it is.
        axis: The channels; negative.
    """

    node: ir.Node
    place: int
    axis: int

    @property
    def value(self) -> ir.Value:
        """The constant."""
        value = self.node.inputs[self.place]
        assert value is not None
        return value


@dataclass(frozen=True, slots=True)
class StreamNorm:
    """An RMS normalization of the stream, without a bias.

    Attributes:
        scale: Its constant, one number a channel; None: it has none.
        output: What its readers read.
        readers: The weights that multiply it.
        tensors: What it makes, which has the channels of the stream.
    """

    scale: Constant | None
    output: ir.Value
    readers: tuple[Constant, ...]
    tensors: tuple[ir.Value, ...]


@dataclass(slots=True)
class Stream:
    """All that has the same channels.

    Attributes:
        width: How many channels there are.
        tensors: The sums and their terms.
        writers: The constants of what is added: weights, biases and tables of embeddings.
        norms: What reads it.
    """

    width: int
    tensors: list[ir.Value] = field(default_factory=list)
    writers: list[Constant] = field(default_factory=list)
    norms: list[StreamNorm] = field(default_factory=list)


class _Refused(Exception):  # noqa: N818 - no error: this is no stream
    """Something takes part in a sum that is not known to be linear in its channels."""


def find_streams(graph: ir.Graph) -> list[Stream]:
    """Returns the streams of which all that writes and reads them is known.

    A stream holds products with constant matrices, rows of embeddings, their sums, and constants that are
    added. It is read by RMS normalizations over the last axis, written out or as RMSNormalization, and these
    by products with constant matrices. LayerNormalization subtracts a mean, which an orthogonal matrix
    changes; a stream that one reads is left out, as is one with any other reader.
    """
    found: list[Stream] = []
    seen: set[ir.Value] = set()
    for node in graph:
        value = node.inputs[0] if node.op_type in ("Pow", "Mul", "RMSNormalization") else None
        if value is None or value in seen or not _find_norms(value):
            continue
        try:
            stream = _follow(value)
        except _Refused:
            continue
        seen.update(stream.tensors)
        found.append(stream)
    return found


def _follow(start: ir.Value) -> Stream:
    stream, todo, seen = Stream(_width(start)), [start], {start}
    while todo:
        value = todo.pop()
        is_inside = not value.is_graph_output() and value.dtype in FLOAT_TYPES
        if not is_inside or stream.width < 2 or _width(value) != stream.width:
            raise _Refused
        stream.tensors.append(value)
        for other in (*_follow_maker(value, stream), *_follow_readers(value, stream)):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return stream


def _follow_maker(value: ir.Value, stream: Stream) -> Iterator[ir.Value]:
    """Yields what a value of the stream is the sum of, and adds the constants that make it."""
    node = value.producer()
    if node is None or node.domain not in _DOMAINS or node.graph is not value.graph:
        raise _Refused
    first, second = (*node.inputs, None, None)[:2]
    if node.op_type == "Add":
        for place, item in enumerate((first, second)):
            if item is not None and not is_constant(item):
                yield item
            else:
                stream.writers.append(_take(node, place, -1, stream.width))
    elif _passes(node) or (node.op_type == "Mul" and _is_number(second)):
        yield _given(first)
    elif node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        stream.writers.append(_take(node, 0, -1, stream.width, rank=2))
    elif node.op_type in ("MatMul", "Gemm"):
        is_turned = node.attributes.get_int("transB", 0) == 1
        stream.writers.append(_take(node, 1, -2 if is_turned else -1, stream.width, rank=2))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            stream.writers.append(_take(node, 2, -1, stream.width))
    else:
        raise _Refused


def _follow_readers(value: ir.Value, stream: Stream) -> Iterator[ir.Value]:
    """Yields the sums that a value of the stream is a part of, and adds the norms that read it."""
    norms = _find_norms(value)
    taken = {node for nodes, _, _ in norms for node in nodes}
    stream.norms += [_take_norm(output, scale, stream.width) for _, output, scale in norms]
    for node, place in _list_uses(value):
        if node in taken:
            continue
        is_number = node.op_type == "Mul" and place == 0 and _is_number(node.inputs[1])
        is_linear = is_number or node.op_type == "Add" or (place == 0 and _passes(node))
        if node.graph is not value.graph or not is_linear:
            raise _Refused
        yield node.outputs[0]


def _find_norms(value: ir.Value) -> list[tuple[tuple[ir.Node, ...], ir.Value, Constant | None]]:
    """Returns the RMS normalizations of a value: its readers in each, the result, and the scale in it."""
    found: list[tuple[tuple[ir.Node, ...], ir.Value, Constant | None]] = []
    rank = len(value.shape or ())
    for node, place in value.uses():
        if node.op_type == "RMSNormalization" and place == 0 and node.domain in _DOMAINS:
            if node.attributes.get_int("axis", -1) in (-1, rank - 1):
                found.append(((node,), node.outputs[0], Constant(node, 1, -1)))
        elif place == 0 and _is_square(node) and (last := _find_quotient(value, node)) is not None:
            found.append(((node, last), last.outputs[0], None))
    return found


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    return node.op_type == "Pow" and _equals(node.inputs[1], 2)


def _find_quotient(value: ir.Value, square: ir.Node) -> ir.Node | None:
    """Returns the node that divides a value by the root of the mean of its squares; None: there is none."""
    mean = _only_reader(square.outputs[0])
    if mean is None or mean.op_type != "ReduceMean" or not _reduces_last(mean, len(value.shape or ())):
        return None
    node = _only_reader(mean.outputs[0])
    if node is not None and node.op_type == "Add":
        numbers = [item for item in node.inputs if _is_number(item)]
        node = _only_reader(node.outputs[0]) if len(numbers) == 1 else None
    if node is None or node.op_type != "Sqrt":
        return None
    root, last = node.outputs[0], _only_reader(node.outputs[0])
    if last is not None and last.op_type == "Div" and last.inputs[1] is root:
        if last.inputs[0] is value:
            return last
        if not _equals(last.inputs[0], 1):
            return None
    elif last is None or last.op_type != "Reciprocal":
        return None
    inverse = last.outputs[0]
    last = _only_reader(inverse)
    return last if last is not None and last.op_type == "Mul" and {*last.inputs} == {value, inverse} else None


def _take_norm(normed: ir.Value, scale: Constant | None, width: int) -> StreamNorm:
    """Returns a norm with its readers, behind the Mul with its scale if it has one."""
    tensors, value = [normed], normed
    if scale is not None:
        _take(scale.node, scale.place, -1, width)
    while (node := _only_reader(value)) is not None:
        if node.op_type == "Mul" and scale is None and (place := _find_scale(node, width)) is not None:
            scale = Constant(node, place, -1)
        elif not _passes(node) or node.inputs[0] is not value:
            break
        value = node.outputs[0]
        tensors.append(value)
    if any(item.is_graph_output() or _width(item) != width for item in tensors):
        raise _Refused
    return StreamNorm(
        scale, value, tuple(_take_reader(*use, width) for use in _list_uses(value)), tuple(tensors)
    )


def _passes(node: ir.Node) -> bool:
    """Whether a node keeps every row of channels as it is: all that the width does not tell."""
    if node.op_type == "Slice":
        axes, rank = find_constant(node, 3), len(list_sizes(node.inputs[0]))
        return axes is not None and not {-1, rank - 1} & {*axes.ravel().tolist()}
    return node.op_type in ("Cast", "Identity", "Reshape")


def read_scale(norm: StreamNorm, width: int) -> NDArray[np.float32]:
    """Returns the scale of a norm, shape (width,); ones if it has none."""
    if norm.scale is None:
        return np.ones(width, np.float32)
    return read_constant(norm.scale.value).astype(np.float32).ravel()


def _find_scale(node: ir.Node, width: int) -> int | None:
    for place, value in enumerate(node.inputs):
        sizes = list_sizes(value)
        if is_constant(value) and sizes and math.prod(sizes) == sizes[-1] == width:
            return place
    return None


def _take_reader(node: ir.Node, place: int, width: int) -> Constant:
    is_plain = node.op_type in ("MatMul", "Gemm") and node.attributes.get_int("transA", 0) == 0
    if not is_plain or place != 0 or node.domain not in _DOMAINS:
        raise _Refused
    is_turned = node.attributes.get_int("transB", 0) == 1
    turn = node.inputs[1].producer() if node.inputs[1] is not None else None
    if turn is not None and turn.op_type == "Transpose" and _only_reader(turn.outputs[0]) is node:
        return _take(turn, 0, -2 if is_turned else -1, width, rank=2)
    return _take(node, 1, -1 if is_turned else -2, width, rank=2)


def _take(node: ir.Node, place: int, axis: int, width: int, rank: int | None = None) -> Constant:
    """Returns a constant with the channels on an axis, of which it has all."""
    value = node.inputs[place]
    shape = list_sizes(value)
    fits = len(shape) >= -axis and shape[axis] == width and rank in (None, len(shape))
    if value is None or not is_constant(value) or value.graph is not node.graph or not fits:
        raise _Refused
    return Constant(node, place, axis)


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant of floats that no caller can replace, and no result."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return False
    return value.const_value is not None and value.dtype in FLOAT_TYPES


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise _Refused
    return value


def _is_number(value: ir.Value | None) -> bool:
    return is_constant(value) and math.prod(list_sizes(value)) == 1


def _equals(value: ir.Value | None, number: float) -> bool:
    return value is not None and _is_number(value) and float(read_constant(value).item()) == number


def _reduces_last(node: ir.Node, rank: int) -> bool:
    given = find_constant(node, 1)
    axes = node.attributes.get_ints("axes", ()) if given is None else given.ravel().tolist()
    return node.attributes.get_int("keepdims", 1) == 1 and [*axes] in ([-1], [rank - 1])


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [node for node, _ in _list_uses(value)]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _list_uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Returns who reads the values of a tensor, and where, but for who asks for its shape."""
    return [(node, place) for node, place in value.uses() if node.op_type not in OF_SHAPES]


def _width(value: ir.Value) -> int:
    """Returns the length of the last axis; -1 if it is not known."""
    return ([-1, *list_sizes(value)])[-1]
