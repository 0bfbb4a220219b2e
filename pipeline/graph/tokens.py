"""Which layers can have a scale for each row of what they read, found in each run."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerToken
from trtq.pipeline.graph.placed import QuantizedNode

_ROWS = PerToken(-1)


def by_token(node: ir.Node, layer: QuantizedNode) -> QuantizedNode:
    """Returns a layer with a scale for each row of its activation, if it can have that."""
    if explain_one_scale(node, layer):
        return layer
    inputs = tuple((place, _by_row(encoding)) for place, encoding in layer.scheme.inputs)
    return replace(layer, scheme=replace(layer.scheme, inputs=inputs))


def explain_one_scale(node: ir.Node, layer: QuantizedNode) -> str:
    """Returns why the rows of a layer's activation cannot have scales of their own; empty if they can."""
    if layer.weight is None or node.op_type not in ("Gemm", "MatMul"):
        return "only MatMul and Gemm with constant weights have rows"
    if layer.weight[0] == 0:
        return "its constant is the first operand, so that it sums over columns"
    weight = node.inputs[layer.weight[0]]
    if weight is not None and weight.shape is not None and len(weight.shape) == 1:
        return "its constant is a vector, so that its output has no rows"
    return "transA: it sums over columns" if node.attributes.get_int("transA", 0) == 1 else ""


def _by_row(encoding: Encoding) -> Encoding:
    """Returns an encoding of what is left when each row is divided by its largest magnitude: at most 1.

    What has scales of its own already, or one for each block, keeps them.
    """
    if encoding.is_given or encoding.is_dynamic:
        return encoding
    return replace(encoding, granularity=_ROWS, is_dynamic=True, amax=1.0)
