"""Rules for QuantizeLinear and DequantizeLinear nodes and their codes, each by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.lint.finding import Finding, report
from trtq.pipeline.graph.operands import (
    DEQUANTIZE,
    EIGHT_BITS,
    OPERATOR_FORMAT,
    QUANTIZE,
    SIGNED,
    find_code_dtype,
    find_constant,
    read_axis,
)

_TAKEN = (*EIGHT_BITS, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1, None)
_INSTEAD = {
    ir.DataType.FLOAT8E5M2: "quantize again to float8 e4m3",
    ir.DataType.UINT4: "quantize again to int4, symmetric",
}
_WITH_BOUNDS = ("Clip", "Pad")


def check_operator(node: ir.Node) -> Iterator[Finding]:
    """The QOperator format and dynamic quantization are not TensorRT's."""
    if node.op_type in OPERATOR_FORMAT:
        reason = f"{node.op_type} is not an operator of TensorRT, which takes Q/DQ pairs only"
        yield report("operator", "refused", node, reason, "quantize again with QuantFormat.QDQ")


def check_codes(node: ir.Node) -> Iterator[Finding]:
    """Codes are int8 (or int4, or float8 e4m3 and float4), with the zero point 0."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    dtype, points = find_code_dtype(node), find_constant(node, 2)
    if dtype is ir.DataType.INT32:
        reason = "it dequantizes int32 (a quantized bias), which TensorRT refuses"
        advice = "quantize again with extra_options={'QuantizeBias': False}"
        yield report("int32", "refused", node, reason, advice)
    elif dtype not in _TAKEN:
        reason = (
            f"its quantized values are {_name(dtype)}; TensorRT reads int8, int4, float8 e4m3 and float4 e2m1"
        )
        yield report("codes-type", "refused", node, reason, _INSTEAD.get(dtype, "quantize again to int8"))
    elif points is not None and np.any(points.astype(np.float32) != 0):
        point = points.astype(np.int64)[points.astype(np.float32) != 0][0]
        reason = f"it has the zero point {point}; TensorRT takes symmetric quantization only"
        yield report("zero-point", "refused", node, reason, "quantize again, with symmetric ranges")
    elif dtype is ir.DataType.UINT8:
        yield from _check_uint8(node)


def _check_uint8(node: ir.Node) -> Iterator[Finding]:
    if node.op_type == DEQUANTIZE and not _is_made_here(node):
        reason = "its quantized values are uint8 and come from a constant or an input, which TensorRT refuses"
        yield report("uint8", "refused", node, reason, "quantize again with QInt8")
    elif len(node.inputs) < 3 or node.inputs[2] is None:
        reason = "it has no zero point, so ONNX reads it as uint8, and TensorRT as int8"
        yield report("missing-zero-point", "wrong", node, reason, "give it an int8 zero point of 0")
    else:
        reason = (
            "its quantized values are uint8, which TensorRT reads as int8: the upper half of the range is "
            "lost"
        )
        yield report("uint8", "wrong", node, reason, "quantize again with QInt8")


def _is_made_here(node: ir.Node) -> bool:
    """Whether the codes are made in the graph: only then does TensorRT take them for int8."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == QUANTIZE:
            return True
        value = producer.inputs[0]
    return False


def check_scale(node: ir.Node) -> Iterator[Finding]:
    """Scales are positive and finite, and as many as the tensor has channels."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    yield from _check_points(node)
    if block := node.attributes.get_int("block_size", 0):
        yield from _check_blocks(node, block)
    if (scale := find_constant(node, 1)) is None:
        return
    values = scale.astype(np.float64).reshape(-1)
    advice = "look for a layer with no values or a broken calibration"
    has_sign = find_code_dtype(node) is ir.DataType.INT4  # whose scales TensorRT does not look at
    if not has_sign and (bad := values[~(values > 0)]).size:
        reason = f"it has the scale {bad[0]:g}; scales must be positive and finite"
        yield report("scale", "refused", node, reason, advice)
    elif np.isinf(values).any():
        reason = "it has the scale inf; TensorRT builds it, and everything becomes 0 or NaN"
        yield report("scale", "wrong", node, reason, advice)
    yield from _check_count(node, scale.size)


def _check_points(node: ir.Node) -> Iterator[Finding]:
    shapes = [value.shape for value in node.inputs[1:] if value is not None]
    counts = [math.prod(shape.numpy()) for shape in shapes if shape is not None and shape.is_static()]
    if len(counts) == 2 and counts[0] != counts[1]:
        reason = f"it has {counts[0]} scales and {counts[1]} zero points"
        yield report(
            "scale-count", "refused", node, reason, "quantize with as many of the one as of the other"
        )


def _check_count(node: ir.Node, count: int) -> Iterator[Finding]:
    block = node.attributes.get_int("block_size", 0)
    value, axis = node.inputs[0], read_axis(node)
    shape = value.shape if value is not None else None
    rank = 2 if shape is None else len(shape)
    if not block and axis is not None and shape is not None and axis < rank:
        size = shape[axis]
        if isinstance(size, int) and size != count:
            reason = f"it has {count} scales for the {size} channels of axis {axis}"
            yield report("scale-count", "refused", node, reason, "quantize with one scale for each channel")
    if block and rank > 3:
        reason = (
            f"its blocks of {block} lie in a tensor of rank {rank}; TensorRT takes blocks in matrices only"
        )
        yield report("blocks", "refused", node, reason, "quantize with one scale for each output channel")


def _check_blocks(node: ir.Node, block: int) -> Iterator[Finding]:
    """TensorRT parts an axis evenly into as many blocks as there are scales, whatever the block size says."""
    shapes = [value.shape for value in node.inputs[:2] if value is not None and value.shape is not None]
    if len(shapes) < 2 or len(shapes[0]) != len(shapes[1]):
        return
    axis = node.attributes.get_int("axis", 1) % len(shapes[0])
    size, count = (shape[axis] for shape in shapes)
    if not isinstance(size, int) or not isinstance(count, int) or count < 2 or size % block == 0:
        return
    told = f"its blocks of {block} leave a part of one in the {size} of axis {axis}"
    advice = "choose a block size that divides the axis, or leave the layer float"
    if size % count:
        yield report("blocks", "refused", node, f"{told}; TensorRT takes whole blocks only", advice)
    else:
        taken = f"TensorRT takes {count} blocks of {size // count} instead"
        yield report("blocks", "wrong", node, f"{told}; {taken}", advice)


def check_scale_type(node: ir.Node) -> Iterator[Finding]:
    """Scales that are powers of two in one byte (MXFP8) are no constants of TensorRT, nor has it a kernel."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.dtype is ir.DataType.FLOAT8E8M0:
            reason = (
                f"its scales {value.name!r} are float8 e8m0: TensorRT-RTX has no kernel that multiplies MXFP8"
            )
            yield report("codes-type", "refused", node, reason, "quantize to float8 e4m3, with float scales")


def check_constant(node: ir.Node) -> Iterator[Finding]:
    """An int8 constant is read by DequantizeLinear and by nothing else."""
    if node.op_type in (QUANTIZE, DEQUANTIZE, *_WITH_BOUNDS) or node.op_type in OPERATOR_FORMAT:
        return
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.dtype in SIGNED:
            reason = (
                f"it reads the {_name(value.dtype)} constant {value.name!r}, "
                f"which TensorRT allows to DequantizeLinear only"
            )
            yield report("int8-constant", "refused", node, reason, "put the DequantizeLinear before it")


def check_pool(node: ir.Node) -> Iterator[Finding]:
    """TensorRT has no MaxPool over int8 in three dimensions."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "MaxPool" or value is None or value.shape is None or len(value.shape) != 5:
        return
    if value.dtype in (ir.DataType.INT8, ir.DataType.UINT8):
        reason = f"it pools {_name(value.dtype)} codes in three dimensions, for which TensorRT has no kernel"
        yield report("pool", "refused", node, reason, "put the DequantizeLinear before it")


def check_bound(node: ir.Node) -> Iterator[Finding]:
    """The bounds of a Clip and the filling of a Pad are float constants."""
    if node.op_type not in _WITH_BOUNDS:
        return
    for value in node.inputs[1:]:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == DEQUANTIZE and _reads_codes(producer):
            reason = f"its input {value.name!r} is a dequantized constant, which TensorRT refuses here"  # type: ignore[union-attr]
            yield report("quantized-bound", "refused", node, reason, "leave bounds and fillings float")


def _reads_codes(dequantize: ir.Node) -> bool:
    codes = dequantize.inputs[0]
    return codes is not None and codes.is_initializer()


def _name(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()
