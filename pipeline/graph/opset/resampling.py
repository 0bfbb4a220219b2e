"""Operators that resample a grid: where a sample lies was fixed first, and is told by attributes now."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset.moved import move, name_of
from trtq.pipeline.graph.opset.refit import Rule

_WORDS = {"bilinear": "linear", "bicubic": "cubic"}


def _name_scales(edit: GraphEditor, node: ir.Node) -> None:
    """Upsample had one scale for the height and one for the width first."""
    height, width = (node.attributes.pop(f"{word}_scale") for word in ("height", "width"))
    node.attributes["scales"] = ir.AttrFloat32s("scales", [1.0, 1.0, height.as_float(), width.as_float()])
    _rename_mode(edit, node)


def _rename_mode(edit: GraphEditor, node: ir.Node) -> None:
    """What was called bilinear and bicubic is linear and cubic, in any number of dimensions."""
    if "mode" in node.attributes:
        word = node.attributes["mode"].as_string()
        node.attributes["mode"] = ir.AttrString("mode", _WORDS.get(word, word))


def _move_scales(edit: GraphEditor, node: ir.Node) -> None:
    move(node, "scales", edit, 1, np.float32)


def _rename_upsample(edit: GraphEditor, node: ir.Node) -> None:
    node.op_type = "Resize"


def _place_samples(edit: GraphEditor, node: ir.Node) -> None:
    """Sample i lay at i / scale: below it for growing axes, and above it for shrinking ones.

    ONNX Runtime and ONNX's own tests have it so for opset 10; Upsample only grows. Scales that are computed
    are taken for growing.
    """
    scales, is_nearest = node.inputs[1], node.attributes.get_string("mode", "nearest") == "nearest"
    node.resize_inputs(3)
    node.replace_input_with(2, scales)
    edit.set_constant(node, 1, f"{name_of(node)}_roi", np.zeros(0, np.float32))
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "asymmetric"
    )
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    tensor = None if scales is None else scales.const_value
    if not is_nearest or tensor is None or (tensor.numpy() >= 1).all():
        return
    if (tensor.numpy() <= 1).all():
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "ceil")
        return
    _shrink_after(edit, node, tensor.numpy())


def _shrink_after(edit: GraphEditor, node: ir.Node, scales: np.ndarray) -> None:
    """Lets the node grow the axes that grow, and a node behind it shrink those that shrink."""
    result, name = node.outputs[0], name_of(node)
    edit.set_constant(node, 2, f"{name}_growing", np.maximum(scales, 1))
    shrinking = edit.add_constant(f"{name}_shrinking", np.minimum(scales, 1))
    attributes = {**node.attributes, "nearest_mode": "ceil"}
    inputs = [result, node.inputs[1], shrinking]
    shrunk = edit.insert("Resize", inputs, attributes, like=result, output=f"{result.name}_shrunk")
    edit.replace(result, shrunk, rename=f"{result.name}_grown")
    result.shape = None


def _keep_corners(edit: GraphEditor, node: ir.Node) -> None:
    """RoiAlign did not shift boxes by half a pixel first."""
    name = "coordinate_transformation_mode"
    node.attributes[name] = ir.AttrString(name, "output_half_pixel")


def _drop_empty(edit: GraphEditor, node: ir.Node) -> None:
    """A region and scales that are not used had to be there, and be empty; now they are left out."""
    for place, value in enumerate(node.inputs):
        if place and value is not None and value.shape is not None and 0 in value.shape:
            node.replace_input_with(place, None)


def _rename_grid(edit: GraphEditor, node: ir.Node) -> None:
    node.attributes.setdefault("mode", ir.AttrString("mode", "bilinear"))
    _rename_mode(edit, node)


RESAMPLING: dict[tuple[str, int], Rule] = {
    ("Upsample", 7): _name_scales,
    ("Upsample", 9): _move_scales,
    ("Upsample", 10): _rename_upsample,
    ("Resize", 11): _place_samples,
    ("Resize", 13): _drop_empty,
    ("RoiAlign", 16): _keep_corners,
    ("GridSample", 20): _rename_grid,
}
