"""How far tensors reach that were not there when a model was observed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

_KEEPS_REACH = ("Abs", "Max", "Mul", "Pad", "ReduceMax", "Sub")
"""What stands behind a tensor: it finds the magnitudes of rows, or shifts and scales channels."""


def spread(graph: ir.Graph, amaxes: Mapping[str, float], observed: Collection[str]) -> dict[str, float]:
    """Returns the amaxes with those of new tensors that reach about as far as one that has an amax.

    These are what the nodes of repairs make of it, and what a new bias is added to.

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
        if node.op_type == "Add" and (amax := spread.get(str(node.outputs[0].name))) is not None:
            for value in node.inputs:
                if value is not None and value.producer() is not None:
                    _add(spread, value, amax, observed)
    return spread


def _add(spread: dict[str, float], value: ir.Value, amax: float, observed: Collection[str]) -> None:
    if value.name not in observed:
        spread.setdefault(str(value.name), amax)
