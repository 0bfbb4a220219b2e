"""Operators that take as an input, or under another name or type, what was an attribute before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset.refit import CannotConvertError, Rule

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip


def move(node: ir.Node, name: str, edit: GraphEditor, place: int, dtype: Any = np.int64) -> None:
    """Makes an attribute, if it is there, a constant input."""
    attribute = node.attributes.pop(name, None)
    if attribute is not None:
        with np.errstate(over="ignore"):
            edit.set_constant(node, place, f"{name_of(node)}_{name}", np.array(attribute.value, dtype))


def name_of(node: ir.Node) -> str:
    """Returns the name of a node, or what it is called by without one."""
    return node.name or node.op_type


def _to_inputs(*names: str, skips_empty: bool = False) -> Rule:
    """Returns the rule by which attributes, lists of integers, become the inputs from the second on."""

    def rule(edit: GraphEditor, node: ir.Node) -> None:
        for place, name in enumerate(names, 1):
            if skips_empty and name in node.attributes and not node.attributes[name].as_ints():
                node.attributes.pop(name)  # which means all axes, as none does
            move(node, name, edit, place)

    return rule


def _dtype_of(node: ir.Node) -> np.dtype[Any]:
    value = node.inputs[0]
    return np.dtype(np.float32) if value is None or value.dtype is None else value.dtype.numpy()


def _bound(edit: GraphEditor, node: ir.Node) -> None:
    for place, name in enumerate(("min", "max"), 1):
        move(node, name, edit, place, _dtype_of(node))


def _pad(edit: GraphEditor, node: ir.Node) -> None:
    move(node, "pads", edit, 1)
    move(node, "value", edit, 2, _dtype_of(node))


def _rename_pads(edit: GraphEditor, node: ir.Node) -> None:
    if (paddings := node.attributes.pop("paddings", None)) is not None:
        node.attributes["pads"] = ir.AttrInt64s("pads", paddings.as_ints())


def _count_best(edit: GraphEditor, node: ir.Node) -> None:
    edit.set_constant(node, 1, f"{name_of(node)}_k", np.array([node.attributes.pop("k").as_int()], np.int64))


def _count_parts(edit: GraphEditor, node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _take_sizes(edit: GraphEditor, node: ir.Node) -> None:
    """The sizes of the parts of a Split were an input first."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = node.inputs[1].const_value
        if sizes is None:
            raise CannotConvertError("the sizes of its parts are computed")
        node.attributes["split"] = ir.AttrInt64s("split", sizes.numpy().reshape(-1).tolist())
    node.resize_inputs(1)


def _transform_axis(edit: GraphEditor, node: ir.Node) -> None:
    axis = node.attributes.get_int("axis", 1)
    node.attributes.pop("axis", None)
    edit.set_constant(node, 2, f"{name_of(node)}_axis", np.array(axis, np.int64))


def _name_type(edit: GraphEditor, node: ir.Node) -> None:
    """The dtype of a Cast was a word first."""
    word = node.attributes["to"].as_string()
    if word not in onnx.TensorProto.DataType.keys():  # noqa: SIM118 - it is no mapping
        raise CannotConvertError(f"there is no element type {word!r}")
    node.attributes["to"] = ir.AttrInt64("to", onnx.TensorProto.DataType.Value(word))


def _name_axis(edit: GraphEditor, node: ir.Node) -> None:
    node.attributes.setdefault("axis", ir.AttrInt64("axis", 1))


def _count_norm(edit: GraphEditor, node: ir.Node) -> None:
    """The p of an Lp norm was a number with a fraction first."""
    p = node.attributes.get_float("p", 2.0)
    if p != math.floor(p):
        raise CannotConvertError(f"its p is {p:g}, which must be an integer from then on")
    node.attributes["p"] = ir.AttrInt64("p", int(p))


def _repeat(edit: GraphEditor, node: ir.Node) -> None:
    """Tile repeated along one axis first."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    tiles, axis = (item if item is None else item.const_value for item in node.inputs[1:3])
    if tiles is None or axis is None or shape is None:
        raise CannotConvertError("what it repeats is computed")
    repeats = np.ones(len(shape), np.int64)
    repeats[int(axis.numpy().item())] = int(tiles.numpy().item())
    node.resize_inputs(2)
    edit.set_constant(node, 1, f"{name_of(node)}_repeats", repeats)


def _drop(*names: str) -> Rule:
    """Returns the rule by which attributes go that have no meaning where a model is only run."""

    def rule(edit: GraphEditor, node: ir.Node) -> None:
        for name in names:
            node.attributes.pop(name, None)

    return rule


def _refuse_outputs(node: ir.Node, after: int, reason: str) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[after:]):
        raise CannotConvertError(reason)
    node.resize_outputs(min(after, len(node.outputs)))


def _stop_training(edit: GraphEditor, node: ir.Node) -> None:
    node.attributes.pop("is_test", None)  # whether it trains is told by its outputs
    _refuse_outputs(node, 1, "it computes statistics of the batch, as in training")


def _drop_mask(edit: GraphEditor, node: ir.Node) -> None:
    _refuse_outputs(node, 1, "its mask is read, which becomes a bool")


def _complete_gru(edit: GraphEditor, node: ir.Node) -> None:
    node.attributes.pop("output_sequence", None)
    node.attributes.setdefault("direction", ir.AttrString("direction", "forward"))


def _refuse_scan(edit: GraphEditor, node: ir.Node) -> None:
    raise CannotConvertError("it scans a batch of sequences, which must be one sequence from then on")


def _rename_scatter(edit: GraphEditor, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _refuse_float_mod(edit: GraphEditor, node: ir.Node) -> None:
    dtype = None if node.inputs[0] is None else node.inputs[0].dtype
    if dtype is not None and not dtype.is_integer() and node.attributes.get_int("fmod", 0) == 0:
        raise CannotConvertError("with fmod=0 it takes integers only there")


def _drop_dtype(edit: GraphEditor, node: ir.Node) -> None:
    """What a DequantizeLinear makes had the dtype of its scale before it could be told."""
    scale = node.inputs[1]
    if scale is not None and node.attributes.get_int("output_dtype", 0) == scale.dtype:
        node.attributes.pop("output_dtype")


def _each(op_types: Sequence[str], version: int, rule: Rule) -> dict[tuple[str, int], Rule]:
    return dict.fromkeys(((op_type, version) for op_type in op_types), rule)


_axes_to_input = _to_inputs("axes", skips_empty=True)
MOVED: dict[tuple[str, int], Rule] = {
    ("Pad", 2): _rename_pads,
    ("Split", 2): _take_sizes,
    **_each(("LpPool", "GlobalLpPool"), 2, _count_norm),
    ("GRU", 3): _complete_gru,
    ("Concat", 4): _name_axis,
    ("Reshape", 5): _to_inputs("shape"),
    ("Cast", 6): _name_type,
    ("Tile", 6): _repeat,
    ("Gemm", 7): _drop("broadcast"),
    ("BatchNormalization", 7): _stop_training,
    ("BatchNormalization", 14): _stop_training,
    **_each(("GRU", "LSTM", "RNN"), 7, _drop("output_sequence")),
    ("Dropout", 7): _drop("is_test"),
    ("Dropout", 10): _drop_mask,
    ("Dropout", 12): _drop("ratio"),
    ("Scan", 9): _refuse_scan,
    ("Slice", 10): _to_inputs("starts", "ends", "axes"),
    ("TopK", 10): _count_best,
    ("Clip", 11): _bound,
    ("Pad", 11): _pad,
    ("Scatter", 11): _rename_scatter,
    ("ReduceSum", 13): _axes_to_input,
    ("Split", 13): _to_inputs("split"),
    **_each(("Squeeze", "Unsqueeze"), 13, _to_inputs("axes")),
    **_each(_REDUCTIONS, 18, _axes_to_input),
    ("Split", 18): _count_parts,
    ("DFT", 20): _transform_axis,
}
LOWERED: dict[tuple[str, int], Rule] = {
    ("DequantizeLinear", 23): _drop_dtype,
    ("Mod", 28): _refuse_float_mod,
}
"""By the operator and the version that has something which the one before has not."""
