"""The nodes that make angles of positions: in 16 bits, position 4097 is 4096, and its sine another."""

from __future__ import annotations

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.graph.worth import REARRANGING

_ARITHMETIC = REARRANGING | {
    "Abs", "Add", "CastLike", "Ceil", "Clip", "ConstantOfShape", "CumSum", "Div", "Exp", "Floor", "Max",
    "Min", "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Round", "Split", "Sqrt", "Sub", "Sum", "Where",
}  # fmt: skip
_PRODUCTS = frozenset({"Einsum", "MatMul"})


def find_position_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Returns each Sin and Cos of positions or times, and all that is computed for it in float.

    So are the embeddings of rotary attention and of the steps of a diffusion: integers are cast to float,
    multiplied by frequencies, by a Mul or a product of matrices, and put in order. A time may be an input of
    the model in float, too; a product of an input and a matrix is a layer, and ends the search.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in ("Sin", "Cos") and node not in found:
            found |= _find_chain(node)
    return found


def _find_chain(last: ir.Node) -> set[ir.Node]:
    """Returns a node and what computes its input from positions alone; nothing if something else does."""
    chain, todo = {last}, [value for value in last.inputs if value is not None]
    has_input = has_integers = False
    while todo:
        value = todo.pop()
        node = value.producer()
        if value.is_initializer() or node in chain or value.dtype is ir.DataType.BOOL:
            continue
        if value.dtype is not None and value.dtype not in FLOAT_TYPES:
            has_integers = True
        elif node is None:
            has_input = True
        elif value.dtype is None or node.op_type not in _ARITHMETIC | _PRODUCTS:
            return set()
        else:
            chain.add(node)
            todo += [source for source in node.inputs if source is not None]
    has_layer = has_input and any(node.op_type in _PRODUCTS for node in chain)
    return chain if (has_integers or has_input) and not has_layer else set()
