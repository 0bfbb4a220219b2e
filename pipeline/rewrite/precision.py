"""FP16 for what is not quantized: strongly typed networks take the precision from the graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.kept import KeptFp32
from trtq.models.tensors import read_values
from trtq.pipeline.graph.edit import GraphEditor, list_bodies
from trtq.pipeline.graph.operands import find_constant

_FP16_MAX = 65504.0
_ENDS = f"FP16 ends at {_FP16_MAX:g}"
_FP16_LEAST = 2.0**-24
_FEW_ELEMENTS = 8
_MAX_ERROR = 0.01
_PIECE = 1 << 20
_FLOAT, _FLOAT16, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_LARGEST = {_FLOAT16: _FP16_MAX, _BFLOAT16: 3.3895314e38}
_NAMES = {_FLOAT: "fp32", _FLOAT16: "fp16", _BFLOAT16: "bf16"}
_FLOAT32_ONLY = ("BitCast", "Celu", "TensorScatter")
"""ONNX has 16 bits for them; ONNX Runtime has no kernel, and the bits that BitCast takes are others."""
_SCATTER = ("ScatterElements", "ScatterND")
_LITERAL_FLOAT = "tensor(float)"


def to_fp16(
    model: ir.Model, *, keep_fp32: Sequence[str] = (), beyond_fp16: Mapping[str, float] | None = None
) -> tuple[ir.Model, tuple[KeptFp32, ...]]:
    """Returns the model computing in FP16, and the nodes that stay FP32; inputs and outputs stay FP32.

    A node stays FP32 if
    1. its name matches one of `keep_fp32`;
    2. it has a body (If, Loop, Scan), is no standard operator, has no FP16 version, makes numbers of nothing
       (ONNX Runtime and TensorRT do so in FP32 only), one of its tensors is of unknown type, or ONNX Runtime
       has no FP16 kernel and does not cast around it;
    3. it computes with the shapes of tensors: TensorRT does so in FP32 only;
    4. a tensor of it reaches values that FP16 cannot hold, by `beyond_fp16`, its scale or as a constant, or
       its scale is below FP16's least number;
    5. a small constant of it (an epsilon, a scale) would vanish or lose more than 1 %.
    Casts stand only where the precision changes, one a tensor and direction.

    Args:
        model: A graph with types; FP16 parts of it stay as they are. It is not changed.
        keep_fp32: Regular expressions searched in node names.
        beyond_fp16: Tensors whose observed magnitudes are too large or too small, with their amax.
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
    opset, on_shapes = result.opset_imports.get("", 1), _nodes_on_shapes(result.graph)
    reasons = {
        node: next(_find_reasons(node, opset, half, keep_fp32, on_shapes, beyond_fp16), None)
        for node in result.graph
        if any(map(_is_float, (*node.inputs, *node.outputs)))
    }
    edit = GraphEditor(result)
    casts = _Casts(edit, half)
    for node in list(result.graph):
        if node in reasons and reasons[node] is None:
            _convert(node, opset, casts)
        else:
            _feed_fp32(node, casts)
    for index, value in enumerate(model.graph.outputs):
        if value.dtype is _FLOAT and result.graph.outputs[index].dtype is half:
            casts.cast_output(index)
    edit.drop_unused()
    return result, tuple(KeptFp32(str(node.name), reason) for node, reason in reasons.items() if reason)


def _find_reasons(
    node: ir.Node,
    opset: int,
    half: ir.DataType,
    keep_fp32: Sequence[str],
    on_shapes: Collection[ir.Node],
    beyond: Mapping[str, float],
) -> Iterator[str]:
    """Yields why a node stays FP32."""
    yield from (f"kept by {pattern!r}" for pattern in keep_fp32 if re.search(pattern, str(node.name)))
    if list_bodies(node):
        yield f"{node.op_type} has a body of its own"
    signature = _signature(node, opset)
    if signature is None:
        yield f"{node.domain or 'ai.onnx'}::{node.op_type} is unknown here"
        return
    if signature.makes_numbers:
        yield f"{node.op_type} makes numbers of nothing"
    if _lacks_kernel(node):
        yield f"ONNX Runtime has no {_NAMES[half].upper()} kernel for this {node.op_type}"
    if not signature.has_half_version(node, half):
        yield f"{node.op_type} has no {_NAMES[half].upper()} version"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name and value.dtype is None:
            yield f"the type of tensor {value.name!r} is not known"
    if node in on_shapes:
        yield "computes with the shapes of tensors"
    if half is _FLOAT16:
        yield from _find_reasons_in_values(node, beyond)


def _lacks_kernel(node: ir.Node) -> bool:
    """Returns whether ONNX Runtime fails on a node in 16 bits, instead of casting around it."""
    reduction = node.attributes.get_string("reduction", "none")
    return node.op_type in _FLOAT32_ONLY or (node.op_type in _SCATTER and reduction != "none")


def _find_reasons_in_values(node: ir.Node, beyond: Mapping[str, float]) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and (amax := beyond.get(str(value.name))) is not None:
            small = f"FP16 has no steps below {_FP16_LEAST:.3g}"
            yield f"tensor {value.name!r} reaches {amax:.3g}, {_ENDS if amax > 1 else small}"
    floats = [value for value in node.inputs if value is not None and _is_float(value)]
    for value in floats:
        if value.const_value is not None:
            yield from _find_reasons_in_constant(node, str(value.name), value.const_value)
    for value in floats:
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            scale = find_constant(producer, 1)
            if scale is not None and (largest := scale.max(initial=0.0) * QMAX) > _FP16_MAX:
                yield f"tensor {value.name!r} reaches {largest:.3g}, {_ENDS}"
            if scale is not None and 0 < (step := scale.max(initial=0.0)) < _FP16_LEAST:
                yield f"tensor {value.name!r} has steps of {step:.3g}, FP16 begins at {_FP16_LEAST:.3g}"


def _find_reasons_in_constant(node: ir.Node, name: str, tensor: ir.TensorProtocol) -> Iterator[str]:
    largest = _largest_finite(tensor)
    if largest > _FP16_MAX:
        yield f"constant {name!r} has {largest:.3g}, {_ENDS}"
    if node.op_type == "DequantizeLinear" and largest * QMAX > _FP16_MAX:
        yield f"scale {name!r} gives values up to {largest * QMAX:.3g}, {_ENDS}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") or tensor.size <= _FEW_ELEMENTS:
        magnitudes = np.abs(tensor.numpy())
        small = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        errors = np.abs(small.astype(np.float16).astype(np.float64) - small) / small
        if small.size and errors.max() > _MAX_ERROR:
            yield f"constant {name!r} has {small[int(errors.argmax())]:.3g}, too small for FP16"


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


@dataclass(frozen=True, slots=True)
class _Signature:
    """What ONNX says of an operator in one opset.

    Attributes:
        inputs: The type of each, such as "T" or "tensor(float)"; the last stands for all after it.
        outputs: Likewise.
        allowed: The types that each of these letters may stand for.
        makes_numbers: Whether an attribute tells the dtype of an output that depends on no input.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]
    makes_numbers: bool

    def has_half_version(self, node: ir.Node, half: ir.DataType) -> bool:
        """Returns whether all float inputs and outputs of a node may have this dtype, or have to be float."""
        kinds = [_at(self.inputs, index) for index, value in enumerate(node.inputs) if _is_float(value)]
        kinds += [_at(self.outputs, index) for index, value in enumerate(node.outputs) if _is_float(value)]
        wanted = f"tensor({half.name.lower()})"
        return all(kind == _LITERAL_FLOAT or wanted in self.allowed.get(kind, ()) for kind in kinds)


def _at(kinds: tuple[str, ...], index: int) -> str:
    return kinds[min(index, len(kinds) - 1)]


def _signature(node: ir.Node, opset: int) -> _Signature | None:
    return _read_signature(node.op_type, opset) if node.domain in ("", "ai.onnx") else None


@cache  # the schema of ONNX takes long to read, and is the same for all nodes of a type
def _read_signature(op_type: str, opset: int) -> _Signature | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return _Signature(
        tuple(str(item.type_str) for item in schema.inputs),
        tuple(str(item.type_str) for item in schema.outputs),
        {item.type_param_str: frozenset(item.allowed_type_strs) for item in schema.type_constraints},
        op_type == "Constant" or not schema.attributes.keys().isdisjoint(("dtype", "output_datatype")),
    )


def _convert(node: ir.Node, opset: int, casts: _Casts) -> None:
    """Makes one node compute in FP16; inputs and outputs that are float by definition stay so (Resize)."""
    signature = _signature(node, opset)
    assert signature is not None
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in (_FLOAT, casts.half):
            continue
        dtype = _FLOAT if _at(signature.inputs, index) == _LITERAL_FLOAT else casts.half
        node.replace_input_with(index, casts.cast(value, dtype))
    for index, value in enumerate(node.outputs):
        if _is_float(value) and _at(signature.outputs, index) != _LITERAL_FLOAT:
            value.type = ir.TensorType(casts.half)
            casts.converted.add(value)
    _convert_attributes(node, casts.half)


def _convert_attributes(node: ir.Node, half: ir.DataType) -> None:
    """Changes the attributes that name the dtype of an output."""
    for name in ("to", "output_dtype"):
        if node.attributes.get_int(name) == _FLOAT:
            node.attributes[name] = ir.AttrInt64(name, half)
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype is half:
        value = node.attributes.get_tensor("value")
        array = np.zeros(1, np.float32) if value is None else value.numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.astype(half.numpy())))


def _feed_fp32(node: ir.Node, casts: _Casts) -> None:
    """Gives a node that stays as it is, and the bodies in it, the FP32 of every tensor that became FP16."""
    for reader in (node, *(inner for body in list_bodies(node) for inner in body.all_nodes())):
        for index, value in enumerate(reader.inputs):
            if value in casts.converted:
                reader.replace_input_with(index, casts.cast(value, _FLOAT))


class _Casts:
    """The casts of a graph, made when they are first needed.

    Attributes:
        half: FP16 or BF16.
        converted: The values that have this dtype now.
    """

    def __init__(self, edit: GraphEditor, half: ir.DataType) -> None:
        self._edit, self.half = edit, half
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.converted: set[ir.Value] = set()

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns the value in FP32, or in FP16 or BF16."""
        if value.dtype is dtype:
            return value
        if (value, dtype) not in self._made:
            self._made[value, dtype] = self._add(value, dtype)
        return self._made[value, dtype]

    def _add(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name, tensor = f"{value.name}_{_NAMES[dtype]}", value.const_value
        if tensor is not None:
            return self._edit.add_constant(name, _cast_tensor(tensor, dtype))
        return self._edit.cast(value, dtype, output=name, name=f"{value.name}_to_{_NAMES[dtype]}")

    def cast_output(self, index: int) -> None:
        """Puts a cast to FP32 before an output of the graph, which keeps its name; other readers stay."""
        value = self._edit.graph.outputs[index]
        name = str(value.name)
        result = self._edit.cast(value, _FLOAT, output=f"{name}_fp32", name=f"{name}_to_fp32_output")
        value.name, result.name = self._edit.name_value(f"{name}_{_NAMES[self.half]}"), name
        self._edit.graph.outputs[index] = result


def _cast_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    """Returns a constant in another dtype; one in another file is cast when it is read, so one at a time."""

    def cast() -> ir.TensorProtocol:
        return ir.tensor(_clipped(read_values(tensor), dtype).astype(dtype.numpy()))

    if isinstance(tensor, ir.ExternalTensor):
        return ir.LazyTensor(cast, dtype, ir.Shape(tensor.shape.numpy()))
    return cast()


def _clipped(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Returns the array with finite values inside the dtype's range; infinities stay."""
    largest = _LARGEST.get(dtype, np.inf)
    return np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
