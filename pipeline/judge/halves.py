"""FP16 and BF16 as an engine computes in them: ONNX Runtime's CPU has few such kernels and seldom rounds."""

from __future__ import annotations

import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor, widen

_FLOAT = ir.DataType.FLOAT
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PICKS = frozenset({
    "Abs", "Ceil", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Floor", "Gather", "GatherElements",
    "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin",
    "Relu", "Reshape", "Round", "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""What they make are values that they read, or whole numbers, so that it has been rounded already."""


def emulate_halves(model: ir.Model) -> ir.Model | None:
    """Returns the model computing in FP32 with every tensor rounded that an engine holds in FP16 or BF16.

    A pair of casts rounds, overflows to infinity and underflows as 16 bits do. A node sums up in FP32, as a
    kernel of TensorRT does. None if nothing has 16 bits.

    Args:
        model: With the dtypes of its tensors; it is not changed.
    """
    if not any(
        _is_half(value) for graph in (model.graph, *model.graph.subgraphs()) for value in _values(graph)
    ):
        return None
    result = model.clone()
    edit = GraphEditor(result)
    made = [value for node in result.graph.all_nodes() for value in node.outputs]
    halves = {value: value.dtype for value in made if value.dtype in _HALVES}
    inputs = (item for item in result.graph.inputs if not item.is_initializer())  # weights may be listed
    given = {value: value.dtype for value in inputs if value.dtype in _HALVES}
    outputs = {value for value in result.graph.outputs if _is_half(value)}
    widen(result, _HALVES)
    for value, dtype in halves.items():
        node = value.producer()
        if node is not None and (node.op_type not in _PICKS or value in outputs):
            _round(edit, value, dtype, is_output=value in outputs)
    for value, dtype in given.items():
        value.type = ir.TensorType(dtype)
        edit.replace(value, edit.cast(value, _FLOAT, output=f"{value.name}_wide", name=f"{value.name}_wide"))
    return result


def _is_half(value: ir.Value) -> bool:
    return value.dtype in _HALVES


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _round(edit: GraphEditor, value: ir.Value, dtype: ir.DataType, *, is_output: bool) -> None:
    name = str(value.name)
    half = edit.cast(value, dtype, output=f"{name}_half", name=f"{name}_round")
    wide = edit.cast(half, _FLOAT, output=f"{name}_rounded", name=f"{name}_widen")
    rounds = half.producer()
    assert rounds is not None
    for reader, place in value.uses():
        if reader is not rounds:
            reader.replace_input_with(place, wide)
    if value.is_graph_output():  # of the model, or of a body, which goes on in FP32
        edit.replace(value, half if is_output else wide)
        rounds.replace_input_with(0, value)
        half.type = ir.TensorType(dtype)
