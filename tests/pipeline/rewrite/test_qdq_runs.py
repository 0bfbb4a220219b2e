"""Tests of what quantized layers compute, and of how TensorRT-RTX runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checked_qdq import quantized, ranges_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import random_array
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.pipeline.formats import FP8
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import PerChannel
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, QUANTIZABLE, Placement, place
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.qparams import choose_activation_qparams, choose_weight_qparams

KINDS = {
    "conv": ("Conv<pads = [1, 1, 1, 1]>(x, w)", (2, 3, 5, 5), (4, 3, 3, 3)),
    "depthwise conv": ("Conv<group = 3>(x, w)", (2, 3, 5, 5), (6, 1, 3, 3)),
    "transposed conv": ("ConvTranspose(x, w)", (2, 3, 5, 5), (3, 4, 3, 3)),
    "gemm": ("Gemm(x, w)", (5, 8), (8, 4)),
    "gemm with transB": ("Gemm<transB = 1>(x, w)", (5, 8), (4, 8)),
    "matmul right": ("MatMul(x, w)", (3, 5, 8), (8, 4)),
    "matmul left": ("MatMul(w, x)", (3, 8, 5), (4, 8)),
    "matmul of many": ("MatMul(x, w)", (3, 5, 8), (3, 8, 4)),
}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    x_size=st.integers(-3, 3),
    w_size=st.integers(-3, 3),
    part=st.floats(0.2, 3),
    scale_dtype=st.sampled_from(["float32", "float16"]),
)
def test_a_quantized_layer_is_as_near_as_its_scales_promise(
    kind: str, seed: int, x_size: int, w_size: int, part: float, scale_dtype: str
) -> None:
    """The bound: sum |w| * (half a step of x + what is clipped) + sum |x| * half a step of w, by channel."""
    call, x_shape, w_shape = KINDS[kind]
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal(x_shape) * 10.0**x_size).astype(np.float32)
    w = (generator.standard_normal(w_shape) * 10.0**w_size).astype(np.float32)
    model = _layer(call, x_shape, w)
    amax = float(np.abs(x).max()) * part
    placement = place(model, op_types=QUANTIZABLE)
    result = quantize(model, placement, ranges_to({"x": amax}), scale_dtype=scale_dtype)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)

    scale = float(choose_activation_qparams(amax, scale_dtype).scale)
    of_x = scale / 2 + max(0.0, float(np.abs(x).max()) - 127 * scale)
    held = placement.layers[0].held_weight
    assert held is not None
    qparams = choose_weight_qparams(w, held.encoding, scale_dtype)
    by_channel = held.encoding.granularity.spread(qparams.scale.astype(np.float64), w.shape)
    steps = np.broadcast_to(by_channel, w.shape)
    weights = _layer(call, x_shape, (np.abs(w) + steps / 2).astype(np.float32))
    halves = _layer(call, x_shape, (steps / 2).astype(np.float32))
    bound = _run(weights, np.full(x_shape, of_x, np.float32)) + _run(halves, np.abs(x))
    magnitude = _run(weights, np.abs(x))
    error = np.abs(_run(result, x) - _run(model, x))
    assert (error <= bound * (1 + 1e-3) + magnitude * 1e-5).all()


def _layer(call: str, x_shape: tuple[int, ...], w: NDArray[np.float32]) -> ir.Model:
    sizes, symbols = ",".join(map(str, x_shape)), ",".join("ABCD"[: len(x_shape)])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[{sizes}] x) => (float[{symbols}] y) {{ [layer] y = {call} }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def _run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[Any]:
    return run(open_session(make_quantize_exact(model) or model, optimize=False), ["y"], {"x": x})[0].astype(
        np.float64
    )


RESIDUAL = """g (float[N,8,16,16] x) => (float[N,5] y, float[N,8,16,16] skip) {
    [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    skip = Relu(a)
    [depthwise] d = Conv<pads = [1, 1, 1, 1], group = 8>(skip, dw)
    c = Clip(d, zero, six)
    [project] p = Conv(c, pw)
    s = Add(p, skip)
    r = Relu(s)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    [fc] y = Gemm<transB = 1>(f, v, k)
}"""


RESIDUAL_WEIGHTS: dict[str, NDArray[Any]] = {
    "w": random_array(8, 8, 3, 3),
    "b": random_array(8),
    "dw": random_array(8, 1, 3, 3),
    "pw": random_array(8, 8, 1, 1),
    "v": random_array(5, 8),
    "k": random_array(5),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}


TOKENS = """g (float[N,6,16] x) => (float[N,6,16] y) {
    [q] q = MatMul(x, wq)
    [k] k0 = MatMul(x, wk)
    k = Transpose<perm = [0, 2, 1]>(k0)
    [scores] s = MatMul(q, k)
    p = Softmax<axis = -1>(s)
    [values] v = MatMul(p, x)
    n = LayerNormalization(v, gamma)
    [up] u = MatMul(n, wu)
    g = Relu(u)
    [down] y = MatMul(g, wd)
}"""


TOKENS_WEIGHTS: dict[str, NDArray[Any]] = {
    "wq": random_array(16, 16) / 4,
    "wk": random_array(16, 16) / 4,
    "gamma": np.ones(16, np.float32),
    "wu": random_array(16, 32),
    "wd": random_array(32, 16),
}


def _calibrated(graph: Graph, scale_dtype: str, outputs: Callable[..., list[NDArray[Any]]]) -> ir.Model:
    """Returns the quantized model, with the ranges that its activations really have."""
    placement = place(graph.model)
    tapped = graph.model.clone()
    values = [*tapped.graph.inputs, *(value for node in tapped.graph for value in node.outputs)]
    by_name = {value.name: value for value in values}
    tapped.graph.outputs[:] = [by_name[name] for name in placement.activations]
    arrays = zip(placement.activations, outputs(tapped), strict=True)
    amax = {name: float(np.abs(array).max()) for name, array in arrays}
    return quantize(graph.model, placement, ranges_to(amax), scale_dtype=scale_dtype)


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize(
    ("text", "weights", "int8"),
    [
        (RESIDUAL, RESIDUAL_WEIGHTS, ["stem", "depthwise", "project", "fc"]),
        (TOKENS, TOKENS_WEIGHTS, ["q", "up", "down"]),
    ],
    ids=["residual", "tokens"],
)
def test_a_quantized_model_is_near_the_float_one_and_tensorrt_runs_its_layers_in_int8(
    graph_of: Callable[..., Graph],
    outputs_of: Callable[..., list[NDArray[Any]]],
    build_rtx: Callable[..., dict[str, set[str]]],
    text: str,
    weights: dict[str, NDArray[Any]],
    int8: list[str],
    rest: str,
) -> None:
    graph = graph_of(text, **weights)
    result = _calibrated(graph, rest, outputs_of)
    if rest == "float16":
        result, kept = to_fp16(result)
        assert kept == ()
    for want, have in zip(outputs_of(graph.model), outputs_of(result), strict=True):
        assert have.dtype == want.dtype
        assert np.linalg.norm(have - want) < 0.05 * np.linalg.norm(want)
    kernels = build_rtx(result)
    for layer in int8:
        found = [types for name, types in kernels.items() if layer in name.replace("+", "_").split("_")]
        assert any("Int8" in types for types in found), (layer, kernels)
    assert not any("scores" in name and "Int8" in types for name, types in kernels.items())


@pytest.mark.parametrize("call", ["Gemm(x, w)", "Gemm<transB = 1>(x, w)", "MatMul(x, w)", "MatMul(w, x)"])
def test_tensorrt_runs_a_product_in_int8_along_its_axis(
    graph_of: Callable[..., Graph], build_rtx: Callable[..., dict[str, set[str]]], call: str
) -> None:
    graph = graph_of(
        f"g (float[32,32] x) => (float[32,32] y) {{ [layer] y = {call} }}", w=random_array(32, 32)
    )
    kernels = build_rtx(quantized(graph.model))
    assert any("layer" in name and "Int8" in types for name, types in kernels.items()), kernels


def test_tensorrt_takes_transposed_convolutions_and_dead_channels(
    graph_of: Callable[..., Graph], build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    weight = random_array(8, 8, 2, 2)
    weight[:, 3] = 0
    text = "g (float[N,8,8,8] x) => (float[N,8,16,16] y) { [up] y = ConvTranspose<strides = [2, 2]>(x, w) }"
    graph = graph_of(text, w=weight)
    assert build_rtx(quantized(graph.model, op_types=(*DEFAULT_OP_TYPES, "ConvTranspose")))
    assert build_rtx(to_fp16(quantized(graph.model, "float16", op_types=QUANTIZABLE))[0])


def test_a_placement_in_fp8_is_written_as_it_says(graph_of: Callable[..., Graph]) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    text = "g (float[4,32] x) => (float[4,16] y) { [layer] y = MatMul (x, w) }"
    model = graph_of(text, min_opset=19, w=weight).model
    (layer,) = place(model, force=["."]).quantized
    scheme = LayerScheme("weighted-input", ((0, Encoding(FP8)),), Encoding(FP8, PerChannel(1)))
    placement = Placement((replace(layer, scheme=scheme),))
    result = quantize(model, placement, ranges_to({"x": 4.0}))
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    kinds = {node.inputs[0].dtype for node in result.graph if node.op_type == "DequantizeLinear"}  # type: ignore[union-attr]
    assert kinds == {ir.DataType.FLOAT8E4M3FN}
    x = np.random.default_rng(1).uniform(-4, 4, (4, 32)).astype(np.float32)
    wanted, found = _run(model, x), _run(result, x)
    assert np.linalg.norm(found - wanted) < 0.06 * np.linalg.norm(wanted)
