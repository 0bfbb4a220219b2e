"""The factors of a Gemm as part of its constants, or of what it multiplies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES, scale_tensor
from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import is_fixed

_LARGEST = 2.0**16
"""Weights times larger factors, or divided by them, might leave the range of FP32."""


def fold_factors(model: ir.Model) -> Iterator[str]:
    """Multiplies the weight of each Gemm by its alpha and the bias by its beta, in the model.

    TensorRT computes the product before it is multiplied by alpha. In FP16 the product may overflow where the
    output of the Gemm does not. Where both operands are computed, the first is multiplied before.
    """
    edit, folded, scaled = GraphEditor(model), 0, 0
    for node in [node for node in model.graph if node.op_type == "Gemm" and not node.domain]:
        places = {"alpha": next((place for place in (1, 0) if _is_constant(node, place)), None), "beta": 2}
        found = [
            _fold(edit, node, name, place)
            for name, place in places.items()
            if place is not None and _is_constant(node, place)
        ]
        folded += any(found)
        scaled += places["alpha"] is None and _scale_first(edit, node)
    if scaled:
        yield f"multiplied what {format_count(scaled, 'Gemm node')} of two activations read by alpha"
    if folded:
        yield f"multiplied the constants of {format_count(folded, 'Gemm node')} by alpha and beta"


def _is_constant(node: ir.Node, place: int) -> bool:
    """Whether an input is a constant in FP32 that no caller can replace."""
    value = node.inputs[place] if place < len(node.inputs) else None
    return value is not None and is_fixed(value) and value.dtype is ir.DataType.FLOAT


def _fold(edit: GraphEditor, node: ir.Node, name: str, place: int) -> bool:
    """Makes a factor 1; returns whether it was another number before."""
    factor, value = node.attributes.get_float(name, 1.0), node.inputs[place]
    if factor == 1.0 or not 1 / _LARGEST <= abs(factor) <= _LARGEST:
        return False
    assert value is not None
    assert value.const_value is not None
    scaled = scale_tensor(value.const_value, np.asarray(factor, np.float64))
    edit.set_constant(node, place, f"{value.name}_by_{name}", scaled)
    del node.attributes[name]
    return True


def _scale_first(edit: GraphEditor, node: ir.Node) -> bool:
    """Multiplies the first operand by an alpha below 1; returns whether it was one."""
    alpha, first = node.attributes.get_float("alpha", 1.0), node.inputs[0]
    if first is None or first.dtype not in FLOAT_TYPES or not 0 < abs(alpha) < 1:
        return False
    number = edit.add_constant(f"{node.name}_alpha", np.asarray(alpha, first.dtype.numpy()))
    scaled = edit.insert("Mul", [first, number], like=first, output=f"{first.name}_by_alpha", before=node)
    node.replace_input_with(0, scaled)
    del node.attributes["alpha"]
    return True
