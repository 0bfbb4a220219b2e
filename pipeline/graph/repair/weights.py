"""Weights that are quantized along another axis than that of their output channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.pipeline.formats import INT8, LAYER_FORMATS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint.layers import check_layer, find_output_axis
from trtq.pipeline.graph.operands import DEQUANTIZE, Operand, evaluate, find_operands
from trtq.pipeline.graph.repair.change import Change, set_params

_REPAIRED = ("weight-axis", "joined-weight")


def repair_weights(edit: GraphEditor) -> Iterator[Change]:
    """Quantizes weights again along the axis of their output channels, where kernels want the scales.

    A channel whose elements all have one scale keeps it and its codes; another gets its largest magnitude by
    the largest code and is rounded anew.
    """
    for node in list(edit.graph):
        rule = next((finding.rule for finding in check_layer(node) if finding.rule in _REPAIRED), None)
        activation, operand = find_operands(node) if rule is not None else (None, None)
        form = None if operand is None else LAYER_FORMATS.get(str(operand.format))
        if rule is None or operand is None or form is None or not _is_one_weight(activation, operand):
            continue
        place = 1 if operand.value is node.inputs[1] else 0
        axis = find_output_axis(node, operand)
        values = evaluate(operand).astype(np.float64)
        marks = evaluate(operand, codes=True).astype(np.float64)
        scale = _scales(values, marks, axis, operand, form.largest)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        steps = scale.astype(np.float64).reshape(shape)
        is_int8 = form is INT8  # of which a file may have the code -128
        codes = (
            np.clip(np.rint(values / steps), -QMAX - 1, QMAX).astype(np.int8)
            if is_int8
            else form.codes_of(values, steps)
        )
        change = float(np.max(np.abs(codes.astype(np.float64) * steps - values), initial=0.0))
        reach = float(np.max(np.abs(values), initial=0.0)) or 1.0
        is_exact = change <= reach * 2.0**-20  # the last bits of a float32 product
        node.replace_input_with(place, _dequantize(edit, node, codes, scale, axis, operand, form))
        text = f"its weight quantized along axis {axis}" + ("" if is_exact else ", rounded anew")
        detail = "" if is_exact else f" by at most {change / reach:.2%} of the largest weight"
        yield Change(rule, str(node.name), text, is_exact, detail)


def _is_one_weight(activation: Operand | None, operand: Operand) -> bool:
    """Whether it is a weight that is quantized once, in the format of the activation beside it."""
    is_alike = activation is None or activation.format == operand.format
    return is_alike and operand.is_weight and operand.stored is None


def _scales(
    values: NDArray[np.float64], marks: NDArray[np.float64], axis: int, operand: Operand, largest: float
) -> NDArray[Any]:
    """Returns the scale of each output channel: its own where its elements share one, else a new one.

    Args:
        values: What the layer reads, any shape.
        marks: The scale of every element, of the same shape.
        axis: Of the output channels.
        operand: For the dtype that the layer reads.
        largest: The largest code.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    low, high, amax = marks.min(axis=others), marks.max(axis=others), np.abs(values).max(axis=others)
    wanted = np.where(amax > 0, amax / largest, 1.0)
    assert operand.scale is not None
    dtype = operand.value.dtype.numpy() if operand.value.dtype is not None else operand.scale.dtype
    rounded = wanted.astype(dtype)
    with np.errstate(over="ignore"):
        above = np.nextafter(rounded, np.asarray(np.inf, dtype))
    enough = np.where(rounded.astype(np.float64) < wanted, above, rounded)
    return np.where((low == high) & (low > 0), low.astype(dtype), enough).astype(dtype)


def _dequantize(
    edit: GraphEditor,
    node: ir.Node,
    codes: NDArray[Any],
    scale: NDArray[Any],
    axis: int,
    operand: Operand,
    form: CodeFormat,
) -> ir.Value:
    name = f"{node.name}_weight_DequantizeLinear"
    inputs = [edit.add_constant(f"{name}_codes", ir.tensor(codes, form.dtype))]
    output = f"{node.name}_weight"
    result = edit.insert(DEQUANTIZE, inputs, like=operand.value, output=output, name=name, before=node)
    set_params(edit, result.producer(), scale, axis, form.dtype)  # type: ignore[arg-type]
    result.shape = ir.Shape(codes.shape)
    return result
