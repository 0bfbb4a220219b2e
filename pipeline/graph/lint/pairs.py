"""The rule for a QuantizeLinear and the DequantizeLinear that reads its codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.lint.finding import Finding, report
from trtq.pipeline.graph.operands import (
    CODE_MOVES,
    DEQUANTIZE,
    QUANTIZE,
    find_code_dtype,
    find_constant,
    list_moved_codes,
    read_axis,
)

_ROUNDED = 2.0**-8
"""By how much of itself one scale may differ from the other: it may be rounded to bfloat16."""


def check_pair(node: ir.Node) -> Iterator[Finding]:
    """Codes are read with the type, the scales and the zero points that they are made with.

    TensorRT-RTX follows the file where scales, axes or blocks differ: its engines hold both scales. It goes
    by the type of the codes where that of a zero point is another one.
    """
    if node.op_type != DEQUANTIZE or node.inputs[0] is None:
        return
    for quantize, is_moved in _find_sources(node.inputs[0]):
        made, read = find_code_dtype(quantize), find_code_dtype(node)
        if made is not None and read is not None and made is not read:
            reason = (
                f"{quantize.name!r} makes {made.name.lower()} codes, and it reads them as "
                f"{read.name.lower()}, which ONNX does not allow; TensorRT goes by the codes"
            )
            yield report("pair", "wrong", node, reason, "give both nodes zero points of one type")
            return
        if difference := _compare(quantize, node, is_moved=is_moved):
            reason = f"{quantize.name!r} quantizes with {difference}; TensorRT computes exactly that"
            yield report("pair", "suspect", node, reason, "give both nodes the same parameters")
            return


def _find_sources(codes: ir.Value) -> Iterator[tuple[ir.Node, bool]]:
    """Yields the QuantizeLinear nodes that codes come from, and whether something moves them on the way."""
    seen, todo = {codes}, [codes]
    while todo:
        value = todo.pop()
        producer = value.producer()
        if producer is not None and producer.op_type == QUANTIZE:
            yield producer, value is not codes
        elif producer is not None and producer.op_type in CODE_MOVES:
            todo += [moved for moved in list_moved_codes(producer) if moved not in seen]
            seen.update(todo)


def _compare(quantize: ir.Node, dequantize: ir.Node, *, is_moved: bool) -> str:
    """Returns how the scales of two nodes differ, as part of a sentence; empty if not, or if it is not known.

    Zero points are no matter here: all but 0 break a rule of their own.
    """
    scales = [find_constant(node, 1) for node in (quantize, dequantize)]
    if scales[0] is None or scales[1] is None:
        return ""
    made, read = (_narrow(scale) for scale in scales if scale is not None)
    if made.ndim == read.ndim == 0:
        if np.isclose(made, read, rtol=_ROUNDED, atol=0, equal_nan=True):
            return ""
        return f"the scale {made:.6g}, and it dequantizes with {read:.6g}"
    if is_moved:  # so may be the axis, and channels may be left out
        return ""
    for what, of_both in (
        ("blocks of", [_read_block(node) for node in (quantize, dequantize)]),
        ("scales along axis", [_read_axis(node) for node in (quantize, dequantize)]),
        ("scales of shape", [made.shape or read.shape, read.shape or made.shape]),
    ):
        if of_both[0] != of_both[1] and None not in of_both:
            return f"{what} {of_both[0]}, and it dequantizes with {what} {of_both[1]}"
    is_same = np.allclose(made, read, rtol=_ROUNDED, atol=0, equal_nan=True)
    return "" if is_same else "other scales than it dequantizes with"


def _narrow(scale: NDArray[np.generic]) -> NDArray[np.float64]:
    """Returns scales that are all equal as one, of no dims."""
    wide = scale.astype(np.float64)
    return wide.reshape(-1)[0].reshape(()) if wide.size and (wide == wide.reshape(-1)[0]).all() else wide


def _read_block(node: ir.Node) -> int:
    return node.attributes.get_int("block_size", 0)


def _read_axis(node: ir.Node) -> int | None:
    return node.attributes.get_int("axis", 1) if _read_block(node) else read_axis(node)
