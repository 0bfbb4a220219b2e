"""NVFP4 as TensorRT-RTX computes it, in plain operators: ONNX Runtime has no numbers of four bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.nvfp4 import BLOCK
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import DEQUANTIZE, find_constant

DOMAIN, DYNAMIC_QUANTIZE = "trt", "TRT_FP4DynamicQuantize"
_FLOAT, _FP8, _FP4 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1
_IR = 10
"""Of files that older versions of ONNX Runtime read."""
_LARGEST = np.float32(6)
_SMALLEST = np.float32(2.0**-126)
"""What is divided by instead of a scale of zero, whose block is zero as well."""


def emulate_fp4(model: ir.Model) -> ir.Model | None:
    """Returns the model with NVFP4 in FP32 arithmetic that gives the same numbers; None if it has none.

    An activation x with the scale g of its scales has in every block of 16 the scale
    s = g E4M3(amax / 6 / g) and the values s E2M1(x / s), rounded half to even. Weights become the numbers
    that their codes stand for.

    Args:
        model: It is not changed.

    Raises:
        ModelError: The codes of a node are in other blocks, or have computed scales.
    """
    if not any(map(_reads_fp4, model.graph.all_nodes())):
        return None
    result = model.clone()
    edit, made = GraphEditor(result), dict[ir.Value, _Blocks]()
    for node in list(result.graph.all_nodes()):
        if node.op_type == DYNAMIC_QUANTIZE:
            made[node.outputs[0]] = _quantize(edit, node)
        elif _reads_fp4(node):
            codes = node.inputs[0]
            assert codes is not None
            numbers = _widen(edit, node, made[codes]) if codes in made else _read_weight(edit, node)
            edit.replace(node.outputs[0], numbers)
    edit.drop_unused()
    result.opset_imports.pop(DOMAIN, None)
    result.ir_version = min(result.ir_version, _IR)
    return result


def without_fp4(model: ir.Model) -> ir.Model:
    """Returns the model, or where it has NVFP4 what emulates it; ModelError as `emulate_fp4`."""
    return emulate_fp4(model) or model


def _reads_fp4(node: ir.Node) -> bool:
    codes = node.inputs[0] if node.op_type == DEQUANTIZE else None
    if codes is None:
        return False
    maker = codes.producer()
    is_made = maker is not None and maker.op_type == DYNAMIC_QUANTIZE and maker.outputs[0] is codes
    return is_made or codes.dtype is _FP4


@dataclass(frozen=True, slots=True)
class _Blocks:
    """An activation in rows of 16 before the node that dequantizes it.

    Attributes:
        source: The activation.
        numbers: E2M1 numbers as FP32, shape (blocks, 16).
        scales: E4M3 numbers as FP32, shape (blocks, 1).
    """

    source: ir.Value
    numbers: ir.Value
    scales: ir.Value


class _Steps:
    """FP32 nodes that are put before another one, named after it."""

    def __init__(self, edit: GraphEditor, node: ir.Node) -> None:
        self._edit, self._node, self._like = edit, node, ir.val("", _FLOAT)

    def add(self, op_type: str, *inputs: ir.Value | NDArray[Any] | np.generic, **attributes: int) -> ir.Value:
        """Returns the output of a new node; arrays become constants."""
        values = [item if isinstance(item, ir.Value) else self._constant(item) for item in inputs]
        name = f"{self._node.name}_{op_type}"
        return self._edit.insert(op_type, values, attributes, like=self._like, output=name, before=self._node)

    def _constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        return self._edit.add_constant(f"{self._node.name}_constant", np.asarray(array))


def _quantize(edit: GraphEditor, node: ir.Node) -> _Blocks:
    source, shared = node.inputs[0], find_constant(node, 1)
    assert source is not None
    axis, size = node.attributes.get_int("axis", -1), node.attributes.get_int("block_size", BLOCK)
    rank = None if source.shape is None else len(source.shape)
    if shared is None or size != BLOCK or (axis != -1 and axis + 1 != rank):
        raise ModelError(
            f"node {node.name!r} ({DYNAMIC_QUANTIZE}) has axis {axis}, block_size {size} and a "
            f"{'computed' if shared is None else 'constant'} scale; what can be compared is NVFP4 in blocks "
            f"of {BLOCK} along the last axis with a constant scale: export the model so"
        )
    steps, shared, one = _Steps(edit, node), _one(shared), np.ones((), np.float32)
    wide = steps.add("Cast", source, to=int(_FLOAT))
    blocks = steps.add("Reshape", wide, np.array([-1, BLOCK]))
    amax = steps.add("ReduceMax", steps.add("Abs", blocks), np.array([1]), keepdims=1)
    wanted = steps.add("Div", steps.add("Div", amax, _LARGEST), shared)
    codes = steps.add("QuantizeLinear", wanted, one, np.zeros((), _FP8.numpy()))
    codes.type = ir.TensorType(_FP8)
    scales = steps.add(DEQUANTIZE, codes, one)
    divisor = steps.add("Max", steps.add("Mul", scales, shared), _SMALLEST)
    held = steps.add("Clip", steps.add("Div", blocks, divisor), -_LARGEST, _LARGEST)
    magnitude = steps.add("Abs", held)
    fine, middle = (steps.add("Less", magnitude, np.float32(end)) for end in (2, 4))
    fine.type = middle.type = ir.TensorType(ir.DataType.BOOL)
    coarse = steps.add("Where", middle, one, np.float32(2))
    step = steps.add("Where", fine, np.float32(0.5), coarse)
    numbers = steps.add("Mul", steps.add("Round", steps.add("Div", held, step)), step)
    return _Blocks(source, numbers, scales)


def _widen(edit: GraphEditor, node: ir.Node, blocks: _Blocks) -> ir.Value:
    """Returns what a DequantizeLinear makes of the blocks, with the scale of scales that it is given."""
    scales, dtype = _find_scales(node)
    maker = scales.inputs[0].producer() if scales.inputs[0] is not None else None
    is_own = maker is not None and maker.op_type == DYNAMIC_QUANTIZE and maker.inputs[0] is blocks.source
    shared = find_constant(scales, 1)
    if not is_own or shared is None:
        raise _refuse_scales(node)
    steps = _Steps(edit, node)
    factors = steps.add("Mul", blocks.scales, _one(shared))
    if dtype is not _FLOAT:  # which DequantizeLinear rounds them to
        rounded = steps.add("Cast", factors, to=int(dtype))
        rounded.type = ir.TensorType(dtype)
        factors = steps.add("Cast", rounded, to=int(_FLOAT))
    sizes = steps.add("Shape", blocks.source)
    sizes.type = ir.TensorType(ir.DataType.INT64)
    result = steps.add("Reshape", steps.add("Mul", blocks.numbers, factors), sizes)
    result = result if dtype is _FLOAT else steps.add("Cast", result, to=int(dtype))
    result.type, result.shape = ir.TensorType(dtype), blocks.source.shape
    return result


def _read_weight(edit: GraphEditor, node: ir.Node) -> ir.Value:
    """Returns the constant that a DequantizeLinear makes of the codes of a weight."""
    codes, (maker, dtype) = find_constant(node, 0), _find_scales(node)
    scales, shared = find_constant(maker, 0), find_constant(maker, 1)
    size = node.attributes.get_int("block_size", 0)
    if codes is None or scales is None or shared is None or size < 1:
        raise _refuse_scales(node)
    granularity = PerBlock(node.attributes.get_int("axis", 1) % codes.ndim, size)
    if scales.shape != granularity.scales_shape(codes.shape):
        raise _refuse_scales(node)
    factors = (scales.astype(np.float32) * _one(shared)).astype(dtype.numpy()).astype(np.float32)
    values = codes.astype(np.float32) * granularity.spread(factors, codes.shape)
    return edit.add_constant(f"{node.name}_values", values.astype(dtype.numpy()))


def _find_scales(node: ir.Node) -> tuple[ir.Node, ir.DataType]:
    """Returns the DequantizeLinear that the scales come from, perhaps cast, and the dtype that they have."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    maker, dtype = (None, None) if value is None else (value.producer(), value.dtype)
    if maker is not None and maker.op_type == "Cast" and maker.inputs[0] is not None:
        dtype, maker = ir.DataType(maker.attributes.get_int("to", int(_FLOAT))), maker.inputs[0].producer()
    if maker is None or maker.op_type != DEQUANTIZE or len(maker.inputs) < 2 or maker.inputs[1] is None:
        raise _refuse_scales(node)
    return maker, dtype or maker.inputs[1].dtype or _FLOAT


def _refuse_scales(node: ir.Node) -> ModelError:
    return ModelError(
        f"node {node.name!r} (DequantizeLinear) reads codes of FP4; what can be compared are blocks whose "
        f"scales are FP8 behind a DequantizeLinear with one constant scale, as in NVFP4: export the model so"
    )


def _one(shared: NDArray[Any]) -> NDArray[np.float32]:
    return shared.astype(np.float32).reshape(())
