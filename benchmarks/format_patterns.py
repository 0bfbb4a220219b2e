"""Graphs of one layer in FP8, NVFP4, INT4 and their mixtures, written in all the ways that tools write them.

A pattern says how; every field has the way that TensorRT wants first. `graph_of` makes the model: the node
that counts is called "layer".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

K, N = 64, 64
FIELDS: dict[str, tuple[Any, ...]] = {
    "op": (
        "matmul", "matmul_3d", "matmul_4d", "matmul_transposed", "gemm", "gemm_trans_b", "conv", "conv1x1",
        "depthwise", "conv_transpose",
    ),
    "activation": ("fp8", "int8", "none", "nvfp4", "fp4", "e5m2", "mxfp8", "per token"),
    "weight": ("fp8", "int8", "int4", "uint4", "nvfp4", "fp4", "w4a8", "e5m2", "float", "mxfp8"),
    "scale": ("0-d", "[1]", "per channel"),
    "granularity": ("output axis", "0-d", "[1]", "input axis"),
    "block": (32, 16, 64, 8, 128, 256),
    "block_axis": ("K", "N"),
    "zero": ("none", "0", "3"),
    "source": ("codes", "float"),
    "cast": ("no", "yes"),
    "dtype": ("float16", "float32", "bfloat16"),
    "between": ("nothing", "relu", "transpose", "reshape"),
    "length": (64, 128, 40),
    "batch": ("fixed", "open"),
    "target": ("8.9", "12.0", "8.6"),
}  # fmt: skip
_DTYPES = {
    "float16": (TensorProto.FLOAT16, np.float16),
    "float32": (TensorProto.FLOAT, np.float32),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
_CODES: dict[str, tuple[int, Any]] = {
    "fp8": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "e5m2": (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "int8": (TensorProto.INT8, np.int8),
    "int4": (TensorProto.INT4, ml_dtypes.int4),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4),
    "fp4": (TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """How one layer and its Q/DQ are written."""

    op: str = "matmul"
    activation: str = "fp8"
    weight: str = "fp8"
    scale: str = "0-d"
    granularity: str = "output axis"
    block: int = 32
    block_axis: str = "K"
    zero: str = "none"
    source: str = "codes"
    cast: str = "no"
    dtype: str = "float16"
    between: str = "nothing"
    length: int = 64
    batch: str = "fixed"
    target: str = "8.9"

    def __str__(self) -> str:
        """Names what is not as TensorRT wants it, and always the formats."""
        told = (
            f"{name}={getattr(self, name)}" for name, ways in FIELDS.items() if getattr(self, name) != ways[0]
        )
        return ", ".join([f"{self.activation} x {self.weight}", *told])


class _Graph:
    """A graph in the making: nodes, constants and the type that it computes in."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(5)

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Returns the first output of a new node."""
        number = len(self.nodes)
        made = [f"v{number}_{index}" for index in range(outputs)]
        domain = "trt" if op_type.startswith("TRT_") else ""
        named = {"name": f"{op_type}_{number}", **attributes}
        self.nodes.append(helper.make_node(op_type, inputs, made, domain=domain, **named))
        return made[0]

    def put(self, array: NDArray[Any], dtype: int) -> str:
        """Returns the name of a new constant, packed where it has 4 bits."""
        name = f"c{len(self.constants)}"
        raw = np.ascontiguousarray(array)
        content = raw.tobytes()
        if dtype in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
            flat = raw.view(np.uint8).reshape(-1) & 15
            content = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
        self.constants.append(helper.make_tensor(name, dtype, array.shape, content, raw=True))
        return name

    def floats(self, values: Any, *, own: bool = True) -> str:
        """Returns a float constant in the type of the network, or in float32."""
        dtype, kind = _DTYPES[self.pattern.dtype if own else "float32"]
        return self.put(np.asarray(values).astype(kind), dtype)

    def scales(self, values: Any) -> str:
        """Returns scales in the type of the network, or in float32 if they are cast behind."""
        return self.floats(values, own=self.pattern.cast == "no")

    def cast(self, value: str) -> str:
        """Returns the value in the type of the network."""
        if self.pattern.cast == "no":
            return value
        return self.add("Cast", value, to=_DTYPES[self.pattern.dtype][0])

    def zero(self, form: str, shape: tuple[int, ...]) -> str:
        """Returns zero points of 0."""
        dtype, kind = _CODES[form]
        return self.put(np.zeros(shape, kind), dtype)

    def random(self, *shape: int) -> NDArray[np.float32]:
        """Returns weights."""
        return (self.rng.standard_normal(shape) * 0.1).astype(np.float32)


def graph_of(pattern: Pattern) -> onnx.ModelProto:
    """Returns the model of a pattern."""
    graph = _Graph(pattern)
    if "reshape" in pattern.between:  # to the shape that it has
        pattern = replace(pattern, batch="fixed")
    shape, weight_shape, axes = _shapes(pattern)
    value = _between(graph, _activation(graph, "x", shape), shape)
    weight = _weight(graph, weight_shape, axes)
    out = _layer(graph, value, weight)
    dtype = _DTYPES[pattern.dtype][0]
    dims: list[Any] = [*shape]
    if pattern.batch == "open":
        dims[0] = "N"
    outputs = [helper.make_tensor_value_info(out, dtype, [None] * len(shape))]
    inputs = [helper.make_tensor_value_info("x", dtype, dims)]
    opsets = [helper.make_opsetid("", 24 if "mxfp8" in (pattern.activation, pattern.weight) else 23)]
    if any(node.domain for node in graph.nodes):
        opsets.append(helper.make_opsetid("trt", 1))
    made = helper.make_graph(graph.nodes, "g", inputs, outputs, graph.constants)
    return helper.make_model(made, opset_imports=opsets, ir_version=11)


def _shapes(pattern: Pattern) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]:
    """Returns the shapes of input and weight, and the weight's axes of outputs and of sums."""
    size, op = pattern.length, pattern.op
    if op.startswith(("conv", "depth")):
        kernel = (1, 1) if op == "conv1x1" else (3, 3)
        shapes = {"depthwise": (size, 1, *kernel), "conv_transpose": (size, N, *kernel)}
        axes = (1, 0) if op == "conv_transpose" else (0, 1)
        return (2, size, 8, 8), shapes.get(op, (N, size, *kernel)), axes
    leading = {"matmul_3d": (2, 8), "matmul_4d": (2, 2, 8)}.get(op, (8,))
    turned = op in ("gemm_trans_b", "matmul_transposed")
    return (*leading, size), (N, size) if turned else (size, N), (0, 1) if turned else (1, 0)


def _activation(graph: _Graph, value: str, shape: tuple[int, ...]) -> str:
    form = graph.pattern.activation
    if form == "none":
        return value
    if form in ("nvfp4", "mxfp8"):
        return _dynamic(graph, value, form)
    if form == "fp4":  # by ONNX's own operator
        blocks = graph.scales(np.full((*shape[:-1], shape[-1] // 16), 0.1))
        codes = graph.add(
            "QuantizeLinear", value, blocks, axis=-1, block_size=16, output_dtype=_CODES["fp4"][0]
        )
        return graph.cast(graph.add("DequantizeLinear", codes, blocks, axis=-1, block_size=16))
    if form == "per token":
        largest = graph.add(
            "ReduceMax", graph.add("Abs", value), graph.put(np.array([-1]), TensorProto.INT64)
        )
        return _pair(graph, graph.add("Div", value, largest), "fp8", ())
    counts = {"0-d": (), "[1]": (1,), "per channel": (shape[_channel_axis(graph.pattern, shape)],)}
    return _pair(graph, value, form, counts[graph.pattern.scale])


def _pair(graph: _Graph, value: str, form: str, count: tuple[int, ...]) -> str:
    """Returns a value behind a pair of its own."""
    scale, zero = graph.scales(np.full(count, 0.02)), graph.zero(form, count)
    axis = {"axis": 1} if count and count != (1,) else {}
    if graph.pattern.cast == "yes":
        value = graph.add("Cast", value, to=TensorProto.FLOAT)
    codes = graph.add("QuantizeLinear", value, scale, zero, **axis)
    return graph.cast(graph.add("DequantizeLinear", codes, scale, zero, **axis))


def _channel_axis(pattern: Pattern, shape: tuple[int, ...]) -> int:
    return 1


def _dynamic(graph: _Graph, value: str, form: str) -> str:
    """Returns a value behind TensorRT's own dynamic quantization in blocks."""
    if form == "mxfp8":
        codes = graph.add(
            "TRT_MXFP8DynamicQuantize",
            value,
            outputs=2,
            axis=-1,
            block_size=32,
            output_dtype=TensorProto.FLOAT8E4M3FN,
        )
        return _widened(graph, codes, -1)
    whole = graph.scales(0.01)
    options = {"axis": -1, "block_size": 16, "scale_type": _CODES["fp8"][0]}
    codes = graph.add("TRT_FP4DynamicQuantize", value, whole, outputs=2, **options)
    blocks = graph.add("DequantizeLinear", f"{codes[:-1]}1", whole)
    return graph.cast(graph.add("DequantizeLinear", codes, blocks, axis=-1, block_size=16))


def _widened(graph: _Graph, codes: str, axis: int) -> str:
    """Returns codes of MXFP8 dequantized, by the scales that were made with them."""
    made = graph.add("TRT_MXFP8DequantizeLinear", codes, f"{codes[:-1]}1", axis=axis, block_size=32)
    return _as_network(graph, made)


def _as_network(graph: _Graph, value: str) -> str:
    """Returns a float32 value in the type of the network."""
    dtype = _DTYPES[graph.pattern.dtype][0]
    return value if dtype == TensorProto.FLOAT else graph.add("Cast", value, to=dtype)


def _between(graph: _Graph, value: str, shape: tuple[int, ...]) -> str:
    way, rank = graph.pattern.between, len(shape)
    if way == "relu":
        return graph.add("Relu", value)
    if way == "transpose":
        order = [*range(rank - 2), rank - 1, rank - 2]
        return graph.add("Transpose", graph.add("Transpose", value, perm=order), perm=order)
    if way == "reshape":
        return graph.add("Reshape", value, graph.put(np.array(shape), TensorProto.INT64))
    return value


def _weight(graph: _Graph, shape: tuple[int, ...], axes: tuple[int, int]) -> str:
    pattern, (out_axis, sum_axis) = graph.pattern, axes
    form = pattern.weight
    if form == "float":
        return graph.floats(graph.random(*shape))
    if form in ("int4", "uint4", "nvfp4", "fp4", "w4a8", "mxfp8"):
        return _blocks(graph, shape, axes)
    axis = sum_axis if pattern.granularity == "input axis" else out_axis
    count = {"0-d": (), "[1]": (1,)}.get(pattern.granularity, (shape[axis],))
    options = {"axis": axis} if len(count) and count != (1,) else {}
    scale, zero = graph.scales(np.full(count, 0.002)), graph.zero(form, count)
    if pattern.source == "float":
        codes = graph.add("QuantizeLinear", graph.scales(graph.random(*shape)), scale, zero, **options)
    else:
        codes = graph.put((graph.random(*shape) * 100).astype(_CODES[form][1]), _CODES[form][0])
    return graph.cast(graph.add("DequantizeLinear", codes, scale, zero, **options))


def _blocks(graph: _Graph, shape: tuple[int, ...], axes: tuple[int, int]) -> str:
    pattern, form = graph.pattern, graph.pattern.weight
    axis = axes[0] if pattern.block_axis == "N" else axes[1]
    block = {"nvfp4": 16, "mxfp8": 32}.get(form, pattern.block)
    counts = tuple(-(-size // block) if index == axis else size for index, size in enumerate(shape))
    kind = {"w4a8": "int4", "nvfp4": "fp4", "mxfp8": "fp8"}.get(form, form)
    low = 0 if kind == "uint4" else -4
    codes = graph.put(graph.rng.integers(low, 5, shape).astype(_CODES[kind][1]), _CODES[kind][0])
    if form == "nvfp4":
        inner = graph.put(np.full(counts, 5.0).astype(ml_dtypes.float8_e4m3fn), TensorProto.FLOAT8E4M3FN)
        scales = graph.add("DequantizeLinear", inner, graph.scales(0.01))
    elif form == "mxfp8":
        inner = graph.put(np.full(counts, 1.0).astype(ml_dtypes.float8_e8m0fnu), TensorProto.FLOAT8E8M0)
        return _as_network(
            graph, graph.add("TRT_MXFP8DequantizeLinear", codes, inner, axis=axis, block_size=32)
        )
    else:
        scales = graph.scales(np.full(counts, 0.05))
    points = []
    if pattern.zero != "none" and kind in ("int4", "uint4"):
        points = [graph.put(np.full(counts, int(pattern.zero)).astype(_CODES[kind][1]), _CODES[kind][0])]
    found = graph.add("DequantizeLinear", codes, scales, *points, axis=axis, block_size=block)
    return graph.cast(_second(graph, found, shape, axes[0]) if form == "w4a8" else found)


def _second(graph: _Graph, value: str, shape: tuple[int, ...], axis: int) -> str:
    """Returns a weight of 4 bits behind a second pair, in the format of the activation."""
    form = "int8" if graph.pattern.activation == "int8" else "fp8"
    scale, zero = graph.scales(np.full(shape[axis], 0.002)), graph.zero(form, (shape[axis],))
    return graph.add(
        "DequantizeLinear", graph.add("QuantizeLinear", value, scale, zero, axis=axis), scale, zero, axis=axis
    )


def _layer(graph: _Graph, value: str, weight: str) -> str:
    op, size = graph.pattern.op, graph.pattern.length
    if op == "matmul_transposed":
        return graph.add("MatMul", value, graph.add("Transpose", weight, perm=[1, 0]), name="layer")
    if op.startswith("gemm"):
        return graph.add("Gemm", value, weight, name="layer", transB=int(op == "gemm_trans_b"))
    if op == "conv_transpose":
        return graph.add("ConvTranspose", value, weight, name="layer")
    if op.startswith(("conv", "depth")):
        pads = [0] * 4 if op == "conv1x1" else [1] * 4
        return graph.add(
            "Conv", value, weight, name="layer", pads=pads, group=size if op == "depthwise" else 1
        )
    return graph.add("MatMul", value, weight, name="layer")
