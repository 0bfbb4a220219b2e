"""Tests that rescaled graphs compute the same, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import random_array
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.pipeline.formats import FP8
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.rewrite.channels.rescale import Rescaled, rescale

_NET = """
net (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y, float[N, 5] z) {
  [one] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
  r = Relu (a)
  [deep] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (r, w2)
  s = Sigmoid (b)
  [wide] y = Conv <kernel_shape = [1, 1], group = 2> (s, w3)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (s)
  [flat] g = Gemm <transB = 1> (m, w4, b4)
  l = LeakyRelu <alpha = 0.1> (g)
  [last] z = Gemm (l, w5)
}"""
SIZES = {"x": 4, "r": 8, "s": 8, "m": 8, "l": 8}
"""Of the tensors whose channels can be rescaled: how many."""


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    shapes = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (6, 4, 1, 1)}
    shapes |= {"w4": (8, 8), "b4": (8,), "w5": (8, 5)}
    return graph_of(_NET, opset=13, **{name: random_array(*shape) for name, shape in shapes.items()})


def ranges_of(placement: Placement, channels: Mapping[str, Channels], **arguments: object) -> Ranges:
    tensors = {name: Range(4.0, -4.0, 4.0) for name in placement.activations}
    return Ranges(tensors, "made", "0", "none", 1, channels=channels, **arguments)  # type: ignore[arg-type]


def _rescaled(graph: Graph, channels: Mapping[str, Channels], **arguments: object) -> Rescaled:
    placement = place(graph.model, force=["."])
    made = rescale(graph.model, placement, ranges_of(placement, channels, **arguments))
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    return made


def _channels(size: int, seed: int, *, shifts: bool = False) -> Channels:
    rng = np.random.default_rng(seed)
    shift = tuple(rng.uniform(-3, 3, size).tolist()) if shifts else ()
    return Channels(scale=tuple(rng.uniform(0.05, 1, size).tolist()), shift=shift, amax=2.5)


def _same(outputs_of: Callable[..., list[NDArray[np.float32]]], ours: ir.Model, theirs: ir.Model) -> None:
    for one, other in zip(outputs_of(ours), outputs_of(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.sets(st.sampled_from(sorted(SIZES))), seed=st.integers(0, 99))
def test_scales_change_nothing_in_floats(
    graph: Graph, outputs_of: Callable[..., list[NDArray[np.float32]]], tensors: set[str], seed: int
) -> None:
    channels = {name: _channels(SIZES[name], seed) for name in sorted(tensors)}
    _same(outputs_of, _rescaled(graph, channels).model, graph.model)


@pytest.mark.parametrize("tensor", ["x", "s", "m", "l"])
def test_shifts_change_nothing_in_floats(
    graph: Graph, outputs_of: Callable[..., list[NDArray[np.float32]]], tensor: str
) -> None:
    made = _rescaled(graph, {tensor: _channels(SIZES[tensor], 1, shifts=True)})
    assert [node.op_type for node in made.model.graph].count("Sub") == 1
    _same(outputs_of, made.model, graph.model)


def test_a_shift_of_what_is_padded_pads_before(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    attributes = "kernel_shape = [3, 3], pads = [1, 0, 2, 1]"
    text = f"""net (float[N, 4, 6, 6] x) => (float[N, 4, 7, 5] y, float[N, 4, 4, 3] z) {{
      [one] y = Conv <{attributes}> (x, w)
      [two] z = Conv <{attributes}, strides = [2, 2]> (x, v)
    }}"""
    graph = graph_of(text, w=random_array(4, 4, 3, 3), v=random_array(4, 4, 3, 3))
    made = _rescaled(graph, {"x": _channels(4, 1, shifts=True)})
    assert [node.op_type for node in made.model.graph] == ["Pad", "Sub", "Mul", "Conv", "Conv"]
    _same(outputs_of, made.model, graph.model)


def test_powers_of_two_fold_bit_for_bit(
    graph: Graph, outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    scale = (1.0, 0.5, 0.25, 0.125, 1.0, 0.5, 0.25, 0.125)
    made = _rescaled(graph, {name: Channels(scale=scale, amax=1.0) for name in ("r", "l")})
    assert len(made.model.graph) == len(graph.model.graph)
    for one, other in zip(outputs_of(made.model), outputs_of(graph.model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_take_scales_where_they_can_and_a_node_does_elsewhere(graph: Graph) -> None:
    made = _rescaled(graph, {name: _channels(size, 3) for name, size in SIZES.items()})
    muls = [node.name for node in made.model.graph if node.op_type == "Mul"]
    assert muls == ["x_Mul", "s_Mul", "m_Mul"]
    assert made.placement.activations == (
        "x_rescaled", "r_rescaled", "s_rescaled", "m_rescaled", "l_rescaled"
    )  # fmt: skip
    assert {name: item.amax for name, item in made.ranges.tensors.items() if "rescaled" in name} == (
        dict.fromkeys(made.placement.activations, 2.5)
    )
    assert made.placement.kept == place(graph.model, force=["."]).kept


def test_a_producer_that_is_not_quantized_is_left_alone(graph: Graph) -> None:
    placement = place(graph.model, force=["."], skip=["one"])
    made = rescale(graph.model, placement, ranges_of(placement, {"r": _channels(8, 1)}))
    assert [node.name for node in made.model.graph if node.op_type == "Mul"] == ["r_Mul"]


@pytest.mark.parametrize(
    ("formats", "has_range", "changes"),
    [({}, True, False), ({"x": "fp8"}, True, True), ({}, False, True)],
)
def test_what_stands_in_the_graph_is_for_the_format_of_the_range(
    graph: Graph, formats: dict[str, str], has_range: bool, changes: bool
) -> None:
    """A tensor without a range has scales by row, which no format chose."""
    placement = place(graph.model, force=["."], form=FP8)
    ranges = ranges_of(placement, {"x": _channels(4, 1, shifts=True)}, formats=formats)
    tensors = {name: item for name, item in ranges.tensors.items() if has_range or name != "x"}
    made = rescale(graph.model, placement, replace(ranges, tensors=tensors))
    assert ("Sub" in [node.op_type for node in made.model.graph]) == changes
    assert ("x_rescaled" in made.placement.activations) == changes
    assert ("x" in made.ranges.channels) != changes


def test_a_tensor_with_another_reader_keeps_its_values(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    text = """net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y, float[N, 4, 4, 4] t) {
      [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
      [two] y = Conv <kernel_shape = [1, 1]> (a, w2)
      t = Tanh (a)
    }"""
    graph = graph_of(text, w1=random_array(4, 4, 1, 1), w2=random_array(4, 4, 1, 1) + 1)
    made = _rescaled(graph, {"a": _channels(4, 5)})
    assert [node.name for node in made.model.graph if node.op_type == "Mul"] == ["a_Mul"]
    _same(outputs_of, made.model, graph.model)


@pytest.mark.parametrize(
    "body",
    [
        "[one] t = Conv (x, w1) r = Relu (t) [two] y = Conv (r, w2)",  # t is an output of the model
        "[one] a = Conv (x, w1) [same] t = Conv (x, w1) r = Relu (a) [two] y = Conv (r, w2)",  # w1 makes t
        "[one] a = Conv (x, w1) r = Relu (a) t = Tanh (a) [two] y = Conv (r, w2)",
    ],
)
def test_a_producer_that_is_seen_elsewhere_is_left_alone(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]], body: str
) -> None:
    text = f"net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y, float[N, 4, 4, 4] t) {{ {body} }}"
    graph = graph_of(text, w1=random_array(4, 4, 1, 1), w2=random_array(4, 4, 1, 1) + 1)
    made = _rescaled(graph, {"r": _channels(4, 5)})
    assert [node.name for node in made.model.graph if node.op_type == "Mul"] == ["r_Mul"]
    _same(outputs_of, made.model, graph.model)


def test_a_weight_of_two_layers_with_the_same_input_is_scaled_once(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    text = """net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y, float[N, 4, 4, 4] z) {
      [one] y = Conv <kernel_shape = [1, 1]> (x, w)
      [two] z = Conv <kernel_shape = [1, 1]> (x, w)
    }"""
    graph = graph_of(text, w=random_array(4, 4, 1, 1))
    made = _rescaled(graph, {"x": _channels(4, 6)})
    assert {layer.weight[1] for layer in made.placement.quantized if layer.weight} == {"w_rescaled"}
    _same(outputs_of, made.model, graph.model)


@pytest.mark.parametrize(
    ("attribute", "folds"), [("", True), ("alpha = 2.0", True), ("alpha = 1e6", False), ("beta = 1e6", False)]
)
def test_only_a_plain_gemm_takes_a_division(
    graph_of: Callable[..., Graph],
    outputs_of: Callable[..., list[NDArray[np.float32]]],
    attribute: str,
    folds: bool,
) -> None:
    text = f"""net (float[N, 4] x) => (float[N, 5] y) {{
      [one] a = Gemm <transB = 0{", " * bool(attribute)}{attribute}> (x, w1, b)
      [two] y = Gemm (a, w2)
    }}"""
    graph = graph_of(text, w1=random_array(4, 8), b=random_array(8), w2=random_array(8, 5))
    made = _rescaled(graph, {"a": _channels(8, 6)})
    assert ("Mul" not in [node.op_type for node in made.model.graph]) == folds
    _same(outputs_of, made.model, graph.model)


def test_what_fp16_cannot_hold_is_known_under_the_new_name(graph: Graph) -> None:
    made = _rescaled(graph, {"r": _channels(8, 1)}, beyond_fp16={"r": 1e5, "s": 2e5})
    assert made.ranges.beyond_fp16 == {"r": 1e5, "s": 2e5, "r_rescaled": 1e5}


def test_tensors_that_are_not_quantized_are_forgotten(graph: Graph) -> None:
    made = _rescaled(graph, {"a": _channels(8, 1), "nothing": _channels(8, 1)})
    assert len(made.model.graph) == len(graph.model.graph)
    assert made.ranges.channels == {}


def test_without_scales_the_graph_is_the_given_one(graph: Graph) -> None:
    placement = place(graph.model)
    ranges = ranges_of(placement, {"x": Channels(mean=(1.0, 2.0, 3.0, 4.0))})
    assert rescale(graph.model, placement, ranges) == Rescaled(graph.model, placement, ranges)


def test_means_follow_the_channels(graph: Graph) -> None:
    item = Channels(
        mean=(2.0, 4.0, 6.0, 8.0), scale=(1.0, 0.5, 0.5, 0.25), shift=(1.0, 1.0, 0.0, 0.0), amax=1
    )
    made = _rescaled(graph, {"x": item})
    assert made.ranges.channels["x_rescaled"].mean == (1.0, 6.0, 12.0, 32.0)
    without = Channels(scale=item.scale, shift=item.shift, amax=1)
    assert _rescaled(graph, {"x": without}).ranges.channels["x_rescaled"].mean == (-1.0, -2.0, 0.0, 0.0)
    plain = Channels(scale=item.scale, amax=1)
    assert _rescaled(graph, {"x": plain}).ranges.channels["x_rescaled"].mean == ()


@pytest.mark.parametrize("shifts", [False, True])
def test_what_is_positive_stays_so_without_a_shift(graph: Graph, shifts: bool) -> None:
    placement = place(graph.model, force=["."])
    ranges = ranges_of(placement, {name: _channels(8, 1, shifts=shifts) for name in ("r", "s")})
    ranges.tensors["r"] = Range(4.0, 0.0, 4.0)  # type: ignore[index]
    found = rescale(graph.model, placement, ranges).ranges.tensors
    (r,), (s,) = ([item for made, item in found.items() if made.startswith(f"{name}_")] for name in "rs")
    assert (r.minimum < 0, s.minimum < 0) == (shifts, True)
    assert r.maximum == s.maximum > 0
