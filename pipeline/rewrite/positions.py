"""The nodes that make angles or indices of positions: in 16 bits, 4097 is 4096, and its sine another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.worth import REARRANGING

ARITHMETIC = REARRANGING | {
    "Abs", "Add", "CastLike", "Ceil", "Clip", "ConstantOfShape", "CumSum", "Div", "Exp", "Floor", "Max",
    "Min", "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Round", "Split", "Sqrt", "Sub", "Sum", "Where",
}  # fmt: skip
ONE_OPERAND = REARRANGING - {"Concat"} | {"CastLike", "CumSum", "Split"}
"""What else they read are shapes, axes and indices."""
_PRODUCTS = frozenset({"Einsum", "MatMul"})


def find_position_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Returns each Sin and Cos of positions, what casts a float input to indices, and what they need.

    So are the embeddings of rotary attention and of the steps of a diffusion: integers are cast to float,
    multiplied by frequencies, by a Mul or a product of matrices, and put in order. A time may be an input of
    the model in float, too; a product of an input and a matrix is a layer, and ends the search. Some models
    take the ids of tokens or rows in float, and cast them to whole numbers.
    """
    pure: dict[ir.Value, _Origins] = {}
    found: set[ir.Node] = set()
    for node in graph:  # in topological order
        if node.domain not in ("", "ai.onnx"):
            continue
        origins = _join_origins(node, pure)
        is_angle = node.op_type in ("Sin", "Cos")
        if origins is not None and (
            (origins.inputs and (is_angle or _is_index(node))) or (origins.integers and is_angle)
        ):
            _collect(node, pure, found)
        is_layer = node.op_type in _PRODUCTS and origins is not None and origins.inputs
        if node.op_type in ARITHMETIC | _PRODUCTS and origins is not None and not is_layer:
            pure.update({value: origins for value in node.outputs if value.dtype in FLOAT_TYPES})
    return found


@dataclass(frozen=True, slots=True)
class _Origins:
    """What a tensor is computed from, beside constants."""

    integers: bool
    inputs: bool


def _is_index(node: ir.Node) -> bool:
    """Returns whether a node makes whole numbers of floats."""
    return node.op_type == "Cast" and node.attributes.get_int("to") in (ir.DataType.INT32, ir.DataType.INT64)


def _join_origins(node: ir.Node, pure: Mapping[ir.Value, _Origins]) -> _Origins | None:
    """Returns what a node reads, if that is integers, inputs, and what is computed of them; else None."""
    integers = inputs = False
    operands = 0 if node.op_type == "ConstantOfShape" else 1 if node.op_type in ONE_OPERAND else None
    for value in node.inputs[:operands]:
        if value is None or value.is_initializer() or value.dtype is ir.DataType.BOOL:
            continue
        if value.dtype is not None and value.dtype not in FLOAT_TYPES:
            integers = True
        elif value.is_graph_input():
            inputs = True
        elif value in pure:
            integers, inputs = integers or pure[value].integers, inputs or pure[value].inputs
        else:
            return None
    return _Origins(integers, inputs)


def _collect(last: ir.Node, pure: Mapping[ir.Value, _Origins], found: set[ir.Node]) -> None:
    """Adds a node and what it is computed by in float."""
    todo = [last]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [maker for maker in node.predecessors() if any(value in pure for value in maker.outputs)]
