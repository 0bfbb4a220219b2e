"""NVFP4 in the graph: what TensorRT-RTX takes for activations and weights in blocks with E4M3 scales.

Measured: the product behind them is one FP4 kernel where the activation has two or three axes. TensorRT has
an operator of its own for activations, since ONNX cannot say that scales are found in each run.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from trtq.pipeline.formats import FP8, NVFP4
from trtq.pipeline.formats.nvfp4 import BLOCK
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.fp4 import DOMAIN, DYNAMIC_QUANTIZE
from trtq.pipeline.graph.operands import DEQUANTIZE

_FIRST_IR = 11
"""The first version of ONNX's file format with E2M1 numbers."""
_MOST_AXES = 3
_LAST = {"axis": -1, "block_size": BLOCK}


def quantize_rows(edit: GraphEditor, source: ir.Value, shared: ir.Value) -> ir.Value:
    """Returns an activation behind NVFP4, of three axes if it has more: the last one is kept.

    Args:
        edit: Of the graph.
        source: The activation, of known rank.
        shared: What the scales of its blocks are multiplied with, a constant of its dtype.
    """
    name, value = str(source.name), _flatten(edit, source)
    attributes = {**_LAST, "scale_type": int(FP8.dtype)}
    codes = edit.insert(
        DYNAMIC_QUANTIZE,
        [value, shared],
        attributes,
        like=value,
        dtype=NVFP4.dtype,
        domain=DOMAIN,
        output=f"{name}_quantized",
        name=f"{name}_{DYNAMIC_QUANTIZE}",
    )
    edit.model.opset_imports.setdefault(DOMAIN, 1)
    edit.model.ir_version = max(edit.model.ir_version or 0, _FIRST_IR)
    node = codes.producer()
    assert node is not None
    node.resize_outputs(2)
    scales = node.outputs[1]
    scales.name, scales.type = edit.name_value(f"{name}_scales_quantized"), ir.TensorType(FP8.dtype)
    return dequantize_blocks(edit, codes, scales, shared, axis=-1, like=value, name=name)


def dequantize_blocks(
    edit: GraphEditor,
    codes: ir.Value,
    scales: ir.Value,
    shared: ir.Value,
    *,
    axis: int,
    like: ir.Value,
    name: str,
    before: ir.Node | None = None,
) -> ir.Value:
    """Returns the values of codes in blocks, whose scales are dequantized before.

    Args:
        edit: Of the graph.
        codes: E2M1.
        scales: E4M3, one a block.
        shared: What the scales are multiplied with: shape ().
        axis: Along which the blocks lie.
        like: The result has the type and the shape of this value.
        name: What it is called by.
        before: The node that these stand before; None: they stand behind what makes the codes.
    """
    attributes = {"axis": axis, "block_size": BLOCK}
    output = f"{name}_dequantized"
    result = edit.insert(DEQUANTIZE, [codes, None], attributes, like=like, output=output, before=before)
    node = result.producer()
    wide = edit.insert(DEQUANTIZE, [scales, shared], like=like, output=f"{name}_scales", before=node)
    wide.shape = scales.shape
    assert node is not None
    node.replace_input_with(1, wide)
    return result


def restore_axes(edit: GraphEditor, node: ir.Node, source: ir.Value) -> None:
    """Gives the output of a product the axes of its activation back, where `quantize_rows` took some away."""
    if source.shape is None or len(source.shape) <= _MOST_AXES:
        return
    output, name = node.outputs[0], str(node.outputs[0].name)
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    width = int(weight.shape.numpy()[-1])
    sizes = [0, *(size if isinstance(size, int) else -1 for size in source.shape[1:-1]), width]
    if sizes.count(-1) > 1:
        shape = _find_sizes(edit, source, width, name)
    else:
        shape = edit.add_constant(f"{name}_sizes", np.array(sizes, np.int64))
    result = edit.insert("Reshape", [output, shape], like=output, output=f"{name}_shaped")
    edit.replace(output, result, rename=f"{name}_flat")
    output.shape = None


def _flatten(edit: GraphEditor, source: ir.Value) -> ir.Value:
    """Returns an activation of more than three axes with all between the first and the last as one."""
    if source.shape is None or len(source.shape) <= _MOST_AXES:
        return source
    first, *between, last = source.shape
    sizes = edit.add_constant(f"{source.name}_flat_sizes", np.array([0, -1, last], np.int64))
    result = edit.insert("Reshape", [source, sizes], like=source, output=f"{source.name}_flat")
    known = all(isinstance(size, int) for size in between)
    count = math.prod(size for size in between if isinstance(size, int)) if known else None
    result.shape = ir.Shape([first, count, last])
    return result


def _find_sizes(edit: GraphEditor, source: ir.Value, last: int, name: str) -> ir.Value:
    """Returns the sizes of an activation with another last one, where several are open."""
    like = ir.val("", ir.DataType.INT64, (None,))
    ends = {"start": 0, "end": -1}
    shape = edit.insert("Shape", [source], ends, like=like, output=f"{name}_outer_sizes")
    width = edit.add_constant(f"{name}_width", np.array([last], np.int64))
    return edit.insert("Concat", [shape, width], {"axis": 0}, like=like, output=f"{name}_sizes")
