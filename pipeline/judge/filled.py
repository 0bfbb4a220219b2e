"""Outputs that a constant fills wherever a mask says so: distances of 1e9, scores of -100, depths of nothing.

Where the mask differs from sample to sample, the constant is no place that hardly changes. It may be far
larger than what layers make, and hide all of it: so that is judged alone too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.judge.parts import PASSED_ON

_NEAR = 1e-3
"""A value is the constant if it differs by a smaller share of it: in FP16 it may be rounded."""
_SCATTERS = ("Scatter", "ScatterElements", "ScatterND")


@dataclass(frozen=True, slots=True)
class Filled:
    """What fills an output, and the name of the tensor that is behind it."""

    number: float
    part: str

    def separate(self, output: NDArray[Any]) -> NDArray[Any]:
        """Returns an output with zeros in the place of the constant; other values shrink near it.

        That has no step. Values may be as large as the constant, such as shares of 0.999 beside a 1, and one
        model may round to it what another one does not.
        """
        values = output.astype(np.float64)
        shares = np.abs(values - self.number) / abs(self.number)
        return np.asarray(values * np.clip((shares - _NEAR) / (1 - _NEAR), 0, 1), output.dtype)


def find_filled(model: ir.Model) -> dict[str, Filled]:
    """Returns what fills each output that a constant other than zero fills in part."""
    found = {str(output.name): _find_fill(output) for output in model.graph.outputs}
    return {name: item for name, item in found.items() if item is not None}


def _find_fill(output: ir.Value) -> Filled | None:
    node = output.producer()
    while node is not None and node.op_type in PASSED_ON and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    for constant, other in [] if node is None or node.domain else _list_pairs(node):
        number = _read_number(constant)
        if number and other is not None and other.producer() is not None:
            return Filled(number, str(other.name))
    return None


def _list_pairs(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Yields what may be the constant, and what is there otherwise."""
    if node.op_type == "Where":
        yield node.inputs[1], node.inputs[2]
        yield node.inputs[2], node.inputs[1]
    elif node.op_type in _SCATTERS:
        yield node.inputs[0], node.inputs[2]


def _read_number(value: ir.Value | None) -> float | None:
    """Returns the finite number that a constant holds everywhere; None if it is no such constant."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Expand":
        return _read_number(node.inputs[0])
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if node is not None and node.op_type in ("ConstantOfShape", "Constant"):
        tensor = node.attributes.get_tensor("value")
    if tensor is None or not tensor.size or not tensor.dtype.is_floating_point():
        return None
    array = tensor.numpy().reshape(-1)
    return float(array[0]) if np.isfinite(array[0]) and (array == array[0]).all() else None


def see_filled(
    filled: Mapping[str, Filled], outputs: Mapping[str, NDArray[Any]]
) -> dict[tuple[str, str], NDArray[Any]]:
    """Returns each such output without the constant, by the output and the part."""
    return {
        (name, item.part): item.separate(outputs[name])
        for name, item in filled.items()
        if name in outputs and np.issubdtype(outputs[name].dtype, np.floating)
    }
