"""From ONNX Runtime's own RMS normalizations, as its model builder writes them, to standard nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from trtq.errors import ModelError
from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import infer_shapes, read_opset

RMS_NORM, SKIP_RMS_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
_EPSILON = {RMS_NORM: 1e-5, SKIP_RMS_NORM: 1e-12}
_DOMAINS = ("", "com.microsoft")
_AXES_AS_INPUT = 18
_FLOAT = ir.DataType.FLOAT


def standardize_norms(model: ir.Model) -> Iterator[str]:
    """Writes each RMS normalization as Mul, ReduceMean, Add, Sqrt, Div and Mul, in FP32 within.

    ONNX Runtime takes it for one of ONNX's operators, which it is not; with a residual it is in a domain of
    its own. The last node keeps the name.

    Args:
        model: Nodes have names; it is changed in place.

    Raises:
        ModelError: A normalization has a scale of unknown type, an output that cannot be given, or an axis
            that its input does not have.
    """
    nodes = [node for node in model.graph if node.op_type in _EPSILON and node.domain in _DOMAINS]
    edit = GraphEditor(model)
    for node in nodes:
        _standardize(edit, node, read_opset(model))
    if nodes:
        edit.drop_unused()
        yield f"wrote {format_count(len(nodes), 'RMS normalization')} of ONNX Runtime as standard nodes"


def _standardize(edit: GraphEditor, node: ir.Node, opset: int) -> None:
    is_skip = node.op_type == SKIP_RMS_NORM
    scale = node.inputs[2 if is_skip else 1]
    dtype = None if scale is None else scale.dtype
    used = [index for index, value in enumerate(node.outputs) if value.uses() or value.is_graph_output()]
    extra = {*used} - ({0, 3} if is_skip else {0})
    if scale is None or dtype is None or extra:
        _refuse(node, f"output {min(extra)}" if extra else "a scale that is computed")
    axes = _find_axes(edit.model, node, scale)
    value = _add_residual(edit, node) if is_skip else node.inputs[0]
    assert value is not None
    result = _insert(edit, node, "Mul", [_normalize(edit, node, value, axes, dtype, opset), scale], "scaled")
    if 3 in used:
        edit.replace(node.outputs[3], value, rename="")
    edit.replace(node.outputs[0], result, rename="")
    edit.remove(node)
    result.producer().name = node.name  # type: ignore[union-attr]


def _refuse(node: ir.Node, what: str) -> NoReturn:
    raise ModelError(
        f"node {node.name!r} ({node.op_type}) has {what}, which no standard form has; export the model "
        f"without it"
    )


def _find_axes(model: ir.Model, node: ir.Node, scale: ir.Value) -> list[int]:
    """Returns the axes that are reduced, negative: from the node's axis on, and the last with a residual.

    The scale is broadcast to the input, and says nothing of them.
    """
    axis = node.attributes.get_int("axis", -1) if node.op_type == RMS_NORM else -1
    dims = 1 if scale.shape is None else len(scale.shape)
    if node.op_type == SKIP_RMS_NORM and dims != 1:
        _refuse(node, f"a scale of {dims} dims")
    if axis == -1 and dims < 2:
        return [-1]
    value = node.inputs[0]
    assert value is not None
    if value.shape is None:
        infer_shapes(model)
    rank = None if value.shape is None else len(value.shape)
    if rank is None:
        _refuse(node, f"axis {axis} and an input of unknown rank")
    if not -rank <= axis < rank or dims > rank:
        _refuse(node, f"axis {axis} and a scale of {dims} dims for an input of {rank}")
    return [*range(axis if axis < 0 else axis - rank, 0)]


def _add_residual(edit: GraphEditor, node: ir.Node) -> ir.Value:
    """Returns the sum of the input, the residual and, if there is one, the bias."""
    first, second, _, *bias = node.inputs
    total = _insert(edit, node, "Add", [first, second], "residual")
    return _insert(edit, node, "Add", [total, bias[0]], "biased") if bias and bias[0] else total


def _normalize(
    edit: GraphEditor, node: ir.Node, value: ir.Value, axes: list[int], dtype: ir.DataType, opset: int
) -> ir.Value:
    """Returns the value divided by the root of the mean of its squares over the axes, in its dtype."""
    if dtype is not _FLOAT:
        value = _insert(edit, node, "Cast", [value], "wide", {"to": int(_FLOAT)})
    squares = _insert(edit, node, "Mul", [value, value], "squares")
    if opset < _AXES_AS_INPUT:
        mean = _insert(edit, node, "ReduceMean", [squares], "mean", {"axes": axes})
    else:
        places = edit.add_constant(f"{node.name}/axes", np.array(axes, np.int64))
        mean = _insert(edit, node, "ReduceMean", [squares, places], "mean")
    number = node.attributes.get_float("epsilon", _EPSILON[node.op_type])
    epsilon = edit.add_constant(f"{node.name}/epsilon", np.array(number, np.float32))
    root = _insert(edit, node, "Sqrt", [_insert(edit, node, "Add", [mean, epsilon], "raised")], "root")
    normed = _insert(edit, node, "Div", [value, root], "normed")
    return normed if dtype is _FLOAT else _insert(edit, node, "Cast", [normed], "narrow", {"to": int(dtype)})


def _insert(
    edit: GraphEditor,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    name: str,
    attributes: dict[str, int | list[int]] | None = None,
) -> ir.Value:
    both = f"{node.name}/{name}"
    untyped = ir.Value()
    return edit.insert(op_type, inputs, attributes, like=untyped, output=both, name=both, before=node)
