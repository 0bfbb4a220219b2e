"""Weights that an embedding and an output layer share: one constant of a file, not two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trtq.models.tensors import iterate_rows, read_values
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import infer_shapes, read_opset

_SHAPE_WITH_END = 15
"""The first opset whose Shape gives a part of a shape."""
_CORNER, _ROWS = 16, 1024


def tie_weights(model: ir.Model) -> Iterator[str]:
    """Has output layers turn the table of an embedding themselves, of which they would have a turned copy.

    Other exporters write a Transpose of the table, which would be folded into a copy. PyTorch's turns the
    weight of a Linear when it folds constants, and so copies one that is shared. The MatMul becomes a Gemm of
    the same name that turns the table itself, between two Reshapes.

    Args:
        model: Its weights are not folded yet. It is changed in place.

    Yields:
        What was changed, a sentence.
    """
    found = list(_find_copies(model)) if read_opset(model) >= _SHAPE_WITH_END else []
    edit = GraphEditor(model)
    for node, table in found:
        _turn(edit, node, table)
    if found:
        edit.drop_unused()
        infer_shapes(model)
        names = ", ".join(repr(str(node.name)) for node, _ in found)
        yield f"{names} reads the table of the embedding itself, not a turned copy"


def _find_copies(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    tables = [value for value in model.graph.initializers.values() if _is_table(value)]
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" and not node.domain else None
        if weight is not None:
            table = next((table for table in tables if _is_turned(weight, table)), None)
            if table is not None:
                yield node, table


def _is_table(value: ir.Value) -> bool:
    rows = [node for node, place in value.uses() if node.op_type == "Gather" and place == 0]
    is_whole = value.const_value is not None and len(value.const_value.shape) == 2
    return is_whole and any(node.attributes.get_int("axis", 0) == 0 for node in rows)


def _is_turned(weight: ir.Value, table: ir.Value) -> bool:
    maker = weight.producer()
    if maker is not None:
        turns = maker.op_type == "Transpose" and not maker.domain and maker.inputs[0] is table
        return turns and list(maker.attributes.get_ints("perm", (1, 0))) == [1, 0]
    ours, theirs = weight.const_value if weight.is_initializer() else None, table.const_value
    if ours is None or theirs is None or ours.dtype != theirs.dtype:
        return False
    is_turned = [*ours.shape.numpy()] == [*theirs.shape.numpy()][::-1]
    return is_turned and _begin_alike(ours, theirs) and _are_alike(ours, theirs)


def _begin_alike(ours: ir.TensorProtocol, theirs: ir.TensorProtocol) -> bool:
    """Returns whether a corner is the same, so that large weights are not read for nothing."""
    corners = (next(iterate_rows(item, _CORNER), (None, np.zeros((0, 0))))[1] for item in (ours, theirs))
    first, second = (corner[:_CORNER, :_CORNER].copy() for corner in corners)
    return np.array_equal(first.T, second)


def _are_alike(ours: ir.TensorProtocol, theirs: ir.TensorProtocol) -> bool:
    turned = read_values(ours).T
    return all(np.array_equal(turned[place], rows) for place, rows in iterate_rows(theirs, _ROWS))


def _turn(edit: GraphEditor, node: ir.Node, table: ir.Value) -> None:
    """Puts a Gemm with the table in the place of a MatMul with a copy."""
    assert table.const_value is not None
    value, name, (length, width) = node.inputs[0], str(node.name), table.const_value.shape.numpy()

    def insert(op_type: str, inputs: Sequence[ir.Value | None], word: str, **attributes: Any) -> ir.Value:
        output = f"{name}_{word}"
        return edit.insert(
            op_type, inputs, attributes, like=ir.Value(), output=output, name=output, before=node
        )

    flat = insert("Reshape", [value, edit.add_constant(f"{name}_rows", np.array([-1, width]))], "flat")
    product = insert("Gemm", [flat, table], "product", transB=1)
    sizes = [insert("Shape", [value], "sizes", end=-1), edit.add_constant(f"{name}_last", np.array([length]))]
    result = insert("Reshape", [product, insert("Concat", sizes, "shape", axis=0)], "back")
    edit.replace(node.outputs[0], result, rename="")
    edit.remove(node)
    product.producer().name = name  # type: ignore[union-attr]
