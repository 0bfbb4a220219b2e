"""The nodes between a Softmax or Sigmoid and what needs its small shares, or how little one lacks to 1.

FP16 rounds shares below 6e-8 to 0, whose logarithm is infinite. It rounds those above 0.9998 to 1, and BF16
those above 0.998, so that nothing is left to 1. Log-likelihoods, entropies and the inverse sigmoid of
detectors, log(p / (1 - p)), need both.
"""

from __future__ import annotations

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats.floats import FP16, FloatFormat
from trtq.pipeline.graph.worth import REARRANGING

_MAKERS = ("HardSigmoid", "Sigmoid", "Softmax")
_KEEPS_SHARES = REARRANGING | {
    "Add", "Clip", "Div", "GatherElements", "GatherND", "Max", "Mean", "Min", "Mul", "Neg", "Pow",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Split", "Sqrt", "Sub", "Sum", "TopK",
    "Where",
}  # fmt: skip
"""What makes shares, or numbers as small, of shares; no layer, after which they are numbers like others."""
DIVISORS = {"Div": 1, "Log": 0, "Reciprocal": 0}
"""Which input of these operators must not be zero."""


def find_share_nodes(graph: ir.Graph, half: FloatFormat) -> dict[ir.Node, str]:
    """Returns why nodes stay FP32 that lead from shares to their logarithm, or to a division by their rest.

    Args:
        graph: In topological order.
        half: FP16, or BF16, which has the small shares.
    """
    shares, rests = set[ir.Value](), set[ir.Value]()
    found: dict[ir.Node, str] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        if why := _explain(node, shares if half is FP16 else rests, rests, half.name.upper()):
            _collect(node, shares, why, found)
        if node.op_type in _MAKERS or (node.op_type in _KEEPS_SHARES and not shares.isdisjoint(node.inputs)):
            made = [value for value in node.outputs if value.dtype in FLOAT_TYPES]
            shares.update(made)
            if _is_rest(node, shares) or not rests.isdisjoint(node.inputs):
                rests.update(made)
    return found


def _explain(node: ir.Node, rounded: set[ir.Value], rests: set[ir.Value], half: str) -> str:
    """Returns why a node needs shares in FP32; empty if it does not."""
    read = node.inputs[DIVISORS[node.op_type]] if node.op_type in DIVISORS else None
    if read is None or read not in (rounded if node.op_type == "Log" else rests):
        return ""
    does = "has a logarithm" if node.op_type == "Log" else "divides"
    return f"tensor {read.name!r} {does}, and {half} rounds " + (
        "shares near one to one" if read in rests else "small shares to zero"
    )


def _is_rest(node: ir.Node, shares: set[ir.Value]) -> bool:
    """Returns whether a node subtracts shares from a constant: 1 in all likelihood."""
    whole = node.inputs[0] if node.op_type == "Sub" else None
    return whole is not None and whole.const_value is not None and node.inputs[1] in shares


def _collect(last: ir.Node, shares: set[ir.Value], why: str, found: dict[ir.Node, str]) -> None:
    """Adds a node and what makes the shares that it needs."""
    todo = [last]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = why
            todo += [maker for maker in node.predecessors() if not shares.isdisjoint(maker.outputs)]
