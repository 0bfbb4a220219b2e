"""FP16 for what is not quantized: strongly typed networks take the precision from the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.fold import add_initializer

_FP16_MAX = 65504.0
_FEW_ELEMENTS = 8
_FLOAT, _FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LITERAL_FLOAT = "tensor(float)"


@dataclass(frozen=True, slots=True)
class KeptFp32:
    """A node that stays FP32, and why."""

    name: str
    reason: str


def to_fp16(
    model: ir.Model, *, keep_fp32: Sequence[str] = (), beyond_fp16: Mapping[str, float] | None = None
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in FP16, and the nodes that stay FP32; inputs and outputs stay FP32.

    A node stays FP32 if
    1. its name matches one of `keep_fp32`;
    2. it has a body (If, Loop, Scan), is no standard operator, or has no FP16 version;
    3. one of its tensors reaches values that FP16 cannot hold, by `beyond_fp16` or as a constant;
    4. a small constant of it (an epsilon) would vanish or lose more than 1 %.
    Casts stand only where the precision changes, one a tensor and direction.

    Args:
        model: A graph with types; FP16 parts of it stay as they are. It is not changed.
        keep_fp32: Regular expressions searched in node names.
        beyond_fp16: Tensors whose observed magnitudes are too large, with their amax.
    """
    result = model.clone()
    opset = result.opset_imports.get("", 1)
    reasons = {node: _reason_to_keep(node, opset, keep_fp32, beyond_fp16 or {}) for node in result.graph}
    casts = _Casts(result.graph)
    outputs = list(result.graph.outputs)
    for node in list(result.graph):
        if reasons[node] is None:
            _convert(node, opset, casts)
        else:
            _feed_fp32(node, casts)
    for index, value in enumerate(outputs):
        if value.dtype is _FLOAT16 and model.graph.outputs[index].dtype is _FLOAT:
            _cast_output(result.graph, index, value)
    _drop_unused(result.graph)
    kept = tuple(KeptFp32(str(node.name), reason) for node, reason in reasons.items() if reason is not None)
    return result, kept


def _reason_to_keep(
    node: ir.Node, opset: int, keep_fp32: Sequence[str], beyond: Mapping[str, float]
) -> str | None:
    if not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
        return None  # computes no FP32: nothing to keep or to cast
    pattern = next((pattern for pattern in keep_fp32 if re.search(pattern, str(node.name))), None)
    if pattern is not None:
        return f"kept by {pattern!r}"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return f"{node.op_type} has a body of its own"
    schema = _schema(node, opset)
    if schema is None:
        return f"{node.domain or 'ai.onnx'}::{node.op_type} is unknown here"
    if not _has_fp16_version(node, schema):
        return f"{node.op_type} has no FP16 version"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name is not None and value.name in beyond:
            return f"tensor {value.name!r} reaches {beyond[value.name]:.3g}, FP16 ends at {_FP16_MAX:g}"
    return _reason_in_constants(node)


def _reason_in_constants(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is None or not _is_float(value) or value.const_value is None:
            continue
        array = np.asarray(value.const_value.numpy())
        finite = np.abs(array[np.isfinite(array)])
        if finite.size and finite.max() > _FP16_MAX:
            return f"constant {value.name!r} has {finite.max():.3g}, FP16 ends at {_FP16_MAX:g}"
        if node.op_type == "DequantizeLinear" and finite.size and finite.max() * 127 > _FP16_MAX:
            return (
                f"scale {value.name!r} dequantizes up to {finite.max() * 127:.3g}, FP16 ends at {_FP16_MAX:g}"
            )
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and 0 < array.size <= _FEW_ELEMENTS:
            small = finite[finite > 0]
            error = (
                np.abs(small.astype(np.float16).astype(np.float64) - small) / small if small.size else small
            )
            if error.size and error.max() > 0.01:
                return f"constant {value.name!r} has {small[int(error.argmax())]:.3g}, too small for FP16"
    return None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is _FLOAT


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """Returns the type string of the parameter at this place; a variadic last one stands for all after it."""
    return str(parameters[min(index, len(parameters) - 1)].type_str)


def _has_fp16_version(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}
    places = [(schema.inputs, i) for i, value in enumerate(node.inputs) if _is_float(value)]
    places += [(schema.outputs, i) for i, value in enumerate(node.outputs) if _is_float(value)]
    kinds = [_formal(parameters, index) for parameters, index in places]
    return all(kind == _LITERAL_FLOAT or "tensor(float16)" in allowed.get(kind, ()) for kind in kinds)


def _convert(node: ir.Node, opset: int, casts: _Casts) -> None:
    """Makes one node compute in FP16; inputs and outputs that are float by definition stay so (Resize)."""
    schema = _schema(node, opset)
    assert schema is not None or not any(_is_float(value) for value in (*node.inputs, *node.outputs))
    if schema is None:
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (_FLOAT, _FLOAT16):
            continue
        literal = _formal(schema.inputs, index) == _LITERAL_FLOAT
        node.replace_input_with(index, casts.fp32(value) if literal else casts.fp16(value))
    for index, value in enumerate(node.outputs):
        if _is_float(value) and _formal(schema.outputs, index) != _LITERAL_FLOAT:
            value.type = ir.TensorType(_FLOAT16)
            casts.converted.add(value)
    _convert_attributes(node)


def _convert_attributes(node: ir.Node) -> None:
    """Changes the attributes that name the dtype of an output."""
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.type is ir.AttributeType.INT and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, _FLOAT16)
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype is _FLOAT16:
        value = node.attributes.get("value")
        array = value.as_tensor().numpy() if value is not None else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(np.float16)))


def _feed_fp32(node: ir.Node, casts: _Casts) -> None:
    """Gives a node that stays FP32, and the bodies in it, the FP32 of every tensor that became FP16."""
    for index, value in enumerate(node.inputs):
        if value in casts.converted:
            node.replace_input_with(index, casts.fp32(value))
    for attribute in node.attributes.values():
        bodies = (
            [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH
            else attribute.as_graphs() if attribute.type is ir.AttributeType.GRAPHS
            else []
        )  # fmt: skip
        for body in bodies:
            for inner in body.all_nodes():
                for index, value in enumerate(inner.inputs):
                    if value in casts.converted:
                        inner.replace_input_with(index, casts.fp32(value))


class _Casts:
    """The casts of a graph, made when they are first needed."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.converted: set[ir.Value] = set()

    def fp16(self, value: ir.Value) -> ir.Value:
        """Returns the value in FP16."""
        return value if value.dtype is _FLOAT16 else self._cast(value, _FLOAT16, "fp16")

    def fp32(self, value: ir.Value) -> ir.Value:
        """Returns the value in FP32."""
        return value if value.dtype is _FLOAT else self._cast(value, _FLOAT, "fp32")

    def _cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            if value.const_value is not None:
                array = _clipped(value.const_value.numpy()).astype(dtype.numpy())
                self._made[key] = add_initializer(self._graph, f"{value.name}_{suffix}", array)
            else:
                self._made[key] = self._insert(value, dtype, suffix)
        return self._made[key]

    def _insert(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{suffix}")
        node.outputs[0].name = f"{value.name}_{suffix}"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, [node])
        else:
            self._graph.insert_before(self._graph[0], [node])
        return node.outputs[0]


def _clipped(array: NDArray[Any]) -> NDArray[Any]:
    """Returns the array with finite values inside FP16's range; infinities stay."""
    return np.where(np.isfinite(array), np.clip(array, -_FP16_MAX, _FP16_MAX), array)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    """Puts a cast to FP32 before a graph output, which keeps its name."""
    name = value.name
    value.name = f"{name}_fp16"
    node = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{name}_to_fp32_output")
    node.outputs[0].name, node.outputs[0].shape = name, value.shape
    node.outputs[0].type = ir.TensorType(_FLOAT)
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
