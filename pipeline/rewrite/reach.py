"""How far tensors reach that were not there when a model was observed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import onnx_ir as ir

from trtq.calibrators.ranges import FP16_LEAST, FP16_LIMIT

_KEEPS_REACH = ("Abs", "Max", "Mul", "Pad", "ReduceMax", "Sub")
"""What stands behind a tensor: it finds the magnitudes of rows, or shifts and scales channels."""


def spread(graph: ir.Graph, amaxes: Mapping[str, float], observed: Collection[str]) -> dict[str, float]:
    """Returns the amaxes with those of new tensors that reach about as far as one that has an amax.

    These are what the nodes of repairs make of it, what a new bias is added to, and a product that is then
    multiplied by the magnitudes of its rows.

    Args:
        graph: With its nodes in order.
        amaxes: By the names of tensors.
        observed: The names of all tensors that were there.
    """
    spread = dict(amaxes)
    for node in graph if amaxes else ():
        first = node.inputs[0] if node.op_type in _KEEPS_REACH else None
        if first is not None and first.name in spread:
            _add(spread, node.outputs[0], spread[str(first.name)], observed)
    for node in reversed(graph) if amaxes else ():
        if (amax := spread.get(str(node.outputs[0].name))) is None:
            continue
        for value, other in itertools.permutations(node.inputs, 2) if len(node.inputs) == 2 else ():
            if node.op_type == "Add" and value is not None and value.producer() is not None:
                _add(spread, value, amax, observed)
            if node.op_type == "Mul" and value is not None and other is not None and _is_product(value):
                divided = amax / spread.get(str(other.name), 1.0)
                if divided > FP16_LIMIT or divided < FP16_LEAST:
                    _add(spread, value, divided, observed)
    return spread


def _is_product(value: ir.Value) -> bool:
    """Whether a value is what the magnitudes of rows are multiplied with."""
    maker = value.producer()
    return maker is not None and maker.op_type in ("Gemm", "MatMul")


def _add(spread: dict[str, float], value: ir.Value, amax: float, observed: Collection[str]) -> None:
    if value.name not in observed:
        spread.setdefault(str(value.name), amax)
