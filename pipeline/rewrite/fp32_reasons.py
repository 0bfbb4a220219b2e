"""Why a node stays FP32 in a model that computes in FP16 or BF16."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.models.tensors import find_largest_code, iterate_values, read_values
from trtq.pipeline.formats.floats import BF16, FP16, FloatFormat
from trtq.pipeline.graph.edit import list_bodies
from trtq.pipeline.graph.operands import find_constant
from trtq.pipeline.graph.opset import read_opset
from trtq.pipeline.graph.worth import REARRANGING
from trtq.pipeline.rewrite.indices import find_index_nodes
from trtq.pipeline.rewrite.operator_types import find_types
from trtq.pipeline.rewrite.positions import find_position_nodes
from trtq.pipeline.rewrite.shares import DIVISORS, find_share_nodes

_FLOAT = ir.DataType.FLOAT
_ENDS = f"FP16 ends at {FP16.largest:g}"
_FEW_ELEMENTS = 8
_MAX_ERROR = 0.01
_FLOAT32_ONLY = ("BitCast", "Celu", "TensorScatter")
"""ONNX has 16 bits for them; ONNX Runtime has no kernel, and the bits that BitCast takes are others."""
_IN_STEPS = ("LogSoftmax", "Mean", "Mod", "ReduceSumSquare")
"""TensorRT's parser writes these as several layers, with tensors between that are FP16 too: shares, of which
some become 0, whose logarithm is infinite, sums, squares, or quotients that are rounded to a whole number."""
_IN_WHOLE_STEPS = ("Mod",)
"""Those of them with whole numbers, of which BF16 has fewer still."""
_NOT_BF16 = ("GRU", "GlobalLpPool", "HardSwish", "LpNormalization", "LpPool", "Mish")
"""TensorRT's parser fails on these in BF16."""
_PEEPHOLES = 7
"""The place of these weights of an LSTM."""
_SCATTER = ("ScatterElements", "ScatterND")
_KEEPS_FILL = REARRANGING - {"Concat"} | {"Trilu"}
"""What makes nothing but the value of a filled tensor, and zeros."""

_GUARDS = ("Add", "Clip", "Max", "Where")
"""What keeps a divisor from zero by a small constant: an epsilon."""


class Fp32Reasons:
    """Why nodes of one graph stay FP32: see `precision.to_fp16`."""

    def __init__(
        self, model: ir.Model, half: FloatFormat, keep_fp32: Sequence[str], beyond: Mapping[str, float]
    ) -> None:
        """Looks at the graph once.

        Args:
            model: With the dtypes of its tensors.
            half: FP16 or BF16.
            keep_fp32: Regular expressions searched in node names.
            beyond: The amax of tensors whose observed magnitudes FP16 cannot hold, by name.
        """
        self._opset, self._half, self._keep = read_opset(model), half, keep_fp32
        self._beyond = beyond
        self._on_shapes = _find_nodes_on_shapes(model.graph)
        self._on_positions = find_position_nodes(model.graph)
        self._on_indices = find_index_nodes(model.graph, half.largest_exact)
        self._fills = _find_fills(model.graph)
        self._guarded = _find_guarded(model.graph)
        self._shares = find_share_nodes(model.graph, half)

    def find(self, node: ir.Node) -> str | None:
        """Returns the first reason why a node stays FP32; None if it need not."""
        return next(self._find_all(node), None)

    def _find_all(self, node: ir.Node) -> Iterator[str]:
        yield from (f"kept by {pattern!r}" for pattern in self._keep if re.search(pattern, str(node.name)))
        if list_bodies(node):
            yield f"{node.op_type} has a subgraph"
        types = find_types(node, self._opset)
        if types is None:
            yield f"{node.domain or 'ai.onnx'}::{node.op_type} is unknown here"
            return
        name = self._half.name.upper()
        if types.makes_numbers:
            yield f"{node.op_type} makes numbers of nothing"
        if _lacks_kernel(node):
            yield f"ONNX Runtime has no {name} kernel for this {node.op_type}"
        if _is_refused(node, self._half):
            yield f"TensorRT does not take this {node.op_type} in {name}"
        if not types.has_version(node, self._half.dtype):
            yield f"{node.op_type} has no {name} version"
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and value.dtype is None:
                yield f"the type of tensor {value.name!r} is not known"
            elif value is not None and isinstance(value.type, ir.SequenceType | ir.OptionalType):
                yield f"{value.name!r} is no tensor"
        if node in self._on_shapes:
            yield "computes with tensor shapes"
        if node in self._on_positions:
            yield f"computes angles or indices from positions, which {name} rounds"
        if node in self._on_indices:
            yield f"computes with indices, and {name} lacks whole numbers above {self._half.largest_exact}"
        if node.op_type in (_IN_STEPS if self._half is FP16 else _IN_WHOLE_STEPS):
            yield f"TensorRT computes {node.op_type} in steps, and {name} cannot hold what is between them"
        if node in self._shares:
            yield self._shares[node]
        if self._half is FP16:
            yield from self._find_in_values(node)

    def _find_in_values(self, node: ir.Node) -> Iterator[str]:
        for value in (*node.inputs, *node.outputs):
            if value is not None and (amax := self._beyond.get(str(value.name))) is not None:
                small = f"FP16 has no steps below {FP16.smallest_scale:.3g}"
                yield f"tensor {value.name!r} reaches {amax:.3g}, {_ENDS if amax > 1 else small}"
        for value in (*node.inputs, *node.outputs):
            tensor = None if value is None or value.dtype is not _FLOAT else self._read_constant(value)
            if tensor is not None and value is not None:
                yield from _find_in_constant(node, value, tensor)
        for value in node.inputs:
            if value is not None and value.dtype is _FLOAT:
                yield from _find_in_scale(value)
        if node in self._guarded:
            yield f"tensor {self._guarded[node]!r} is kept from zero by a number that is too small for FP16"

    def _read_constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        """Returns a constant, or one element of a tensor that is filled with it."""
        return self._fills.get(value) if value.const_value is None else value.const_value


def _lacks_kernel(node: ir.Node) -> bool:
    """Returns whether ONNX Runtime fails on a node in 16 bits, instead of casting around it."""
    reduction = node.attributes.get_string("reduction", "none")
    return node.op_type in _FLOAT32_ONLY or (node.op_type in _SCATTER and reduction != "none")


def _is_refused(node: ir.Node, half: FloatFormat) -> bool:
    """Returns whether TensorRT's parser fails on a node in 16 bits: it mixes FP32 into what it writes."""
    if half is BF16 and node.op_type in _NOT_BF16:
        return True
    has_peepholes = len(node.inputs) > _PEEPHOLES and node.inputs[_PEEPHOLES] is not None
    return node.op_type == "MeanVarianceNormalization" or (node.op_type == "LSTM" and has_peepholes)


def _find_fills(graph: ir.Graph) -> dict[ir.Value, ir.TensorProtocol]:
    """Returns the tensors that hold one number everywhere, or zero, with a tensor of that number."""
    fills: dict[ir.Value, ir.TensorProtocol] = {}
    for node in graph:
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "ConstantOfShape":
            fills[node.outputs[0]] = node.attributes.get_tensor("value") or ir.tensor([0.0])
        elif node.op_type in _KEEPS_FILL and first in fills:
            fills[node.outputs[0]] = fills[first]
    return fills


def _find_guarded(graph: ir.Graph) -> dict[ir.Node, str]:
    """Returns what divides by what only an epsilon keeps from zero that FP16 does not hold.

    These are the nodes that divide, and what puts the divisor into another shape before, with its name.
    """
    guarded: dict[ir.Node, str] = {}
    for node in graph:
        place = DIVISORS.get(node.op_type)
        if place is None or (divisor := node.inputs[place]) is None:
            continue
        maker, chain = _follow_back(divisor)
        if maker is not None and maker.op_type in _GUARDS and any(map(_is_epsilon, maker.inputs)):
            guarded.update(dict.fromkeys([node, *chain], str(divisor.name)))
    return guarded


def _follow_back(value: ir.Value) -> tuple[ir.Node | None, list[ir.Node]]:
    """Returns what makes a value, and the nodes that rearrange it on the way."""
    chain, maker = list[ir.Node](), value.producer()
    while maker is not None and maker.op_type in REARRANGING and maker.inputs[0] is not None:
        chain.append(maker)
        maker = maker.inputs[0].producer()
    return maker, chain


def _is_epsilon(value: ir.Value | None) -> bool:
    """Returns whether a value is a number that vanishes in FP16, or nearly so."""
    tensor = None if value is None or value.dtype is not _FLOAT else value.const_value
    if tensor is None or tensor.size != 1:
        return False
    number = np.abs(read_values(tensor).reshape(-1).astype(np.float64))
    return bool(0 < number[0] < 1 and abs(_round_to_fp16(number)[0] - number[0]) > _MAX_ERROR * number[0])


def _find_in_scale(value: ir.Value) -> Iterator[str]:
    """Yields why what comes from a DequantizeLinear with such a scale is none for FP16."""
    producer = value.producer()
    scale = None if producer is None or producer.op_type != "DequantizeLinear" else find_constant(producer, 1)
    if scale is None:
        return
    step, reach = scale.max(initial=0.0), scale.max(initial=0.0) * _find_reach(producer)
    if reach > FP16.largest:
        yield f"tensor {value.name!r} reaches {reach:.3g}, {_ENDS}"
    if 0 < step < FP16.smallest_scale:
        yield f"tensor {value.name!r} has steps of {step:.3g}, FP16 begins at {FP16.smallest_scale:.3g}"


def _find_reach(dequantize: ir.Node | None) -> float:
    """Returns the largest code of what a DequantizeLinear reads; of codes of unknown type that of INT8."""
    codes = None if dequantize is None else dequantize.inputs[0]
    return QMAX if codes is None or codes.dtype is None else find_largest_code(codes.dtype)


def _find_in_constant(node: ir.Node, value: ir.Value, tensor: ir.TensorProtocol) -> Iterator[str]:
    told = f"constant {value.name!r}"
    largest = max((float(part.max(initial=0.0)) for part in _iterate_magnitudes(tensor)), default=0.0)
    if largest > FP16.largest:
        yield f"{told} has {largest:.3g}, {_ENDS}"
    if node.op_type == "DequantizeLinear" and (reach := largest * _find_reach(node)) > FP16.largest:
        yield f"scale {value.name!r} gives values up to {reach:.3g}, {_ENDS}"
    is_scale = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    is_divisor = node.op_type == "Div" and value is node.inputs[1]
    if is_scale or is_divisor or tensor.size <= _FEW_ELEMENTS:
        for small in (part[part > 0] for part in _iterate_magnitudes(tensor)):
            errors = np.abs(_round_to_fp16(small) - small) / small
            if small.size and errors.max() > _MAX_ERROR:
                yield f"{told} has {small[int(errors.argmax())]:.3g}, too small for FP16"
    elif _is_lost(tensor, largest):
        yield f"{told} has {largest:.3g} at most, too small for FP16"


def _is_lost(tensor: ir.TensorProtocol, largest: float) -> bool:
    """Returns whether rounding to FP16 changes a constant by more than 1 % as a whole.

    Below 2^-14 a number is off by up to 2^-25; if that is little beside the largest, nothing is rounded.
    """
    if largest * _MAX_ERROR > 2.0**-25 * tensor.size**0.5:
        return False
    lost = whole = 0.0
    for part in (part.astype(np.float64) for part in _iterate_magnitudes(tensor)):
        lost += float(np.square(_round_to_fp16(part) - part).sum())
        whole += float(np.square(part).sum())
    return lost > _MAX_ERROR**2 * whole


def _round_to_fp16(values: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float64)


def _iterate_magnitudes(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """Yields the finite magnitudes of a tensor, of a large one in pieces."""
    for piece in iterate_values(tensor):
        magnitudes = np.abs(piece)
        is_finite = np.isfinite(magnitudes)
        yield magnitudes if is_finite.all() else magnitudes[is_finite]


def _find_nodes_on_shapes(graph: ir.Graph) -> set[ir.Node]:
    """Returns the nodes that make a number or a vector from nothing but the shapes of tensors."""
    shapes: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in graph:
        sources = [value for value in node.inputs if value is not None and not value.is_initializer()]
        on_shapes = bool(sources) and shapes.issuperset(sources)
        if on_shapes or node.op_type in ("Shape", "Size"):
            shapes.update(node.outputs)
        if on_shapes and all(value.shape is None or len(value.shape) <= 1 for value in node.outputs):
            found.add(node)
    return found
