"""What TensorRT takes in float only: bounds and fillings, the input of recurrent layers, tables of codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.fold import add_initializer, make_unique_name
from trtq.pipeline.graph.lint.codes import check_bound
from trtq.pipeline.graph.lint.layers import check_recurrent
from trtq.pipeline.graph.operands import DEQUANTIZE, evaluate, find_constant, find_operand
from trtq.pipeline.graph.repair.change import Change


def repair_bounds(model: ir.Model) -> Iterator[Change]:
    """Replaces the dequantized bounds of Clip and fillings of Pad by float constants of the same values."""
    for node in list(model.graph):
        if not any(check_bound(node)):
            continue
        for place, value in enumerate(node.inputs[1:], 1):
            operand = find_operand(value)
            if operand is not None and operand.is_weight and not operand.path:
                values = evaluate(operand).astype(
                    operand.value.dtype.numpy() if operand.value.dtype else np.float32
                )
                node.replace_input_with(
                    place, add_initializer(model.graph, f"{operand.value.name}_float", values)
                )
        yield Change("quantized-bound", str(node.name), "float constants of the same values")


def repair_recurrent(model: ir.Model) -> Iterator[Change]:
    """Adds 0 between a DequantizeLinear and a recurrent layer with an open batch: else the builder fails."""
    for node in list(model.graph):
        value = node.inputs[0] if node.inputs else None
        if value is None or not any(check_recurrent(node)):
            continue
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        zero = add_initializer(model.graph, f"{node.name}_zero", np.zeros((), dtype))
        add = ir.node("Add", [value, zero], name=f"{node.name}_Add")
        add.outputs[0].name = make_unique_name(model.graph, f"{node.name}_float")
        add.outputs[0].type, add.outputs[0].shape = value.type, value.shape
        model.graph.insert_before(node, add)
        node.replace_input_with(0, add.outputs[0])
        yield Change("recurrent", str(node.name), "a float Add of 0 before it")


def repair_tables(model: ir.Model) -> Iterator[Change]:
    """Swaps a Gather from a table of codes and its DequantizeLinear: TensorRT wants the table dequantized."""
    for node in [node for node in model.graph if node.op_type == "Gather"]:
        table = node.inputs[0]
        users = [user for user, _ in node.outputs[0].uses()]
        if table is None or table.dtype is not ir.DataType.INT8 or not table.is_initializer() or not users:
            continue
        scales = [find_constant(user, 1) for user in users if user.op_type == DEQUANTIZE]
        whole = len(scales) == len(users) and not node.outputs[0].is_graph_output()
        if not whole or any(scale is None or scale.size != 1 for scale in scales):
            continue
        for user in users:
            copy = ir.node(
                "Gather", [user.outputs[0], node.inputs[1]], node.attributes, name=f"{user.name}_Gather"
            )
            result, old = copy.outputs[0], user.outputs[0]
            model.graph.insert_after(user, copy)
            name, was_output = old.name, old.is_graph_output()
            old.replace_all_uses_with(result, replace_graph_outputs=True)
            copy.replace_input_with(0, old)
            result.type, result.shape = old.type, old.shape
            old.shape = table.shape
            if was_output:
                old.name, result.name = None, name
            old.name = make_unique_name(model.graph, f"{table.name}_dequantized")
            result.name = result.name or make_unique_name(model.graph, f"{name}_gathered")
            user.replace_input_with(0, table)
        yield Change("int8-constant", str(node.name), "its table dequantized before it")
        model.graph.remove(node, safe=True)
