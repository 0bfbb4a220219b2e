"""A product of matrices and the constant behind it as one Gemm."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import find_constant


def join_biases(model: ir.Model) -> Iterator[str]:
    """Writes a MatMul of two axes, by a constant, and the constant added to its rows as Gemm, in the model.

    ONNX Runtime does it too, but after it has looked for integer kernels' biases: such a Gemm has a float
    bias and runs in float. The node keeps the name of the MatMul, the output that of the Add.
    """
    edit, joined = GraphEditor(model), 0
    for node in [node for node in model.graph if node.op_type == "MatMul" and not node.domain]:
        found = _find_bias(node)
        if found is None:
            continue
        add, bias = found
        result, name = add.outputs[0], str(node.name)
        node.name = edit.name_node(f"{name}_product")
        made = edit.insert(
            "Gemm", [*node.inputs, bias], like=result, output=f"{result.name}_biased", name=name, before=node
        )
        made_by = made.producer()
        assert made_by is not None
        made_by.name = name
        edit.replace(result, made, rename="")
        edit.remove([add, node])
        joined += 1
    if joined:
        yield f"wrote {format_count(joined, 'MatMul')} and the bias behind as Gemm"


def _find_bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Returns the Add behind a MatMul and the constant of one axis, or one row, that it adds."""
    product, weight = node.outputs[0], find_constant(node, 1)
    users = [user for user, _ in product.uses()]
    is_plain = weight is not None and weight.ndim == 2 and _count_axes(node.inputs[0]) == 2
    if not is_plain or product.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        return None
    (add,) = users
    place = 1 if add.inputs[0] is product else 0
    bias, value = find_constant(add, place), add.inputs[place]
    if bias is None or value is None or not value.is_initializer() or bias.ndim != 1:
        return None
    return (add, value) if weight is not None and bias.shape == weight.shape[1:] else None


def _count_axes(value: ir.Value | None) -> int | None:
    """Returns the number of axes; of a Reshape to a computed shape that of its sizes. None if unknown."""
    if value is None or value.shape is not None:
        return None if value is None else len(value.shape or ())
    maker = value.producer()
    sizes = maker.inputs[1] if maker is not None and maker.op_type == "Reshape" else None
    if sizes is None or sizes.shape is None or len(sizes.shape) != 1:
        return None
    count = sizes.shape[0]
    return count if isinstance(count, int) else None
