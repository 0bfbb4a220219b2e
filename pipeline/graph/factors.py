"""Products with one positive number, which only change the scale of codes."""

from __future__ import annotations

import math

import onnx_ir as ir

from trtq.pipeline.graph.operands import find_constant


def find_factor(node: ir.Node) -> tuple[int, float] | None:
    """Returns the place of what a Mul or Div scales, and the positive number that it is multiplied with.

    None if it computes anything else: the number may be no constant, or make the shape another one.
    """
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for place in (1,) if node.op_type == "Div" else (1, 0):
        number, other = find_constant(node, place), node.inputs[1 - place]
        if number is None or number.size != 1 or other is None or other.shape is None:
            continue
        value = float(number.reshape(()))
        if number.ndim <= len(other.shape) and math.isfinite(value) and value > 0:
            return 1 - place, value if node.op_type == "Mul" else 1 / value
    return None
