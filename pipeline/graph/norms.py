"""From ONNX Runtime's own RMS normalizations, as its model builder writes them, to standard nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.errors import ModelError
from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import read_opset

RMS_NORM, SKIP_RMS_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
_EPSILON = {RMS_NORM: 1e-5, SKIP_RMS_NORM: 1e-12}
_AXES_AS_INPUT = 18
_FLOAT = ir.DataType.FLOAT


def standardize_norms(model: ir.Model) -> Iterator[str]:
    """Writes each RMS normalization as Mul, ReduceMean, Add, Sqrt, Div and Mul, in FP32 within.

    ONNX Runtime takes it for one of ONNX's operators, which it is not; with a residual it is in a domain of
    its own. The last node keeps the name.

    Args:
        model: Nodes have names; it is changed in place.

    Raises:
        ModelError: A normalization has no constant scale, or an output that cannot be given.
    """
    nodes = [node for node in model.graph if node.op_type in _EPSILON]
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
    extra = [index for index, value in enumerate(node.outputs) if index and value.uses()]
    if scale is None or scale.shape is None or dtype is None or set(extra) - ({3} if is_skip else set()):
        what = f"output {extra[0]}" if extra else "a scale that is computed"
        raise ModelError(
            f"node {node.name!r} ({node.op_type}) has {what}, which no standard form has; export the model "
            f"without it"
        )
    value = _add_residual(edit, node) if is_skip else node.inputs[0]
    assert value is not None
    normed = _normalize(edit, node, value, len(scale.shape), dtype, opset)
    result = _insert(edit, node, "Mul", [normed, scale], "scaled")
    if len(node.outputs) > 3:
        edit.replace(node.outputs[3], value, rename="")
    edit.replace(node.outputs[0], result, rename="")
    edit.remove(node)
    result.producer().name = node.name  # type: ignore[union-attr]


def _add_residual(edit: GraphEditor, node: ir.Node) -> ir.Value:
    """Returns the sum of the input, the residual and, if there is one, the bias."""
    first, second, _, *bias = node.inputs
    total = _insert(edit, node, "Add", [first, second], "residual")
    return _insert(edit, node, "Add", [total, bias[0]], "biased") if bias and bias[0] else total


def _normalize(
    edit: GraphEditor, node: ir.Node, value: ir.Value, rank: int, dtype: ir.DataType, opset: int
) -> ir.Value:
    """Returns the value divided by the root of the mean of its squares over the last axes, in its dtype."""
    if dtype is not _FLOAT:
        value = _insert(edit, node, "Cast", [value], "wide", {"to": int(_FLOAT)})
    squares = _insert(edit, node, "Mul", [value, value], "squares")
    axes = [*range(-rank, 0)]
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
