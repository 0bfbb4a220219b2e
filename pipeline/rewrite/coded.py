"""What is left to do for ONNX Runtime's integer kernels when layers have codes in front and behind."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.factors import find_factor
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_constant, read_points
from trtq.pipeline.rewrite.qparams import choose_asymmetric_qparams, divide_by_scale

_SAME = 1e-5
"""Two scales that differ by less are one: a code then differs by less than 1 in 300 of a step."""


def complete_codes(model: ir.Model) -> None:
    """Changes a model with Q/DQ so that ONNX Runtime computes more of it in codes, in the model itself.

    1. A positive factor behind a DequantizeLinear goes into its scale, and a pair of the same codes behind
       that goes.
    2. A limit (Relu, Clip) goes where it is that of the codes behind it. ONNX Runtime does the same, but for
       a limit that differs from theirs by a rounding.
    3. The constant of an Add or Mul between codes becomes codes: one number exactly, several in 8 bits.
    """
    edit = GraphEditor(model)
    for node in list(model.graph):
        if (found := find_factor(node)) is not None:
            _absorb(edit, node, *found)
    for node in list(model.graph):
        if node.op_type in ("Relu", "Clip") and _is_limit_of_codes(node):
            _skip(edit, node)
    for node in list(model.graph):
        if node.op_type in ("Add", "Mul"):
            _code_constant(edit, node)
    edit.drop_unused()


def _absorb(edit: GraphEditor, node: ir.Node, place: int, factor: float) -> None:
    """Lets a DequantizeLinear of one scale make what a node makes of it."""
    source, result = node.inputs[place], node.outputs[0]
    maker = source.producer() if source is not None else None
    scale = find_constant(maker, 1) if maker is not None and maker.op_type == DEQUANTIZE else None
    if maker is None or scale is None or scale.size != 1:
        return
    scaled = (scale.astype("float64") * factor).astype(scale.dtype)
    if not 0 < float(scaled.reshape(())) < float("inf"):
        return
    inputs = [maker.inputs[0], edit.add_constant(f"{result.name}_scale", scaled), *maker.inputs[2:]]
    made = edit.insert(DEQUANTIZE, inputs, like=result, output=f"{result.name}_absorbed", before=node)
    for reader in list(result.consumers()):
        if reader.op_type == QUANTIZE and _have_one_scale(reader, made.producer()):
            assert maker.inputs[0] is not None
            edit.replace(reader.outputs[0], maker.inputs[0])
    edit.replace(result, made, rename="")
    edit.remove(node)


def _have_one_scale(quantize: ir.Node, dequantize: ir.Node | None) -> bool:
    """Returns whether a QuantizeLinear makes the codes again that were read."""
    assert dequantize is not None
    ours, theirs = find_constant(quantize, 1), find_constant(dequantize, 1)
    points = read_points(quantize), read_points(dequantize)
    if ours is None or theirs is None or ours.size != 1 or points[0] is None or points[1] is None:
        return False
    codes, made = dequantize.inputs[0], quantize.outputs[0]
    is_one_type = codes is not None and codes.dtype == made.dtype
    is_near = abs(float(ours.reshape(())) / float(theirs.reshape(())) - 1) < _SAME
    return is_one_type and is_near and bool((points[0] == points[1]).all())


def _is_limit_of_codes(node: ir.Node) -> bool:
    """Returns whether the only reader quantizes, and no code stands for a value beyond the limits."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != QUANTIZE or node.outputs[0].is_graph_output():
        return False
    scale, points = find_constant(users[0], 1), read_points(users[0])
    made = users[0].outputs[0].dtype
    if scale is None or scale.size != 1 or points is None or made is None:
        return False
    low, high = (0.0, None) if node.op_type == "Relu" else _read_limits(node)
    step, zero = float(scale.reshape(())), int(points.reshape(()))
    first, last = (made.min - zero) * step, (made.max - zero) * step
    is_low = low is None or first >= low - step / 4  # what lies beyond it has the first code anyway
    return bool(is_low and (high is None or last <= high + step / 4))


def _read_limits(node: ir.Node) -> tuple[float | None, float | None]:
    """Returns the limits of a Clip, None for one that it lacks; those that are computed count as tight."""
    limits = []
    for place, tight in ((1, float("inf")), (2, -float("inf"))):
        number = find_constant(node, place)
        is_there = len(node.inputs) > place and node.inputs[place] is not None
        limits.append(float(number.reshape(())) if number is not None else tight if is_there else None)
    return limits[0], limits[1]


def _skip(edit: GraphEditor, node: ir.Node) -> None:
    assert node.inputs[0] is not None
    edit.replace(node.outputs[0], node.inputs[0])
    edit.remove(node)


def _code_constant(edit: GraphEditor, node: ir.Node) -> None:
    """Puts the constant of a node that reads and writes codes behind a DequantizeLinear."""
    users = [user.op_type for user, _ in node.outputs[0].uses()]
    for place in (0, 1):
        constant, other = node.inputs[place], node.inputs[1 - place]
        maker = other.producer() if other is not None else None
        is_read = maker is not None and maker.op_type == DEQUANTIZE
        if not is_read or constant is None or constant.dtype not in FLOAT_TYPES or users != [QUANTIZE]:
            continue
        values = find_constant(node, place) if constant.is_initializer() else None
        if values is None or not values.size:
            continue
        ends = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        if ends == (0.0, 0.0):
            continue
        qparams = choose_asymmetric_qparams(ends, str(values.dtype))
        codes = np.clip(np.rint(divide_by_scale(values, qparams)) + qparams.zero, 0, 255)
        name = f"{node.name}_constant"
        inputs = [
            edit.add_constant(f"{name}_codes", codes.astype(qparams.zero_point.dtype)),
            edit.add_constant(f"{name}_scale", qparams.scale),
            edit.add_constant(f"{name}_zero_point", qparams.zero_point),
        ]
        made = edit.insert(DEQUANTIZE, inputs, like=constant, output=f"{name}_float", before=node)
        node.replace_input_with(place, made)
        return
