"""Outputs whose rows stand in an order that values decide, as the objects of a detector behind a TopK.

Two scores that change places swap two rows: value by value the outputs then differ, though they hold the same
objects. A metric of the user's own compares objects.
"""

from __future__ import annotations

import onnx_ir as ir

_PICKS = ("Gather", "GatherElements", "GatherND")
_RESTORES = ("Scatter", "ScatterElements", "ScatterND")
"""What puts rows back where they were."""
_OF_INDICES = (
    "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand", "Tile", "Add", "Sub", "Mul", "Div", "Mod",
    "Concat", "Identity", "Transpose", "Slice", "Floor", "Where",
)  # fmt: skip
"""What computes other indices, or classes, from the places that a TopK gives."""


def find_ranked(model: ir.Model) -> set[str]:
    """Returns the outputs whose rows are picked by a TopK, or are what it picks."""
    indices, rows = set[ir.Value](), set[ir.Value]()
    nodes = [node for node in model.graph if not node.domain]
    count = -1
    while count < len(indices) + len(rows):  # nodes may stand in any order
        count = len(indices) + len(rows)
        for node in nodes:
            _follow(node, indices, rows)
    return {str(value.name) for value in model.graph.outputs if value in indices or value in rows}


def _follow(node: ir.Node, indices: set[ir.Value], rows: set[ir.Value]) -> None:
    """Adds what a node makes of indices and rows."""
    if node.op_type == "TopK":
        indices.add(node.outputs[1])
    picks = node.op_type in _PICKS and node.inputs[1] in indices
    if picks or (node.op_type not in _RESTORES and any(value in rows for value in node.inputs)):
        rows.update(node.outputs)
    elif node.op_type in _OF_INDICES and any(value in indices for value in node.inputs):
        indices.update(node.outputs)
