"""FP16 for what is not quantized: strongly typed networks take the precision from the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.kept import KeptFp32
from trtq.models.streamed import cast_tensor
from trtq.pipeline.formats.floats import BF16, FP16, FP32, FloatFormat
from trtq.pipeline.graph.edit import GraphEditor, list_bodies
from trtq.pipeline.graph.opset import read_opset
from trtq.pipeline.rewrite.fp32_reasons import Fp32Reasons
from trtq.pipeline.rewrite.operator_types import find_types

_FLOAT = ir.DataType.FLOAT


def to_fp16(
    model: ir.Model, *, keep_fp32: Sequence[str] = (), beyond_fp16: Mapping[str, float] | None = None
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in FP16, and the nodes that stay FP32; inputs and outputs stay FP32.

    A node stays FP32 if
    1. its name matches one of `keep_fp32`;
    2. it has a body (If, Loop, Scan), is no standard operator, has no FP16 version, makes numbers of nothing
       (ONNX Runtime and TensorRT do so in FP32 only), one of its tensors is of unknown type, or ONNX Runtime
       has no FP16 kernel and does not cast around it;
    3. it computes with the shapes of tensors, which TensorRT does in FP32 only, with indices that may be too
       large for 16 bits, or makes the angles of positions and times, which these round to others;
    4. a tensor of it reaches values that FP16 cannot hold, by `beyond_fp16`, its scale or as a constant, or
       its scale is below FP16's least number;
    5. a constant of it would vanish or lose more than 1 %: a number of it, where it has few (an epsilon), is
       a scale or divides, and else as a whole. What ConstantOfShape fills tensors with counts as constant;
    6. it divides by, or takes the logarithm of, what such an epsilon keeps from zero;
    7. it leads from a Softmax or Sigmoid to a logarithm, or to a division by 1 minus that, or TensorRT
       computes it in steps;
    8. TensorRT does not take it in 16 bits.
    Casts stand only where the precision changes, one a tensor and direction.

    Args:
        model: A graph with types; FP16 parts of it stay as they are. It is not changed.
        keep_fp32: Regular expressions searched in node names.
        beyond_fp16: Tensors whose observed magnitudes are too large or too small, with their amax.
    """
    return _to_half(model, FP16, keep_fp32, beyond_fp16 or {})


def to_bf16(model: ir.Model, *, keep_fp32: Sequence[str] = ()) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in BF16, and the nodes that stay FP32, by rules 1 to 3 and 8 of `to_fp16`.

    BF16 has the range of FP32, so no value is too large or too small for it. Rule 7 holds for 1 minus shares.

    Args:
        model: A graph with types. It is not changed.
        keep_fp32: Regular expressions searched in node names.
    """
    return _to_half(model, BF16, keep_fp32, {})


def _to_half(
    model: ir.Model, half: FloatFormat, keep_fp32: Sequence[str], beyond_fp16: Mapping[str, float]
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    result = model.clone()
    opset, reasons = read_opset(result), Fp32Reasons(result, half, keep_fp32, beyond_fp16)
    kept = {
        node: reasons.find(node)
        for node in result.graph
        if any(map(_is_float, (*node.inputs, *node.outputs)))
    }
    edit = GraphEditor(result)
    casts = _Casts(edit, half)
    for node in list(result.graph):
        if node in kept and kept[node] is None:
            _convert(node, opset, casts)
        else:
            _feed_fp32(node, casts)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype is _FLOAT and result.graph.outputs[index].dtype is half.dtype:
            casts.cast_output(index)
    edit.drop_unused()
    return result, tuple(KeptFp32(str(node.name), reason) for node, reason in kept.items() if reason)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is _FLOAT


def _convert(node: ir.Node, opset: int, casts: _Casts) -> None:
    """Makes one node compute in FP16; inputs and outputs that are float by definition stay so (Resize)."""
    types, half = find_types(node, opset), casts.half.dtype
    assert types is not None
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (_FLOAT, half):
            continue
        node.replace_input_with(
            index, casts.cast(value, FP32 if types.has_to_be_float(index) else casts.half)
        )
    for index, value in enumerate(node.outputs):
        if _is_float(value) and not types.has_to_be_float(index, is_output=True):
            value.type = ir.TensorType(half)
            casts.converted.add(value)
    _convert_attributes(node, casts.half)


def _convert_attributes(node: ir.Node, half: FloatFormat) -> None:
    """Changes the attributes that name the dtype of an output."""
    for name in ("to", "output_dtype"):
        if node.attributes.get_int(name) == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, half.dtype)
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype is half.dtype:
        value = node.attributes.get_tensor("value") or ir.tensor(np.zeros(1, np.float32))
        node.attributes["value"] = ir.AttrTensor("value", _cast_tensor(value, half))


def _feed_fp32(node: ir.Node, casts: _Casts) -> None:
    """Gives a node that stays as it is, and the bodies in it, the FP32 of every tensor that became FP16."""
    for reader in (node, *(inner for body in list_bodies(node) for inner in body.all_nodes())):
        for index, value in enumerate(reader.inputs):
            if value in casts.converted:
                reader.replace_input_with(index, casts.cast(value, FP32))


class _Casts:
    """The casts of a graph, made when they are first needed.

    Attributes:
        half: FP16 or BF16.
        converted: The values that have this dtype now.
    """

    def __init__(self, edit: GraphEditor, half: FloatFormat) -> None:
        self._edit, self.half = edit, half
        self._made: dict[tuple[ir.Value, FloatFormat], ir.Value] = {}
        self.converted: set[ir.Value] = set()

    def cast(self, value: ir.Value, form: FloatFormat) -> ir.Value:
        """Returns the value in FP32, or in FP16 or BF16."""
        if value.dtype is form.dtype:
            return value
        if (value, form) not in self._made:
            self._made[value, form] = self._add(value, form)
        return self._made[value, form]

    def _add(self, value: ir.Value, form: FloatFormat) -> ir.Value:
        name, tensor = f"{value.name}_{form.name}", value.const_value
        if tensor is not None:
            return self._edit.add_constant(name, _cast_tensor(tensor, form))
        return self._edit.cast(value, form.dtype, output=name, name=f"{value.name}_to_{form.name}")

    def cast_output(self, index: int) -> None:
        """Puts a cast to FP32 before an output of the graph, which keeps its name; other readers stay."""
        value = self._edit.graph.outputs[index]
        name = str(value.name)
        result = self._edit.cast(value, _FLOAT, output=f"{name}_fp32", name=f"{name}_to_fp32_output")
        value.name, result.name = self._edit.name_value(f"{name}_{self.half.name}"), name
        self._edit.graph.outputs[index] = result


def _cast_tensor(tensor: ir.TensorProtocol, form: FloatFormat) -> ir.TensorProtocol:
    """Returns a constant in another format, with finite values inside its range; infinities stay."""

    def clip(part: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.isfinite(part), np.clip(part, -form.largest, form.largest), part)

    return cast_tensor(tensor, form.dtype, clip)
