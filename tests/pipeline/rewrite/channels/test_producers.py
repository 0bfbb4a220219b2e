"""Tests of the layers that divide the channels behind them, through what stands between."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folded import op_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.channels.producers import find_ends, find_producer, is_constant_clip
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.qdq import quantize

_MOBILE = """
net (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
  [expand] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
  [act1] r = Clip (a, zero, six)
  [deep] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (r, w2, b2)
  [act2] s = Clip (b, zero, six)
  [project] y = Conv <kernel_shape = [1, 1]> (s, w3)
}"""
Outputs = Callable[..., list[NDArray[np.float32]]]


def _random(*shape: int, times: float = 1.0) -> NDArray[np.float32]:
    return (times * np.random.default_rng(sum(shape)).standard_normal(shape)).astype(np.float32)


@pytest.fixture
def mobile(graph_of: Callable[..., Graph]) -> Graph:
    """An inverted residual as in MobileNetV2, of which many values reach the bound of 0.5."""
    weights = {
        "w1": _random(8, 4, 1, 1),
        "b1": _random(8),
        "b2": _random(8),
        "w2": _random(8, 1, 3, 3),
        "w3": _random(6, 8, 1, 1),
    }
    return graph_of(_MOBILE, **weights, zero=np.float32(0), six=np.float32(0.5))


def _ranges(tensors: tuple[str, ...], channels: Mapping[str, Channels]) -> Ranges:
    return Ranges(dict.fromkeys(tensors, Range(6.0, -6.0, 6.0)), "made", "0", "none", 1, channels=channels)


def _rescaled(model: ir.Model, channels: Mapping[str, Channels]) -> ir.Model:
    placement = place(model, force=["."])
    made = rescale(model, placement, _ranges(placement.activations, channels)).model
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    return made


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scales=st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    tensors=st.sets(st.sampled_from("rs"), min_size=1),
)
def test_relu6_with_a_bound_for_each_channel_changes_nothing_in_floats(
    mobile: Graph, outputs_of: Outputs, scales: list[float], tensors: set[str]
) -> None:
    made = _rescaled(
        mobile.model, {name: Channels(scale=tuple(scales), amax=1.0) for name in sorted(tensors)}
    )
    assert "Mul" not in op_types(made)
    assert op_types(made).count("Clip") == 2 - len(tensors)
    (ours,), (theirs,) = outputs_of(made), outputs_of(mobile.model)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_bounds_are_divided_as_the_weights_are(
    graph_of: Callable[..., Graph], outputs_of: Outputs
) -> None:
    """By hand: two channels that make 8 and 3 of 1, bounded by 6, divided by 1 and 1/2."""
    text = """net (float[1, 1, 1, 1] x) => (float[1, 1, 1, 1] y) {
      [one] a = Conv (x, w1)  [act] r = Clip (a, zero, six)  [two] y = Conv (r, w2)
    }"""
    w1, w2 = (
        np.array([8, 3], np.float32).reshape(2, 1, 1, 1),
        np.array([10, 1], np.float32).reshape(1, 2, 1, 1),
    )
    graph = graph_of(text, w1=w1, w2=w2, zero=np.float32(0), six=np.float32(6))
    made = _rescaled(graph.model, {"r": Channels(scale=(1.0, 0.5), amax=6.0)})
    assert op_types(made) == ["Conv", "Relu", "Min", "Conv"]
    arrays = {
        name: value.const_value.numpy().ravel().tolist()
        for name, value in made.graph.initializers.items()
        if value.const_value is not None
    }
    assert arrays == {"w1_divided": [8.0, 6.0], "act_Min": [6.0, 12.0], "w2_rescaled": [10.0, 0.5]}
    assert outputs_of(made, feed={"x": np.ones((1, 1, 1, 1), np.float32)})[0].item() == 10 * 6 + 3
    assert outputs_of(made, feed={"x": np.full((1, 1, 1, 1), 9, np.float32)})[0].item() == 10 * 6 + 6


@pytest.mark.parametrize(
    ("between", "steps"),
    [
        ("r = Relu (a)", ["Relu"]),
        ("r = PRelu (a, slope)", ["PRelu"]),
        ("r = Clip (a, low, six)", ["Max", "Min"]),
        ("r = Clip (a, zero)", ["Relu"]),
        ('r = Clip (a, "", six)', ["Min"]),
        ('q = Relu (a) r = Clip (q, "", six)', ["Relu", "Min"]),
        ("q = Clip (a, zero, six) r = LeakyRelu (q)", ["Relu", "Min", "LeakyRelu"]),
        ("r = Clip (a, zero, largest)", ["Relu"]),
        ("r = Clip (a)", []),
    ],
)
def test_what_stands_between_is_followed(
    model_of: Callable[..., ir.Model], outputs_of: Outputs, between: str, steps: list[str]
) -> None:
    text = f"""net (float[N, 4] x) => (float[N, 3] y) {{
      [one] a = Gemm (x, w1)  {between}  [two] y = Gemm (r, w2)
    }}"""
    ends = {"zero": 0.0, "low": -0.3, "six": 0.5, "largest": float(np.finfo(np.float32).max)}
    constants = {name: np.array(end, np.float32) for name, end in ends.items()} | {"slope": _random(8)}
    model = model_of(text, w1=_random(4, 8), w2=_random(8, 3), **constants)
    scale = tuple(np.geomspace(0.05, 1, 8).tolist())
    made = _rescaled(model, {"r": Channels(scale=scale, amax=1.0)})
    assert op_types(made) == ["Gemm", *steps, "Gemm"]
    np.testing.assert_allclose(outputs_of(made)[0], outputs_of(model)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "between",
    [
        "r = HardSwish (a)",  # bends at -3 and 3, whatever the scale
        "r = Sigmoid (a)",
        "r = Clip (a, zero, top)",  # nobody knows where it ends
        "q = Clip (a, zero, six) t = Tanh (q) r = Relu (q)",  # the clipped values are read elsewhere
    ],
)
def test_what_is_not_homogeneous_or_known_gets_a_mul(
    model_of: Callable[..., ir.Model], outputs_of: Outputs, between: str
) -> None:
    text = f"""net (float[N, 4] x, float top) => (float[N, 3] y, float[N, 8] t) {{
      [one] a = Gemm (x, w1)  {between}  [two] y = Gemm (r, w2)  {"t = Tanh (r)" * ("Tanh" not in between)}
    }}"""
    constants = {"zero": np.float32(0), "six": np.float32(0.5)}
    model = model_of(text, w1=_random(4, 8), w2=_random(8, 3), **constants)
    made = _rescaled(model, {"r": Channels(scale=tuple(np.geomspace(0.05, 1, 8).tolist()), amax=1.0)})
    assert op_types(made).count("Mul") == 1
    for ours, theirs in zip(outputs_of(made), outputs_of(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op_type", ["HardSwish", "Sigmoid", "Tanh"])
def test_no_layer_takes_a_division_through_what_bends_at_fixed_values(
    model_of: Callable[..., ir.Model], op_type: str
) -> None:
    text = f"""net (float[N, 4] x) => (float[N, 3] y) {{
      [one] a = Gemm (x, w1)  r = {op_type} (a)  [two] y = Gemm (r, w2)
    }}"""
    model = model_of(text, w1=_random(4, 8), w2=_random(8, 3))
    *_, last = model.graph
    source = last.inputs[0]
    assert source is not None
    assert find_producer(source, [last], {layer.name for layer in place(model, force=["."]).layers}) is None


def test_the_ends_of_an_old_clip_are_attributes() -> None:
    value = ir.Value(name="x")
    for attributes, ends in (
        ({"min": 0.0, "max": 6.0}, (0.0, 6.0)),
        ({"max": 6.0}, (-np.inf, 6.0)),
        ({}, (-np.inf, np.inf)),
    ):
        node = ir.node("Clip", [value], attributes)
        assert is_constant_clip(node)
        assert find_ends(node) == ends


def test_tensorrt_keeps_a_block_with_bounds_by_channel_in_int8(
    graph_of: Callable[..., Graph], build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    weights = {"w1": _random(32, 16, 1, 1), "w2": _random(32, 1, 3, 3)} | dict.fromkeys(
        ("b1", "b2"), _random(32)
    )
    text = (
        _MOBILE.replace("[N, 4,", "[2, 16,").replace("[N, 6,", "[2, 16,").replace("group = 8", "group = 32")
    )
    constants = {"zero": np.float32(0), "six": np.float32(6)}
    graph = graph_of(text, **weights, w3=_random(16, 32, 1, 1), **constants)
    placement = place(graph.model)
    scale = tuple(np.geomspace(0.05, 1, 32).tolist())
    kernels = []
    for channels in ({}, {name: Channels(scale=scale, amax=6.0) for name in "rs"}):
        built = build_rtx(quantize(graph.model, placement, _ranges(placement.activations, channels)))
        for layer in ("expand", "deep", "project"):
            (types,) = (types for name, types in built.items() if name.startswith(f"{layer}_"))
            assert "Int8" in types
        kernels.append(len(built))
    assert kernels[0] == kernels[1]  # no kernel of its own for the bounds
