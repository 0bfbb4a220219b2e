"""Weights that an embedding and an output layer share: one constant of a file, not two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trtq.models.tensors import read_values
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import infer_shapes, read_opset

_SHAPE_WITH_END = 15
"""The first opset whose Shape gives a part of a shape."""


def tie_weights(model: ir.Model) -> int:
    """Returns how many output layers now read the table of an embedding, of which they had a turned copy.

    PyTorch's exporter turns the weight of a Linear when it folds constants, and so copies one that is shared.
    Its MatMul becomes a Gemm of the same name that turns the table itself, between two Reshapes.

    Args:
        model: It is changed in place.
    """
    found = list(_find_copies(model)) if read_opset(model) >= _SHAPE_WITH_END else []
    edit = GraphEditor(model)
    for node, table in found:
        _turn(edit, node, table)
    if found:
        edit.drop_unused()
        infer_shapes(model)
    return len(found)


def _find_copies(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    tables = [value for value in model.graph.initializers.values() if _is_table(value)]
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer():
            table = next((table for table in tables if _is_turned(weight, table)), None)
            if table is not None:
                yield node, table


def _is_table(value: ir.Value) -> bool:
    rows = [node for node, place in value.uses() if node.op_type == "Gather" and place == 0]
    is_whole = value.const_value is not None and len(value.const_value.shape) == 2
    return is_whole and any(node.attributes.get_int("axis", 0) == 0 for node in rows)


def _is_turned(weight: ir.Value, table: ir.Value) -> bool:
    ours, theirs = weight.const_value, table.const_value
    if ours is None or theirs is None or ours.dtype != theirs.dtype:
        return False
    is_turned = [*ours.shape.numpy()] == [*theirs.shape.numpy()][::-1]
    return is_turned and np.array_equal(read_values(ours).T, read_values(theirs))


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
