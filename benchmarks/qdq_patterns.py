"""Q/DQ graphs of one layer, written in all the ways that tools write them and in those that TensorRT refuses.

A pattern says how; every field has the way that TensorRT wants first. `graph_of` makes the model: nodes that
count are called "layer".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

CHANNELS, OUTPUTS = 16, 32
FIELDS: dict[str, tuple[Any, ...]] = {
    "op": (
        "conv", "conv1x1", "conv1d", "conv3d", "depthwise", "grouped", "conv_transpose",
        "conv_transpose_grouped", "gemm",
        "gemm_trans_b", "matmul", "matmul_3d", "matmul_batched", "matmul_left",
    ),
    "activation": ("0-d", "[1]", "per channel", "per channel equal", "none"),
    "zero": (
        "int8", "missing", "missing int8", "int8 -3", "uint8", "uint8 128", "uint8 7", "int16", "int16 5",
        "float8e4m3fn", "float8e5m2",
    ),
    "weight": (
        "output axis", "0-d", "[1]", "input axis", "float output axis", "float input axis", "float 0-d",
        "none", "transposed after", "transposed before", "reshaped after", "blocked",
    ),
    "codes": (
        "int8", "missing", "int8 mixed", "uint8 128", "uint8 mixed", "uint8", "int16", "int4", "uint4",
        "int4 mixed", "float8e4m3fn",
    ),
    "bias": ("none", "float", "int32", "int32 0-d", "int8", "float qdq"),
    "dtype": ("float32", "float16", "bfloat16"),
    "opset": (19, 10, 12, 13, 17, 21, 23),
    "scale": ("usual", "zero", "negative", "nan", "inf", "denormal", "weight zero",
              "weight negative", "computed"),
    "between": (
        "nothing", "relu", "transpose", "reshape", "maxpool", "cast", "flatten", "identity", "unsqueeze",
        "concat", "int8 transpose", "int8 reshape", "int8 maxpool", "other scale", "twice", "add",
    ),
    "after": ("nothing", "relu", "qdq", "relu qdq", "uint8 qdq", "add qdq"),
    "domain": ("", "com.microsoft"),
    "batch": ("fixed", "open"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """How one layer and its Q/DQ are written."""

    op: str = "conv"
    activation: str = "0-d"
    zero: str = "int8"
    weight: str = "output axis"
    codes: str = "int8"
    bias: str = "none"
    dtype: str = "float32"
    opset: int = 19
    scale: str = "usual"
    between: str = "nothing"
    after: str = "nothing"
    domain: str = ""
    batch: str = "fixed"

    def __str__(self) -> str:
        told = [self.op]
        told += [
            f"{item.name}={getattr(self, item.name)}"
            for item in fields(self)
            if item.name != "op" and getattr(self, item.name) != item.default
        ]
        return ", ".join(told)


class _Graph:
    """Collects the nodes and constants of a graph."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
        name = name or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [f"{name}_out"], name=name, domain=domain, **attributes)
        )
        return f"{name}_out"

    def constant(self, name: str, array: NDArray[np.generic], dtype: int | None = None) -> str:
        if dtype is None:
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        values = array.astype(np.float32) if array.dtype.kind == "V" else array
        name = f"{name}_{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, dtype, array.shape, values.flatten().tolist()))
        return name

    def q(self, value: str, scale: str, zero: str, **attributes: Any) -> str:
        inputs = [value, scale, *([zero] if zero else [])]
        return self.add("QuantizeLinear", *inputs, domain=self.pattern.domain, **attributes)

    def dq(self, value: str, scale: str, zero: str, **attributes: Any) -> str:
        inputs = [value, scale, *([zero] if zero else [])]
        return self.add("DequantizeLinear", *inputs, domain=self.pattern.domain, **attributes)


_KINDS = {
    "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16,
    "int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8e5m2": TensorProto.FLOAT8E5M2,
}  # fmt: skip
_SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    # shape of the input, of the weight, axis of its output channels, axis of its input channels
    "conv": ((1, CHANNELS, 12, 12), (OUTPUTS, CHANNELS, 3, 3), 0, 1),
    "conv1x1": ((1, CHANNELS, 12, 12), (OUTPUTS, CHANNELS, 1, 1), 0, 1),
    "conv1d": ((1, CHANNELS, 32), (OUTPUTS, CHANNELS, 3), 0, 1),
    "conv3d": ((1, CHANNELS, 6, 6, 6), (OUTPUTS, CHANNELS, 3, 3, 3), 0, 1),
    "depthwise": ((1, OUTPUTS, 12, 12), (OUTPUTS, 1, 3, 3), 0, 1),
    "grouped": ((1, OUTPUTS, 12, 12), (OUTPUTS, 8, 3, 3), 0, 1),
    "conv_transpose": ((1, CHANNELS, 12, 12), (CHANNELS, OUTPUTS, 3, 3), 1, 0),
    "conv_transpose_grouped": ((1, CHANNELS, 12, 12), (CHANNELS, 8, 3, 3), 1, 0),
    "gemm": ((8, CHANNELS), (CHANNELS, OUTPUTS), 1, 0),
    "gemm_trans_b": ((8, CHANNELS), (OUTPUTS, CHANNELS), 0, 1),
    "matmul": ((8, CHANNELS), (CHANNELS, OUTPUTS), 1, 0),
    "matmul_3d": ((2, 8, CHANNELS), (CHANNELS, OUTPUTS), 1, 0),
    "matmul_batched": ((2, 8, CHANNELS), (2, CHANNELS, OUTPUTS), 2, 1),
    "matmul_left": ((CHANNELS, 8), (OUTPUTS, CHANNELS), 0, 1),
}


def graph_of(pattern: Pattern, seed: int = 0) -> onnx.ModelProto:
    """Returns the model of a pattern; its weights are random and of a usual size."""
    rng = np.random.default_rng(seed)
    graph = _Graph(pattern)
    shape, weight_shape, out_axis, in_axis = _SHAPES[pattern.op]
    value = _activation(graph, "x", shape)
    weight = _weight(graph, rng, weight_shape, out_axis, in_axis)
    result = _layer(graph, value, weight, rng)
    result = _after(graph, result)
    dtype = getattr(TensorProto, pattern.dtype.upper().replace("FLOAT32", "FLOAT"))
    dims: list[int | str] = list(shape)
    if pattern.batch == "open":
        dims[0] = "N"
    opsets = [helper.make_opsetid("", pattern.opset)]
    opsets += [helper.make_opsetid("com.microsoft", 1)] if pattern.domain else []
    inputs = [helper.make_tensor_value_info("x", dtype, dims)]
    if pattern.scale == "computed":
        inputs.append(helper.make_tensor_value_info("amax", dtype, []))
    rank = len(shape)
    outputs = [helper.make_tensor_value_info(result, dtype, [None] * rank)]
    proto = helper.make_graph(graph.nodes, "g", inputs, outputs, graph.constants)
    return helper.make_model(proto, opset_imports=opsets, ir_version=10 if pattern.opset >= 21 else 9)


def _array(values: NDArray[np.floating], dtype: str) -> NDArray[np.generic]:
    return np.asarray(values).astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)


def _scale(graph: _Graph, value: float, count: int | None = None, *, spread: bool = True) -> str:
    """Adds scales: one 0-d if count is None, else so many, unequal if spread."""
    kind = graph.pattern.scale
    base = {"zero": 0.0, "negative": -value, "nan": np.nan, "inf": np.inf, "denormal": 1e-40}.get(kind, value)
    if kind == "computed":
        return graph.add(
            "Mul", "amax", graph.constant("step", _array(np.asarray(1 / 127), graph.pattern.dtype))
        )
    scales = np.asarray(base) if count is None else np.full(count, base)
    if count is not None and count > 1 and spread:
        scales = scales * np.linspace(0.5, 1.0, count)
    return graph.constant("scale", _array(scales, graph.pattern.dtype))


def _zero(graph: _Graph, kind: str, shape: tuple[int, ...]) -> str:
    """Adds zero points of a kind such as "uint8 128"; none for "missing"."""
    if kind.startswith("missing"):
        return ""
    dtype, _, point = kind.partition(" ")
    points = np.full(shape, 0 if point in ("", "mixed") else int(point))
    if point == "mixed":
        points = (np.arange(points.size).reshape(shape) % 3 + (126 if dtype == "uint8" else 1)).astype(int)
    return graph.constant("zero", points, _KINDS[dtype])


def _activation(graph: _Graph, value: str, shape: tuple[int, ...]) -> str:
    pattern = graph.pattern
    if pattern.between in ("relu", "add") and pattern.activation == "none":
        return value
    if pattern.activation == "none":
        return value
    count = {"[1]": 1, "per channel": shape[1], "per channel equal": shape[1]}.get(pattern.activation)
    attributes = {"axis": 1} if count is not None and pattern.opset >= 13 else {}
    scale = _scale(graph, 0.05, count, spread=pattern.activation == "per channel")
    zero = _zero(graph, pattern.zero, () if count is None else (count,))
    typed = (
        {"output_dtype": TensorProto.INT8} if pattern.zero == "missing int8" and pattern.opset >= 21 else {}
    )
    codes = graph.q(value, scale, zero, **attributes, **typed)
    codes = _on_codes(graph, codes, shape)
    other = (
        graph.constant("scale", _array(np.asarray(0.1), pattern.dtype))
        if pattern.between == "other scale"
        else scale
    )
    result = graph.dq(codes, other, zero, **attributes)
    if pattern.between == "twice":
        result = graph.dq(graph.q(result, scale, zero, **attributes, **typed), scale, zero, **attributes)
    return _on_floats(graph, result, shape)


def _on_codes(graph: _Graph, codes: str, shape: tuple[int, ...]) -> str:
    kind = graph.pattern.between
    if kind == "int8 transpose":
        perm = [0, 1, *range(2, len(shape))[::-1]] if len(shape) > 3 else list(range(len(shape)))
        return graph.add("Transpose", codes, perm=perm)
    if kind == "int8 reshape":
        return graph.add("Reshape", codes, graph.constant("shape", np.asarray(shape, np.int64)))
    if kind == "int8 maxpool" and len(shape) > 2:
        spatial = len(shape) - 2
        return graph.add("MaxPool", codes, kernel_shape=[3] * spatial, pads=[1] * 2 * spatial)
    return codes


def _on_floats(graph: _Graph, value: str, shape: tuple[int, ...]) -> str:
    kind = graph.pattern.between
    if kind == "relu":
        return graph.add("Relu", value)
    if kind == "add":
        return graph.add("Add", value, graph.constant("one", _array(np.ones(()), graph.pattern.dtype)))
    if kind == "transpose":
        perm = (
            [0, 1, *range(2, len(shape))[::-1]]
            if len(shape) > 3
            else [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        )
        moved = graph.add("Transpose", value, perm=perm)
        if len(shape) > 3:
            return moved
        return graph.add("Transpose", moved, perm=perm)
    if kind == "reshape":
        flat = graph.add("Reshape", value, graph.constant("shape", np.asarray([-1], np.int64)))
        return graph.add("Reshape", flat, graph.constant("shape", np.asarray(shape, np.int64)))
    if kind == "flatten" and len(shape) == 2:
        return graph.add("Flatten", value)
    if kind == "unsqueeze":
        axes = graph.constant("axes", np.asarray([0], np.int64))
        return graph.add("Squeeze", graph.add("Unsqueeze", value, axes), axes)
    if kind == "maxpool" and len(shape) > 2:
        spatial = len(shape) - 2
        return graph.add("MaxPool", value, kernel_shape=[3] * spatial, pads=[1] * 2 * spatial)
    if kind == "cast":
        wide = graph.add(
            "Cast", value, to=TensorProto.FLOAT16 if graph.pattern.dtype == "float32" else TensorProto.FLOAT
        )
        return graph.add(
            "Cast", wide, to=getattr(TensorProto, graph.pattern.dtype.upper().replace("FLOAT32", "FLOAT"))
        )
    if kind == "identity":
        return graph.add("Identity", value)
    if kind == "concat":
        first = graph.add(
            "Slice", value, *(graph.constant("at", np.asarray([at], np.int64)) for at in (0, 4, 1))
        )
        second = graph.add(
            "Slice", value, *(graph.constant("at", np.asarray([at], np.int64)) for at in (4, 99, 1))
        )
        return graph.add("Concat", first, second, axis=1)
    return value


def _weight(
    graph: _Graph, rng: np.random.Generator, shape: tuple[int, ...], out_axis: int, in_axis: int
) -> str:
    pattern, kind = graph.pattern, graph.pattern.weight
    values = rng.normal(0, 0.1, shape)
    if kind == "none":
        return graph.constant("w", _array(values, pattern.dtype))
    perm = list(range(len(shape)))
    if kind.startswith("transposed") or kind.startswith("reshaped"):
        perm[0], perm[1] = 1, 0
    axis = in_axis if kind.endswith("input axis") else out_axis
    count = None if kind.endswith("0-d") else 1 if kind.endswith("[1]") else shape[axis]
    if kind == "transposed after" or kind == "reshaped after":
        axis = perm[axis] if axis < 2 else axis
    scale = _weight_scale(graph, count, kind)
    zero = _zero(graph, pattern.codes, () if count is None else (count,))
    attributes = {"axis": axis} if pattern.opset >= 13 and count is not None else {}
    if kind == "blocked":
        blocks = list(shape)
        blocks[in_axis] //= 8
        scale = graph.constant("wscale", _array(np.full(blocks, 0.01), pattern.dtype))
        zero = _zero(graph, pattern.codes, tuple(blocks))
        attributes = {"axis": in_axis, "block_size": 8}
    if kind.startswith("float"):
        constant = graph.constant("w", _array(values, pattern.dtype))
        return graph.dq(graph.q(constant, scale, zero, **attributes), scale, zero, **attributes)
    codes = graph.constant("codes", *_codes(pattern.codes, rng, _moved(shape, perm, kind)))
    if kind == "transposed before":
        return graph.dq(graph.add("Transpose", codes, perm=perm), scale, zero, **attributes)
    result = graph.dq(codes, scale, zero, **attributes)
    if kind == "transposed after":
        return graph.add("Transpose", result, perm=perm)
    if kind == "reshaped after":
        return graph.add("Reshape", result, graph.constant("shape", np.asarray(shape, np.int64)))
    return result


def _moved(shape: tuple[int, ...], perm: list[int], kind: str) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in perm) if kind.startswith(("transposed", "reshaped")) else shape


def _weight_scale(graph: _Graph, count: int | None, kind: str) -> str:
    scales = np.asarray(0.003) if count is None else np.full(count, 0.003)
    if count is not None and count > 1:
        scales = scales * np.linspace(0.5, 1.0, count)
    if graph.pattern.scale.startswith("weight"):
        flat = scales.reshape(-1)
        flat[0] = 0 if graph.pattern.scale == "weight zero" else -flat[0]
        scales = flat.reshape(scales.shape)
    return graph.constant("wscale", _array(scales, graph.pattern.dtype))


def _codes(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    dtype = kind.partition(" ")[0]
    low, high = {
        "int8": (-120, 121), "missing": (-120, 121), "uint8": (10, 250), "int16": (-30000, 30000),
        "int4": (-7, 8), "uint4": (0, 16), "float8e4m3fn": (-8, 9),
    }[dtype]  # fmt: skip
    return rng.integers(low, high, shape), _KINDS["int8" if dtype == "missing" else dtype]


def _bias(graph: _Graph, rng: np.random.Generator, count: int) -> str:
    kind, dtype = graph.pattern.bias, graph.pattern.dtype
    if kind == "float":
        return graph.constant("b", _array(rng.normal(0, 1, count), dtype))
    one = kind in ("int32 0-d", "int8", "float qdq")
    scales = np.asarray(1e-3) if one else np.linspace(0.5e-3, 1e-3, count)
    scale = graph.constant("bscale", _array(scales, dtype))
    attributes = {} if one or graph.pattern.opset < 13 else {"axis": 0}
    if kind.startswith("int32"):
        codes = graph.constant("b", rng.integers(-1000, 1000, count), TensorProto.INT32)
        return graph.dq(codes, scale, "", **attributes)
    zero = graph.constant("zero", np.zeros((), int), TensorProto.INT8)
    if kind == "int8":
        return graph.dq(graph.constant("b", rng.integers(-100, 100, count), TensorProto.INT8), scale, zero)
    values = graph.constant("b", _array(rng.normal(0, 0.05, count), dtype))
    return graph.dq(graph.q(values, scale, zero), scale, zero)


def _layer(graph: _Graph, value: str, weight: str, rng: np.random.Generator) -> str:
    op = graph.pattern.op
    _, shape, out_axis, _ = _SHAPES[op]
    count = 32 if op == "conv_transpose_grouped" else shape[out_axis]
    has_bias = graph.pattern.bias != "none"
    bias = [_bias(graph, rng, count)] if has_bias and not op.startswith("matmul") else []
    if op.startswith("conv_transpose"):
        groups = 4 if op.endswith("grouped") else 1
        result = graph.add("ConvTranspose", value, weight, *bias, name="layer", group=groups)
    elif op.startswith(("conv", "depthwise", "grouped")):
        groups = {"depthwise": OUTPUTS, "grouped": 4}.get(op, 1)
        result = graph.add("Conv", value, weight, *bias, name="layer", group=groups)
    elif op.startswith("gemm"):
        result = graph.add("Gemm", value, weight, *bias, name="layer", transB=int(op == "gemm_trans_b"))
    elif op == "matmul_left":
        result = graph.add("MatMul", weight, value, name="layer")
    else:
        result = graph.add("MatMul", value, weight, name="layer")
    if has_bias and op.startswith("matmul") and op != "matmul_left":
        result = graph.add("Add", result, _bias(graph, rng, count), name="bias")
    return result


def _after(graph: _Graph, value: str) -> str:
    kind = graph.pattern.after
    if kind.startswith("relu"):
        value = graph.add("Relu", value)
    if kind == "add qdq":
        value = graph.add(
            "Add", value, graph.constant("half", _array(np.full((1,), 0.5), graph.pattern.dtype))
        )
    if kind.endswith("qdq"):
        scale = graph.constant("scale", _array(np.asarray(0.2), graph.pattern.dtype))
        zero = _zero(graph, "uint8 128" if kind.startswith("uint8") else "int8", ())
        value = graph.dq(graph.q(value, scale, zero), scale, zero)
    return value
