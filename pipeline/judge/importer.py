"""Brings what layers of one quantized model read into another one of the same float graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant


class Importer:
    """Finds values of another model by name, and adds constants that are not there or are other ones."""

    def __init__(self, edit: GraphEditor, values: Mapping[str, ir.Value]) -> None:
        """Takes the graph that values are brought to, and its values by name, which may be added to."""
        self._edit, self._values = edit, values
        self._made: dict[ir.Value, ir.Value] = {}

    def take(self, value: ir.Value) -> ir.Value:
        """Returns the value of this graph that holds the same as one of the other."""
        name = str(value.name)
        if not value.is_initializer():
            return self._values[name]
        if value not in self._made:
            there = self._values.get(name)
            is_known = there is not None and _hold_the_same(there, value)
            self._made[value] = (
                there if there and is_known else self._edit.add_constant(name, read_constant(value))
            )
        return self._made[value]


def _hold_the_same(one: ir.Value, other: ir.Value) -> bool:
    """Whether two constants have the same bytes: what was rescaled has other ones under the same name."""
    mine, theirs = one.const_value, other.const_value
    if mine is theirs or mine is None or theirs is None:
        return mine is theirs
    is_alike = mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return is_alike and mine.numpy().tobytes() == theirs.numpy().tobytes()
