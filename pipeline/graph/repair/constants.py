"""Constants behind a DequantizeLinear: made int8 with zero point 0, or float."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.pipeline.graph.fold import add_initializer
from trtq.pipeline.graph.lint.codes import check_scale
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_code_dtype, find_constant, read_axis
from trtq.pipeline.graph.repair.change import Change, set_constant


def quantize_constants(model: ir.Model) -> Iterator[Change]:
    """Replaces QuantizeLinear of a constant by its codes where TensorRT would not take the node.

    That is where it has a zero point, or codes that are not int8; the others stay as they are.
    """
    for node in [node for node in model.graph if node.op_type == QUANTIZE]:
        values, scale, points = find_constant(node, 0), find_constant(node, 1), find_constant(node, 2)
        dtype = find_code_dtype(node)
        if values is None or scale is None or points is None or dtype is None or not dtype.is_integer():
            continue
        if "block_size" in node.attributes or (dtype is ir.DataType.INT8 and not points.any()):
            continue
        axis = read_axis(node)
        # As ONNX Runtime: the quotient in the dtype of the values, rounded half to even.
        quotient = np.rint(values / broadcast_along(scale, axis, values.ndim)).astype(np.float64)
        codes = np.clip(
            quotient + broadcast_along(points.astype(np.int64), axis, values.ndim), dtype.min, dtype.max
        )
        tensor = ir.tensor(codes.astype(dtype.numpy()), dtype=dtype, name=f"{node.name}_codes")
        value = add_initializer(model.graph, f"{node.name}_codes", np.zeros((), np.int8))
        value.const_value, value.type, value.shape = tensor, ir.TensorType(dtype), ir.Shape(values.shape)
        tensor.name = value.name
        node.outputs[0].replace_all_uses_with(value)
        yield Change("zero-point" if points.any() else "uint8", str(node.name), "codes computed beforehand")
        model.graph.remove(node, safe=True)


def repair_constants(model: ir.Model) -> Iterator[Change]:
    """Repairs dequantized constants without changing a value.

    1. int32 codes (a bias) become float: codes * scale, as DequantizeLinear computes it.
    2. Codes less their zero point that fit into int8 take the zero point 0.
    3. Channels with the scale 0 hold zeros: they get the scale 1 and codes of 0.
    """
    for node in [node for node in model.graph if node.op_type == DEQUANTIZE]:
        codes, scale = find_constant(node, 0), find_constant(node, 1)
        if codes is None or scale is None or not codes.size or _is_broken(node):
            continue
        dtype, points = find_code_dtype(node), _points(node, codes)
        if dtype is ir.DataType.INT32:
            yield make_float(
                model, node, (codes.astype(np.float32) * broadcast_along(scale, read_axis(node), codes.ndim))
            )
            continue
        if dtype is None or not dtype.is_integer() or points is None:
            continue
        moved = codes.astype(np.int64) - points
        if dtype not in (ir.DataType.INT8, ir.DataType.INT4) or points.any():
            if moved.min() < -128 or moved.max() > QMAX:
                continue
            rule = "zero-point" if points.any() else "uint8" if dtype is ir.DataType.UINT8 else "codes-type"
            yield Change(rule, str(node.name), "the same values as int8 codes with zero point 0")
            _set_codes(node, moved.astype(np.int8), scale)
        if not scale.all() and "block_size" not in node.attributes:
            yield Change("scale", str(node.name), "zeros with the scale 1, where the scale was 0")
            zero = broadcast_along(scale == 0, read_axis(node), codes.ndim)
            _set_codes(
                node,
                np.where(zero, 0, moved).astype(np.int8),
                np.where(scale == 0, 1, scale).astype(scale.dtype),
            )


def requantize_constants(model: ir.Model) -> Iterator[Change]:
    """Quantizes dequantized constants again whose codes do not fit into int8 with zero point 0.

    The axis stays; each scale becomes the largest magnitude of its channel by 127. This rounds anew.
    """
    for node in [node for node in model.graph if node.op_type == DEQUANTIZE]:
        codes, scale = find_constant(node, 0), find_constant(node, 1)
        dtype = find_code_dtype(node)
        if codes is None or scale is None or dtype is None or not dtype.is_integer() or not codes.size:
            continue
        points = _points(node, codes)
        fits = dtype in (ir.DataType.INT8, ir.DataType.INT4) and points is not None and not points.any()
        if fits or points is None or "block_size" in node.attributes:
            continue
        axis = read_axis(node)
        values = (codes.astype(np.int64) - points) * broadcast_along(
            scale.astype(np.float64), axis, codes.ndim
        )
        others = tuple(i for i in range(codes.ndim) if i != axis)
        amax = (
            np.abs(values).max(axis=others) if axis is not None else np.abs(values).max().reshape(scale.shape)
        )
        new = np.where(amax > 0, amax / QMAX, 1).astype(scale.dtype)
        rounded = np.rint(values / broadcast_along(new.astype(np.float64), axis, codes.ndim))
        rule = "zero-point" if points.any() else "uint8" if dtype is ir.DataType.UINT8 else "codes-type"
        yield Change(rule, str(node.name), "int8 codes with zero point 0, rounded anew", is_exact=False)
        _set_codes(node, np.clip(rounded, -QMAX, QMAX).astype(np.int8), new)


def make_float(model: ir.Model, node: ir.Node, values: NDArray[Any]) -> Change:
    """Replaces a DequantizeLinear by a float constant."""
    scale = find_constant(node, 1)
    assert scale is not None
    constant = add_initializer(model.graph, f"{node.name}_float", np.asarray(values, scale.dtype))
    node.outputs[0].replace_all_uses_with(constant)
    model.graph.remove(node, safe=True)
    return Change("int32", str(node.name), "a float constant of the same values")


def broadcast_along(array: NDArray[Any], axis: int | None, rank: int) -> NDArray[Any]:
    """Returns scales or zero points shaped to be broadcast against a tensor of this rank."""
    if axis is None:
        return array.reshape(())
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def _points(node: ir.Node, codes: NDArray[Any]) -> NDArray[np.int64] | None:
    """Returns the zero points, broadcastable to the codes; None if they are computed."""
    points = find_constant(node, 2)
    if points is None:
        return np.zeros((), np.int64) if len(node.inputs) < 3 or node.inputs[2] is None else None
    if "block_size" in node.attributes:
        blocked, size = node.attributes["axis"].as_int(), node.attributes["block_size"].as_int()
        return np.repeat(points.astype(np.int64), size, axis=blocked)[tuple(map(slice, codes.shape))]
    axis = read_axis(node) if points.size > 1 else None
    return (
        broadcast_along(points.astype(np.int64), axis, codes.ndim) if points.size else np.zeros((), np.int64)
    )


def _is_broken(node: ir.Node) -> bool:
    """Whether its scales or zero points are not as many as its channels."""
    return any(finding.rule == "scale-count" for finding in check_scale(node))


def _set_codes(node: ir.Node, codes: NDArray[np.int8], scale: NDArray[Any]) -> None:
    set_constant(node, 0, codes)
    set_constant(node, 1, scale)
    set_constant(node, 2, np.zeros(scale.shape, np.int8))
