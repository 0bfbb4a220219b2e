"""A scale for each row of an activation, found in each run: division before Q/DQ, and the product behind.

TensorRT takes constant scales only. So each row is divided by its largest magnitude, the quotient gets Q/DQ
with one scale, and what the layer makes of it is multiplied by that magnitude again, before any bias. A row
of a product depends on one row of the activation, so this is exact but for the rounding of the codes (the
"per-token" scales of ZeroQuant, arXiv 2206.01861, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trtq.pipeline.formats.floats import FP16
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.opset import read_opset

BEHIND = ("Reshape", "Mul", "Add")
"""The operators behind the layer."""
_AXES_AS_INPUT = 18


@dataclass(frozen=True, slots=True)
class DividedRows:
    """An activation whose rows reach from -1 to 1, and what they were divided by: (..., 1)."""

    value: ir.Value
    divisors: ir.Value


def divide_rows(edit: GraphEditor, source: ir.Value, scale_dtype: str) -> DividedRows:
    """Returns a tensor divided by the largest magnitude of each row; rows of zeros stay zero.

    Args:
        edit: Of the graph.
        source: Shape (..., columns).
        scale_dtype: "float16" if the graph will be cast to FP16: the least divisor must be a number there.
    """
    assert source.dtype is not None
    name, dtype = source.name, source.dtype.numpy()
    least = 2.0**-14 if FP16.array_dtype in (dtype, np.dtype(scale_dtype)) else float(_smallest(dtype))
    magnitudes = edit.insert("Abs", [source], like=source, output=f"{name}_magnitude")
    like = ir.val(
        None, source.dtype, None if source.shape is None else ir.Shape([*source.shape.dims[:-1], 1])
    )
    output = f"{name}_row_magnitude"
    if read_opset(edit.model) < _AXES_AS_INPUT:
        attributes = {"axes": [-1], "keepdims": 1}
        largest = edit.insert("ReduceMax", [magnitudes], attributes, like=like, output=output)
    else:
        axes = edit.add_constant(f"{name}_row_axes", np.array([-1], np.int64))
        largest = edit.insert("ReduceMax", [magnitudes, axes], {"keepdims": 1}, like=like, output=output)
    floor = edit.add_constant(f"{name}_row_least", np.array(least, dtype))
    divisor = edit.insert("Max", [largest, floor], like=like, output=f"{name}_row_divisor")
    quotient = edit.insert("Div", [source, divisor], like=source, output=f"{name}_by_row")
    edit.put_behind(quotient, divisor)
    return DividedRows(quotient, divisor)


def _smallest(dtype: np.dtype[np.generic]) -> np.generic:
    """Returns the least number of full precision; whole kinds of GPUs take smaller ones for zero."""
    return ml_dtypes.finfo(dtype).smallest_normal  # type: ignore[no-untyped-call]


def multiply_rows(edit: GraphEditor, node: ir.Node, divisors: ir.Value) -> None:
    """Multiplies what a MatMul or Gemm makes by the magnitudes of its rows; a Gemm's bias comes behind that.

    What the layer made keeps its name behind all of it.
    """
    output = node.outputs[0]
    bias = _take_bias(edit, node)
    steps = [("Mul", divisors, "divided"), *([] if bias is None else [("Add", bias, "without_bias")])]
    for op_type, operand, before in steps:
        name = f"{node.name}_rows_{op_type}"
        made = f"{output.name}_{op_type}"
        result = edit.insert(op_type, [output, operand], like=output, output=made, name=name)
        edit.replace(output, result, rename=f"{output.name}_{before}")
        output = result


def _take_bias(edit: GraphEditor, node: ir.Node) -> ir.Value | None:
    """Returns what a Gemm adds, which it adds no more; None if it is a MatMul, or adds nothing."""
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is None:
        return None
    beta = node.attributes.get_float("beta", 1.0)
    node.resize_inputs(2)
    if beta == 1.0:
        return bias
    assert bias.dtype is not None
    dtype = bias.dtype.numpy()
    if bias.is_initializer():
        times = (read_constant(bias).astype(np.float64) * beta).astype(dtype)
        return edit.add_constant(f"{bias.name}_by_beta", times)
    factor = edit.add_constant(f"{node.name}_beta", np.array(beta, dtype))
    # The factor stands first, so that the product is never taken for what belongs to the layer before it.
    return edit.insert("Mul", [factor, bias], like=bias, output=f"{bias.name}_by_beta", before=node)
