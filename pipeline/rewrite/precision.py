"""FP16 for what is not quantized: strongly typed networks take the precision from the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.kept import KeptFp32
from trtq.models.tensors import read_values
from trtq.pipeline.graph.fold import add_initializer, make_unique_name

_FP16_MAX = 65504.0
_FEW_ELEMENTS = 8
_MAX_ERROR = 0.01
_PIECE = 1 << 20
_FLOAT, _FLOAT16, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_LARGEST = {_FLOAT16: _FP16_MAX, _BFLOAT16: 3.3895314e38}
_NAMES = {_FLOAT: "fp32", _FLOAT16: "fp16", _BFLOAT16: "bf16"}
_LITERAL_FLOAT = "tensor(float)"


def to_fp16(
    model: ir.Model, *, keep_fp32: Sequence[str] = (), beyond_fp16: Mapping[str, float] | None = None
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in FP16, and the nodes that stay FP32; inputs and outputs stay FP32.

    A node stays FP32 if
    1. its name matches one of `keep_fp32`;
    2. it has a body (If, Loop, Scan), is no standard operator, has no FP16 version, makes numbers of nothing
       (ONNX Runtime and TensorRT do so in FP32 only), or one of its tensors is of unknown type;
    3. it computes with the shapes of tensors: TensorRT does so in FP32 only;
    4. a tensor of it reaches values that FP16 cannot hold, by `beyond_fp16`, by its scale or as a constant;
    5. a small constant of it (an epsilon, a scale) would vanish or lose more than 1 %.
    Casts stand only where the precision changes, one a tensor and direction.

    Args:
        model: A graph with types; FP16 parts of it stay as they are. It is not changed.
        keep_fp32: Regular expressions searched in node names.
        beyond_fp16: Tensors whose observed magnitudes are too large, with their amax.
    """
    return _to_half(model, _FLOAT16, keep_fp32, beyond_fp16 or {})


def to_bf16(model: ir.Model, *, keep_fp32: Sequence[str] = ()) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in BF16, and the nodes that stay FP32, by rules 1 to 3 of `to_fp16`.

    BF16 has the range of FP32, so no value is too large or too small for it.

    Args:
        model: A graph with types. It is not changed.
        keep_fp32: Regular expressions searched in node names.
    """
    return _to_half(model, _BFLOAT16, keep_fp32, {})


def _to_half(
    model: ir.Model, half: ir.DataType, keep_fp32: Sequence[str], beyond_fp16: Mapping[str, float]
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    result = model.clone()
    opset = result.opset_imports.get("", 1)
    on_shapes = _nodes_on_shapes(result.graph)
    reasons = {
        node: _reason_in_name(node, keep_fp32)
        or _reason_in_kind(node, opset, half)
        or ("computes with the shapes of tensors" if node in on_shapes else None)
        or (_reason_in_values(node, beyond_fp16) if half is _FLOAT16 else None)
        for node in result.graph
        if any(_is_float(value) for value in (*node.inputs, *node.outputs))
    }
    casts = _Casts(result.graph, half)
    outputs = list(result.graph.outputs)
    for node in list(result.graph):
        if node in reasons and reasons[node] is None:
            _convert(node, opset, casts)
        else:
            _feed_fp32(node, casts)
    for index, value in enumerate(outputs):
        if value.dtype is half and model.graph.outputs[index].dtype is _FLOAT:
            _cast_output(result.graph, index, value, _NAMES[half])
    _drop_unused(result.graph)
    kept = tuple(KeptFp32(str(node.name), reason) for node, reason in reasons.items() if reason is not None)
    return result, kept


def _reason_in_name(node: ir.Node, keep_fp32: Sequence[str]) -> str | None:
    pattern = next((pattern for pattern in keep_fp32 if re.search(pattern, str(node.name))), None)
    return None if pattern is None else f"kept by {pattern!r}"


def _reason_in_kind(node: ir.Node, opset: int, half: ir.DataType) -> str | None:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    ):
        return f"{node.op_type} has a body of its own"
    schema = _schema(node, opset)
    if schema is None:
        return f"{node.domain or 'ai.onnx'}::{node.op_type} is unknown here"
    if node.op_type == "Constant" or not schema.attributes.keys().isdisjoint(("dtype", "output_datatype")):
        return f"{node.op_type} makes numbers of nothing"
    if not _has_half_version(node, schema, half):
        return f"{node.op_type} has no {_NAMES[half].upper()} version"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and value.dtype is None:
            return f"the type of tensor {value.name!r} is not known"
    return None


def _reason_in_values(node: ir.Node, beyond: Mapping[str, float]) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name is not None and value.name in beyond:
            return f"tensor {value.name!r} reaches {beyond[value.name]:.3g}, FP16 ends at {_FP16_MAX:g}"
    reasons = [_reason_in_constant(node, value) for value in node.inputs if _is_float(value)]
    reasons += [_reason_in_source(value) for value in node.inputs if _is_float(value)]
    return next((reason for reason in reasons if reason is not None), None)


def _reason_in_constant(node: ir.Node, value: ir.Value | None) -> str | None:
    if value is None or value.const_value is None:
        return None
    largest = _largest_finite(value.const_value)
    if largest > _FP16_MAX:
        return f"constant {value.name!r} has {largest:.3g}, FP16 ends at {_FP16_MAX:g}"
    if node.op_type == "DequantizeLinear" and largest * QMAX > _FP16_MAX:
        return f"scale {value.name!r} gives values up to {largest * QMAX:.3g}, FP16 ends at {_FP16_MAX:g}"
    is_scale = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    if is_scale or value.const_value.size <= _FEW_ELEMENTS:
        magnitudes = np.abs(value.const_value.numpy())
        small = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        errors = np.abs(small.astype(np.float16).astype(np.float64) - small) / small
        if small.size and errors.max() > _MAX_ERROR:
            return f"constant {value.name!r} has {small[int(errors.argmax())]:.3g}, too small for FP16"
    return None


def _largest_finite(tensor: ir.TensorProtocol) -> float:
    """Returns the largest magnitude, reading a large tensor in pieces."""
    flat = read_values(tensor).reshape(-1)
    largest = 0.0
    for start in range(0, flat.size, _PIECE):
        magnitudes = np.abs(flat[start : start + _PIECE])
        piece = magnitudes.max(initial=0.0)
        if not np.isfinite(piece):
            piece = magnitudes[np.isfinite(magnitudes)].max(initial=0.0)
        largest = max(largest, float(piece))
    return largest


def _reason_in_source(value: ir.Value | None) -> str | None:
    """Returns why a tensor out of a DequantizeLinear does not fit into FP16."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = producer.inputs[1]
    if scale is None or scale.const_value is None:
        return None
    largest = scale.const_value.numpy().max(initial=0.0) * QMAX
    if largest <= _FP16_MAX:
        return None
    return f"tensor {value.name!r} reaches {largest:.3g}, FP16 ends at {_FP16_MAX:g}"


def _nodes_on_shapes(graph: ir.Graph) -> set[ir.Node]:
    """Returns the nodes that make a number or a vector from nothing but the shapes of tensors."""
    shapes: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in graph:
        sources = [value for value in node.inputs if value is not None and not value.is_initializer()]
        on_shapes = bool(sources) and shapes.issuperset(sources)
        if on_shapes or node.op_type in ("Shape", "Size"):
            shapes.update(node.outputs)
        if on_shapes and all(value.shape is None or len(value.shape) <= 1 for value in node.outputs):
            found.add(node)
    return found


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


def _has_half_version(node: ir.Node, schema: onnx.defs.OpSchema, half: ir.DataType) -> bool:
    wanted = f"tensor({half.name.lower()})"
    allowed = {item.type_param_str: set(item.allowed_type_strs) for item in schema.type_constraints}
    places = [(schema.inputs, i) for i, value in enumerate(node.inputs) if _is_float(value)]
    places += [(schema.outputs, i) for i, value in enumerate(node.outputs) if _is_float(value)]
    kinds = [_formal(parameters, index) for parameters, index in places]
    return all(kind == _LITERAL_FLOAT or wanted in allowed.get(kind, ()) for kind in kinds)


def _convert(node: ir.Node, opset: int, casts: _Casts) -> None:
    """Makes one node compute in FP16; inputs and outputs that are float by definition stay so (Resize)."""
    schema = _schema(node, opset)
    assert schema is not None
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (_FLOAT, casts.half_dtype):
            continue
        literal = _formal(schema.inputs, index) == _LITERAL_FLOAT
        node.replace_input_with(index, casts.fp32(value) if literal else casts.half(value))
    for index, value in enumerate(node.outputs):
        if _is_float(value) and _formal(schema.outputs, index) != _LITERAL_FLOAT:
            value.type = ir.TensorType(casts.half_dtype)
            casts.converted.add(value)
    _convert_attributes(node, casts.half_dtype)


def _convert_attributes(node: ir.Node, half: ir.DataType) -> None:
    """Changes the attributes that name the dtype of an output."""
    for name in ("to", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_int() == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, half)
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype is half:
        value = node.attributes.get("value")
        array = value.as_tensor().numpy() if value is not None else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(half.numpy())))


def _feed_fp32(node: ir.Node, casts: _Casts) -> None:
    """Gives a node that stays as it is, and the bodies in it, the FP32 of every tensor that became FP16."""
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

    def __init__(self, graph: ir.Graph, half_dtype: ir.DataType) -> None:
        self._graph = graph
        self.half_dtype = half_dtype
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.converted: set[ir.Value] = set()

    def half(self, value: ir.Value) -> ir.Value:
        """Returns the value in FP16 or BF16."""
        dtype = self.half_dtype
        return value if value.dtype is dtype else self._cast(value, dtype, _NAMES[dtype])

    def fp32(self, value: ir.Value) -> ir.Value:
        """Returns the value in FP32."""
        return value if value.dtype is _FLOAT else self._cast(value, _FLOAT, "fp32")

    def _cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            if isinstance(value.const_value, ir.ExternalTensor):
                self._made[key] = self._cast_when_read(value.const_value, dtype, suffix)
            elif value.const_value is not None:
                array = _clipped(value.const_value.numpy(), dtype).astype(dtype.numpy())
                self._made[key] = add_initializer(self._graph, f"{value.name}_{suffix}", array)
            else:
                self._made[key] = self._insert(value, dtype, suffix)
        return self._made[key]

    def _cast_when_read(self, tensor: ir.ExternalTensor, dtype: ir.DataType, suffix: str) -> ir.Value:
        """Returns a constant that is cast when it is read, so that a large model is never in memory whole."""

        def cast() -> ir.TensorProtocol:
            return ir.tensor(_clipped(read_values(tensor), dtype).astype(dtype.numpy()))

        name = make_unique_name(self._graph, f"{tensor.name}_{suffix}")
        lazy = ir.LazyTensor(cast, dtype, ir.Shape(tensor.shape.numpy()), name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=lazy.shape, const_value=lazy)
        self._graph.initializers.add(value)
        return value

    def _insert(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_to_{suffix}")
        node.outputs[0].name = make_unique_name(self._graph, f"{value.name}_{suffix}")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, [node])
        else:
            self._graph.insert_before(self._graph[0], [node])
        return node.outputs[0]


def _clipped(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Returns the array with finite values inside the dtype's range; infinities stay."""
    largest = _LARGEST.get(dtype)
    if largest is None:
        return array
    return np.where(np.isfinite(array), np.clip(array, -largest, largest), array)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, half: str) -> None:
    """Puts a cast to FP32 before a graph output, which keeps its name."""
    name = value.name
    value.name = make_unique_name(graph, f"{name}_{half}")
    node = ir.node("Cast", [value], {"to": int(_FLOAT)}, name=f"{name}_to_fp32_output")
    node.outputs[0].name, node.outputs[0].shape = name, value.shape
    node.outputs[0].type = ir.TensorType(_FLOAT)
    graph.append(node)
    graph.outputs[index] = node.outputs[0]


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
