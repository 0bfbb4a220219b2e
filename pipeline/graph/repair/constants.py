"""Constants behind a DequantizeLinear: made int8 with zero point 0, or float."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint.codes import check_scale
from trtq.pipeline.graph.operands import (
    DEQUANTIZE,
    QUANTIZE,
    SIGNED,
    find_code_dtype,
    find_constant,
    read_axis,
    read_points,
)
from trtq.pipeline.graph.repair.change import Change, name_rule, set_scale

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


def quantize_constants(edit: GraphEditor) -> Iterator[Change]:
    """Replaces QuantizeLinear of a constant by its codes where TensorRT would not take the node.

    That is where it has a zero point, or codes that are not int8; the others stay as they are.
    """
    for node in [node for node in edit.graph if node.op_type == QUANTIZE]:
        values, scale, points = (find_constant(node, place) for place in range(3))
        dtype = find_code_dtype(node)
        if values is None or scale is None or points is None or dtype is None or not dtype.is_integer():
            continue
        if "block_size" in node.attributes or (dtype is ir.DataType.INT8 and not points.any()):
            continue
        axis, rank = read_axis(node), values.ndim
        # As ONNX Runtime: the quotient in the dtype of the values, rounded half to even.
        codes = np.rint(values / broadcast_along(scale, axis, rank)).astype(np.float64)
        codes = np.clip(codes + broadcast_along(points.astype(np.int64), axis, rank), dtype.min, dtype.max)
        tensor = ir.tensor(codes.astype(dtype.numpy()), dtype=dtype)
        edit.replace(node.outputs[0], edit.add_constant(f"{node.name}_codes", tensor))
        yield Change("zero-point" if points.any() else "uint8", str(node.name), "codes computed beforehand")
        edit.remove(node)


def repair_constants(edit: GraphEditor) -> Iterator[Change]:
    """Repairs dequantized constants without changing a value.

    1. int32 codes (a bias) become float: codes * scale, as DequantizeLinear computes it.
    2. Codes less their zero point that fit into int8 take the zero point 0; codes of 4 bits in blocks, which
       TensorRT reads in blocks as they are, become int4 where they fit.
    3. Channels with the scale 0 hold zeros: they get the scale 1 and codes of 0.
    """
    for node, codes, scale, dtype in _dequantized_constants(edit.graph):
        if any(finding.rule == "scale-count" for finding in check_scale(node)):
            continue
        points = _points(node, codes)
        if dtype is ir.DataType.INT32:
            values = codes.astype(np.float32) * _spread(scale, node, codes.shape)
            constant = edit.add_constant(f"{node.name}_float", np.asarray(values, scale.dtype))
            edit.replace(node.outputs[0], constant)
            edit.remove(node)
            yield Change("int32", str(node.name), "a float constant of the same values")
            continue
        if points is None:
            continue
        moved = codes.astype(np.int64) - points
        if dtype not in SIGNED or points.any():
            is_int4 = _fits_int4(node, moved, dtype)
            if moved.min() < -128 or moved.max() > QMAX:
                continue
            text = f"the same values as {'int4' if is_int4 else 'int8'} codes with zero point 0"
            yield Change(name_rule(dtype, points), str(node.name), text)
            _set_codes(edit, node, moved, scale, ir.DataType.INT4 if is_int4 else ir.DataType.INT8)
        if not scale.all() and "block_size" not in node.attributes:
            yield Change("scale", str(node.name), "zeros with the scale 1, where the scale was 0")
            zero = broadcast_along(scale == 0, read_axis(node), codes.ndim)
            ones = np.where(scale == 0, 1, scale).astype(scale.dtype)
            _set_codes(edit, node, np.where(zero, 0, moved), ones)


def requantize_constants(edit: GraphEditor) -> Iterator[Change]:
    """Quantizes dequantized constants again whose codes do not fit into int8 with zero point 0.

    The axis stays; each scale becomes the largest magnitude of its channel by 127. This rounds anew.
    """
    for node, codes, scale, dtype in _dequantized_constants(edit.graph):
        points = _points(node, codes)
        if points is None or (dtype in SIGNED and not points.any()) or "block_size" in node.attributes:
            continue
        axis, rank = read_axis(node), codes.ndim
        steps = broadcast_along(scale.astype(np.float64), axis, rank)
        values = (codes.astype(np.int64) - points) * steps
        others = tuple(i for i in range(rank) if i != axis)
        amax = np.abs(values).max(axis=others).reshape(scale.shape)
        new = np.where(amax > 0, amax / QMAX, 1).astype(scale.dtype)
        rounded = np.rint(values / broadcast_along(new.astype(np.float64), axis, rank))
        text = "int8 values with zero point 0, rounded again"
        yield Change(name_rule(dtype, points), str(node.name), text, is_exact=False)
        _set_codes(edit, node, np.clip(rounded, -QMAX, QMAX), new)


def _dequantized_constants(
    graph: ir.Graph,
) -> Iterator[tuple[ir.Node, NDArray[Any], NDArray[Any], ir.DataType]]:
    """Yields the DequantizeLinear nodes of integer constants, with the codes, the scale and their dtype."""
    for node in [node for node in graph if node.op_type == DEQUANTIZE]:
        codes, scale, dtype = find_constant(node, 0), find_constant(node, 1), find_code_dtype(node)
        if (
            codes is not None
            and scale is not None
            and codes.size
            and dtype is not None
            and dtype.is_integer()
        ):
            yield node, codes, scale, dtype


def broadcast_along(array: NDArray[Any], axis: int | None, rank: int) -> NDArray[Any]:
    """Returns scales or zero points shaped to be broadcast against a tensor of this rank."""
    if axis is None:
        return array.reshape(())
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def _points(node: ir.Node, codes: NDArray[Any]) -> NDArray[np.int64] | None:
    """Returns the zero points, broadcastable to the codes; None if they are computed."""
    points = read_points(node)
    if points is None or points.size < 2:
        return points if points is None or points.size else np.zeros((), np.int64)
    return _spread(points, node, codes.shape)


def _spread(array: NDArray[Any], node: ir.Node, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns the scales or zero points of a node so that they broadcast against its codes of this shape."""
    size = node.attributes.get_int("block_size", 0)
    if size and array.ndim == len(shape):
        axis = node.attributes.get_int("axis", 1)
        return np.repeat(array, size, axis=axis)[tuple(map(slice, shape))]
    return broadcast_along(array, read_axis(node), len(shape))


def _fits_int4(node: ir.Node, codes: NDArray[np.int64], dtype: ir.DataType) -> bool:
    """Whether codes less their zero points go on in 4 bits: in blocks, and an even number of them."""
    is_packed = dtype in _FOUR_BITS and "block_size" in node.attributes and codes.size % 2 == 0
    return bool(is_packed and codes.min() >= ir.DataType.INT4.min and codes.max() <= ir.DataType.INT4.max)


def _set_codes(
    edit: GraphEditor,
    node: ir.Node,
    codes: NDArray[Any],
    scale: NDArray[Any],
    dtype: ir.DataType = ir.DataType.INT8,
) -> None:
    edit.set_constant(node, 0, f"{node.name}_codes", ir.tensor(codes.astype(dtype.numpy()), dtype))
    set_scale(edit, node, scale, dtype)
