"""Codes that flow from QuantizeLinear to DequantizeLinear, possibly moved between: repaired together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint.pairs import check_pair
from trtq.pipeline.graph.operands import (
    CODE_MOVES,
    DEQUANTIZE,
    QUANTIZE,
    find_code_dtype,
    find_constant,
    list_moved_codes,
    read_axis,
    read_points,
)
from trtq.pipeline.graph.repair.change import Change, name_rule, set_params
from trtq.pipeline.graph.repair.constants import broadcast_along

_SYMMETRIC = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
_ROUNDED = 2.0**-10
"""By how much of itself a scale may be smaller or larger for its dtype."""
_TEXTS = {
    "uint8": "int8 values with zero point 0, 128 less than the uint8 values",
    "missing-zero-point": "an int8 zero point of 0, as TensorRT reads it; ONNX reads uint8",
    None: "one 0-d scale",
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Q and DQ nodes with the codes between them.

    Attributes:
        nodes: The QuantizeLinear and DequantizeLinear nodes, in graph order.
        codes: The values between them.
        scales: The scale of each node.
        points: The zero points of each node; 0 where it has none.
    """

    nodes: tuple[ir.Node, ...]
    codes: tuple[ir.Value, ...]
    scales: tuple[NDArray[np.generic], ...]
    points: tuple[NDArray[np.int64], ...]

    @property
    def dtype(self) -> ir.DataType | None:
        """The dtype of the codes."""
        quantize = next(node for node in self.nodes if node.op_type == QUANTIZE)
        return find_code_dtype(quantize)

    @property
    def is_constant(self) -> bool:
        """Whether weights are quantized here."""
        quantizes = [node.inputs[0] for node in self.nodes if node.op_type == QUANTIZE]
        return all(value is not None and value.is_initializer() for value in quantizes)

    @property
    def has_points(self) -> bool:
        """Whether any of the nodes has a zero point."""
        return any(len(node.inputs) > 2 and node.inputs[2] is not None for node in self.nodes)

    @property
    def is_symmetric(self) -> bool:
        """Whether its codes are int8 or float8 e4m3 without a zero point other than 0."""
        return self.dtype in _SYMMETRIC and not any(point.any() for point in self.points)


def list_flows(graph: ir.Graph) -> Iterator[Flow]:
    """Yields the flows of codes that begin and end in this graph, with constant scales and zero points."""
    seen: set[ir.Value] = set()
    order = {node: index for index, node in enumerate(graph)}
    for node in order:
        found = _follow(node.outputs[0], seen) if node.op_type == QUANTIZE else None
        if found is not None:
            nodes = sorted(found[0], key=order.__getitem__)
            scales = [scale for node in nodes if (scale := find_constant(node, 1)) is not None]
            points = [point for node in nodes if (point := read_points(node)) is not None]
            if len(scales) == len(points) == len(nodes):
                yield Flow(tuple(nodes), tuple(found[1]), tuple(scales), tuple(points))


def _follow(start: ir.Value, seen: set[ir.Value]) -> tuple[set[ir.Node], list[ir.Value]] | None:
    """Returns the ends of a flow and its codes; None if it was followed before, or is seen from outside."""
    ends: set[ir.Node] = set()
    values: list[ir.Value] = []
    todo, is_closed = [start], start not in seen
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        values.append(value)
        producer = value.producer()
        if producer is not None and producer.op_type == QUANTIZE:
            ends.add(producer)
        elif producer is not None and producer.op_type in CODE_MOVES:
            todo += list_moved_codes(producer)
        else:
            is_closed = False
        is_closed = is_closed and not value.is_graph_output()
        for user, place in value.uses():
            if user.op_type == DEQUANTIZE and place == 0:
                ends.add(user)
            elif user.op_type in CODE_MOVES and value in list_moved_codes(user):
                todo += user.outputs
            else:
                is_closed = False
    return (ends, values) if is_closed else None


def repair_flows(edit: GraphEditor, *, shapes: bool = True) -> Iterator[Change]:
    """Makes codes int8 with zero point 0 where that changes nothing, and scales of activations 0-d.

    1. uint8 with the zero point 128 is int8 with 0: all codes are 128 less.
    2. Without a zero point ONNX reads uint8 and TensorRT int8; it gets an int8 zero point. That is not exact:
       of negative values uint8 makes 0, and it reaches twice as far.
    3. With `shapes`, a scale of shape [1], or equal scales for all channels, is one scale of shape [].
    """
    for flow in list_flows(edit.graph):
        rule, one = _rule(flow), all(map(_is_one, flow.scales))
        shaped = shapes and one and any(scale.ndim for scale in flow.scales) and not flow.is_constant
        if rule is None and not (shaped and flow.is_symmetric):
            continue
        if not one and any(read_axis(node) is None for node in flow.nodes):
            continue
        text = _TEXTS[rule]
        broken = "zero-point" if rule == "uint8" else rule or "activation-scale"
        dtype = flow.dtype if flow.dtype in _SYMMETRIC else ir.DataType.INT8
        assert dtype is not None
        for node, scale in zip(flow.nodes, flow.scales, strict=True):
            taken = scale.reshape(-1)[0].reshape(()) if one else scale
            set_params(edit, node, taken, None if one else read_axis(node), dtype)
            yield Change(broken, str(node.name), text, is_exact=rule != "missing-zero-point")
        for value in flow.codes:
            value.type = ir.TensorType(dtype)


def _rule(flow: Flow) -> str | None:
    if flow.dtype is not ir.DataType.UINT8:
        return None
    if all((point == 128).all() for point in flow.points):
        return "uint8"
    return None if flow.has_points else "missing-zero-point"


def _is_one(scale: NDArray[np.generic]) -> bool:
    return bool(scale.size and (scale == scale.reshape(-1)[0]).all())


def requantize_flows(edit: GraphEditor) -> Iterator[Change]:
    """Makes the rest symmetric int8 with one scale, over the whole range of the codes they had.

    Codes q of zero point z and scale s stand for (q - z) * s; the largest magnitude of those becomes 127. The
    step grows, to the double at most for 8 bits, so this rounds anew. What the old codes cut off stays cut
    off, by Max and Min before the QuantizeLinear: tools drop a Relu whose zero the codes cannot go below.
    """
    for flow in list_flows(edit.graph):
        dtype, first, points = flow.dtype, flow.scales[0], flow.points[0]
        if dtype is None or not dtype.is_integer() or flow.is_constant:
            continue
        if any(next(check_pair(node), None) for node in flow.nodes):  # nobody knows which of both was meant
            continue
        same = all(scale.tobytes() == first.tobytes() for scale in flow.scales)
        steps = first.astype(np.float64)
        positive = bool(np.all(np.isfinite(steps) & (steps > 0)))
        if not (same and positive) or (flow.is_symmetric and _is_one(first)):
            continue
        low, high = (dtype.min - points) * steps, (dtype.max - points) * steps
        symmetric = flow.is_symmetric
        amax = float(np.max(steps)) * QMAX if symmetric else float(max(-np.min(low), np.max(high)))
        scale = np.asarray(amax / QMAX).astype(first.dtype)
        bounds = {node: _place_bounds(node, low, high) for node in flow.nodes if node.op_type == QUANTIZE}
        for node, old in zip(flow.nodes, flow.points, strict=True):
            rule = "activation-scale" if symmetric else name_rule(dtype, old)
            text, detail = "int8 values with zero point 0", f" and the scale {float(scale):.4g}"
            yield Change(rule, str(node.name), text, is_exact=False, detail=detail)
            set_params(edit, node, scale, None)
            if node.op_type == QUANTIZE:
                _clip(edit, node, *bounds[node])
        for value in flow.codes:
            value.type = ir.TensorType(ir.DataType.INT8)


def _place_bounds(
    node: ir.Node, low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the bounds so that they broadcast against what the node quantizes; one pair for blocks."""
    value, axis = node.inputs[0], read_axis(node)
    rank = None if value is None or value.shape is None else len(value.shape)
    if axis is None or rank is None:
        return np.asarray(low.min()), np.asarray(high.max())
    return broadcast_along(low, axis, rank), broadcast_along(high, axis, rank)


def _clip(edit: GraphEditor, quantize: ir.Node, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Cuts off before a QuantizeLinear what its new codes reach beyond the old ones.

    Max and Min take bounds by channel, which Clip does not, and take them as inputs in every opset since 8.
    """
    scale = find_constant(quantize, 1)
    assert scale is not None
    reach = float(scale) * (1 - _ROUNDED)
    for op_type, bound, beyond in (
        ("Max", low, low > -reach * (QMAX + 1)),
        ("Min", high, high < reach * QMAX),
    ):
        value = quantize.inputs[0]
        assert value is not None
        if not beyond.any():
            continue
        inputs, name = [value], f"{quantize.name}_{op_type}"
        if op_type == "Max" and not low.any():
            op_type, name = "Relu", f"{quantize.name}_Relu"
        else:
            inputs.append(edit.add_constant(f"{name}_bound", bound.astype(scale.dtype)))
        result = edit.insert(op_type, inputs, like=value, output=f"{name}_output", name=name, before=quantize)
        quantize.replace_input_with(0, result)
