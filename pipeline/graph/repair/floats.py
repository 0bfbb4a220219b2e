"""What TensorRT takes in float only: bounds and fillings, the input of recurrent layers, tables of codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint.codes import check_bound
from trtq.pipeline.graph.lint.layers import check_recurrent
from trtq.pipeline.graph.operands import DEQUANTIZE, evaluate, find_constant, find_operand
from trtq.pipeline.graph.repair.change import Change


def repair_bounds(edit: GraphEditor) -> Iterator[Change]:
    """Replaces the dequantized bounds of Clip and fillings of Pad by float constants of the same values."""
    for node in list(edit.graph):
        if not any(check_bound(node)):
            continue
        for place, value in enumerate(node.inputs[1:], 1):
            operand = find_operand(value)
            if operand is not None and operand.is_weight and not operand.path:
                values = evaluate(operand).astype(_numpy_dtype(operand.value))
                edit.set_constant(node, place, f"{operand.value.name}_float", values)
        yield Change("quantized-bound", str(node.name), "float constants of the same values")


def repair_recurrent(edit: GraphEditor) -> Iterator[Change]:
    """Adds 0 between a DequantizeLinear and a recurrent layer with an open batch: else the builder fails."""
    for node in list(edit.graph):
        value = node.inputs[0] if node.inputs else None
        if value is None or not any(check_recurrent(node)):
            continue
        inputs = [value, edit.add_constant(f"{node.name}_zero", np.zeros((), _numpy_dtype(value)))]
        output, name = f"{node.name}_float", f"{node.name}_Add"
        node.replace_input_with(
            0, edit.insert("Add", inputs, like=value, output=output, name=name, before=node)
        )
        yield Change("recurrent", str(node.name), "a float Add of 0 before it")


def repair_tables(edit: GraphEditor) -> Iterator[Change]:
    """Swaps a Gather from a table of codes and its DequantizeLinear: TensorRT wants the table dequantized."""
    for node in [node for node in edit.graph if node.op_type == "Gather"]:
        table = node.inputs[0]
        users = [user for user, _ in node.outputs[0].uses()]
        if table is None or table.dtype is not ir.DataType.INT8 or not table.is_initializer() or not users:
            continue
        scales = [find_constant(user, 1) for user in users if user.op_type == DEQUANTIZE]
        whole = len(scales) == len(users) and not node.outputs[0].is_graph_output()
        if not whole or any(scale is None or scale.size != 1 for scale in scales):
            continue
        for user in users:
            _gather_floats(edit, node, user, table)
        yield Change("int8-constant", str(node.name), "its table dequantized before it")
        edit.remove(node)


def _gather_floats(edit: GraphEditor, gather: ir.Node, dequantize: ir.Node, table: ir.Value) -> None:
    """Dequantizes the table, and gathers from it what was gathered before it was dequantized."""
    old = dequantize.outputs[0]
    inputs, output = [old, gather.inputs[1]], f"{old.name}_gathered"
    name = f"{dequantize.name}_Gather"
    result = edit.insert("Gather", inputs, gather.attributes, like=old, output=output, name=name)
    edit.replace(old, result)
    old.name, old.shape = edit.name_value(f"{table.name}_dequantized"), table.shape
    dequantize.replace_input_with(0, table)


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
