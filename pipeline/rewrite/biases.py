"""Biases as ONNX Runtime's integer kernels take them: in 32 bits, in steps of what products are in."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import find_constant

_LARGEST = 2.0**30
"""Half of what 32 bits hold: the products are added to it."""
_BIAS_PLACE = 2


def quantize_biases(model: ir.Model) -> None:
    """Puts the constant biases of quantized Gemm nodes behind DequantizeLinear, in the model itself.

    A Gemm with a float bias runs in float, its weight dequantized in each run. In INT32, with the scale of
    the activation times that of the weight (Jacob et al., arXiv 1712.05877, section 2.4), the bias loses
    nothing that counts. One that 32 bits may not hold with the products stays float.
    """
    edit = GraphEditor(model)
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) <= _BIAS_PLACE:
            continue
        bias, scale = _read_bias(node), _find_scale(node)
        if bias is None or scale is None:
            continue
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            steps = np.rint(bias.astype(np.float64) / scale)
        if not (np.abs(steps) <= _LARGEST).all():  # nor where a scale is 0
            continue
        name, axis = f"{node.name}_bias", {"axis": 0} if scale.size > 1 else {}
        inputs = [
            edit.add_constant(f"{name}_codes", steps.astype(np.int32)),
            edit.add_constant(f"{name}_scale", scale.astype(np.float32)),
            edit.add_constant(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
        ]
        like, output = node.outputs[0], f"{name}_float"
        value = edit.insert("DequantizeLinear", inputs, axis, like=like, output=output, before=node)
        node.replace_input_with(_BIAS_PLACE, value)
    edit.drop_unused()


def find_least_scale(node: ir.Node, step: NDArray[Any]) -> NDArray[np.float64] | None:
    """Returns the least scales of a weight with which 32 bits hold the bias of its layer; None: it has none.

    ONNX Runtime rounds the float bias of a convolution to steps of the products by itself, and cuts off what
    32 bits do not hold: a channel without weights has the least of all scales, and lost its bias. Steps of
    2^-30 of the bias are less than the last digit of FP32.

    Args:
        node: A layer, as it is before its inputs are quantized.
        step: The scale of its activation: ().

    Returns:
        Shape (outputs,).
    """
    bias = _read_bias(node)
    if bias is None or step.size != 1:
        return None
    numbers = np.where(np.isfinite(bias), np.abs(bias.astype(np.float64)), 0.0)
    return np.asarray(numbers / (float(step.item()) * _LARGEST))


def _read_bias(node: ir.Node) -> NDArray[np.float32] | None:
    bias = find_constant(node, _BIAS_PLACE)
    is_plain = bias is not None and bias.ndim == 1 and bias.dtype == np.float32
    return bias.astype(np.float32) if bias is not None and is_plain and _adds_plainly(node) else None


def _adds_plainly(node: ir.Node) -> bool:
    """Returns whether the bias is in steps of the products: not where either of them is multiplied."""
    factors = (node.attributes.get(name) for name in ("alpha", "beta"))
    return all(factor is None or factor.as_float() == 1.0 for factor in factors)


def _find_scale(node: ir.Node) -> NDArray[np.float64] | None:
    """Returns the scale of the activation times those of the weight: float64, shape () or (outputs,)."""
    product = np.ones((), np.float64)
    for value in node.inputs[:_BIAS_PLACE]:
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type != "DequantizeLinear":
            return None
        scale = find_constant(producer, 1)
        if scale is None or scale.ndim > 1:
            return None
        product = product * scale.astype(np.float64)
    return np.asarray(product)
