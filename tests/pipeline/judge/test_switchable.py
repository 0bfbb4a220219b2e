"""Tests of the model with a switch for every layer, against models that are quantized for good."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.models.session import open_session, run
from trtq.models.spec import Activations
from trtq.pipeline.formats import FP8, INT8, NVFP4
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.judge.switchable import Switchable, build_switchable, open_switchable
from trtq.pipeline.rewrite.qdq import quantize
from trtq.workers import Threads

_NET = """
net (float[N, 8, 6, 6] x) => (float[N, 16, 6, 6] y, float[N, 16, 6, 6] z) {
  [stem] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
  [act] r = Relu (a)
  [left] l = Conv <kernel_shape = [1, 1]> (r, w1)
  [right] z = Conv <kernel_shape = [1, 1]> (r, w2)
  [join] s = Add (l, z)
  [tail] y = Conv <kernel_shape = [1, 1]> (s, w1)
}"""


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 8, 3, 3), "b0": (16,), "w1": (16, 16, 1, 1), "w2": (16, 16, 1, 1)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return graph_of(_NET, **weights)


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((2, 8, 6, 6)).astype(np.float32)


def ranges_of(placement: Placement) -> Ranges:
    return Ranges({name: Range(20.0, -20.0, 20.0) for name in placement.activations}, "made", "0", "none", 1)


def outputs_of(model: ir.Model, x: NDArray[Any]) -> list[NDArray[Any]]:
    return run(open_session(model, optimize=False), ["y", "z"], {"x": x})


def switched(session: Switchable, quantized: Iterable[str], x: NDArray[Any]) -> list[NDArray[Any]]:
    return switched_as(session, dict.fromkeys(quantized, "int8"), x)


def switched_as(session: Switchable, quantized: Mapping[str, str], x: NDArray[Any]) -> list[NDArray[Any]]:
    with session.runner("a name", quantized) as runner:
        assert runner.name == "a name"
        assert list(runner.get_input_metadata(use_numpy_dtypes=False)) == ["x"]
        found = runner.infer({"x": x})
        return [np.array(found[name]) for name in ("y", "z")]


@pytest.mark.parametrize(
    "layers",
    [(), ("stem",), ("left", "join"), ("right",), ("tail",), ("stem", "left", "right", "join", "tail")],
)
def test_a_mixture_computes_what_the_model_with_these_layers_quantized_does(
    graph: Graph, x: NDArray[np.float32], layers: tuple[str, ...]
) -> None:
    placement = place(graph.model)
    assert [node.name for node in placement.quantized] == ["stem", "left", "right", "join", "tail"]
    session = open_switchable(graph.model, placement, ranges_of(placement))
    part = Placement(tuple(node for node in placement.quantized if node.name in layers), ())
    wanted = outputs_of(quantize(graph.model, part, ranges_of(placement)), x)
    for ours, theirs in zip(switched(session, layers, x), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_process_that_only_shares_the_work_opens_no_session(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("trtq.pipeline.judge.switchable.open_session", lambda *_, **__: opened.append(1))
    placement = place(graph.model)
    pickle.dumps(open_switchable(graph.model, placement, ranges_of(placement)).share(Threads()))
    assert opened == []


@pytest.mark.parametrize("activations", get_args(Activations))
def test_repairs_are_switched_with_their_layers(
    graph: Graph, x: NDArray[np.float32], activations: Activations
) -> None:
    placement = place(graph.model)
    scale = tuple(np.geomspace(0.1, 1, 16).tolist())
    channels = {
        "x": Channels(mean=(0.5,) * 8, scale=(1.0,) * 4 + (0.5,) * 4, amax=8.0),
        "s": Channels(mean=(0.1,) * 16, scale=scale, shift=(0.25,) * 16, amax=30.0),
    }
    ranges = replace(ranges_of(placement), channels=channels, weight_scales="mse", activations=activations)
    session = open_switchable(graph.model, placement, ranges)
    wanted = outputs_of(quantize(graph.model, placement, ranges), x)
    for ours, theirs in zip(switched(session, session.layers, x), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(switched(session, (), x), outputs_of(graph.model, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        "[first] m = MatMul (x, w1) [bias] z = Add (m, b1) [second] y = MatMul (z, w2)",
        "[first] m = MatMul (x, w1) [bias] z = Add (b1, m) [act] r = Relu (z) [second] y = MatMul (r, w2)",
        "[first] z = MatMul (x, w1) [act] r = Relu (z) [second] y = MatMul (r, w2)",
    ],
)
def test_the_bias_correction_of_a_matmul_is_switched_with_it(
    graph_of: Callable[..., Graph], body: str
) -> None:
    """It stands in an Add behind the layer: in the one that is there, or in one that is put there."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2")}
    net = f"net (float[N, 6, 16] x) => (float[N, 6, 16] y, float[N, 6, 16] z) {{ {body} }}"
    graph = graph_of(net, **weights, b1=rng.standard_normal(16).astype(np.float32))
    placement = place(graph.model, force=["."])
    channels = {name: Channels(mean=(5.0,) * 16) for name in placement.activations}
    ranges = replace(ranges_of(placement), channels=channels)
    session = open_switchable(graph.model, placement, ranges)
    x = rng.standard_normal((2, 6, 16)).astype(np.float32)
    for layers in ((), ("first",), ("second",), ("first", "second")):
        part = Placement(tuple(node for node in placement.quantized if node.name in layers), ())
        wanted = outputs_of(quantize(graph.model, part, ranges), x)
        for ours, theirs in zip(switched(session, layers, x), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_layer_in_another_format_computes_what_the_model_with_it_so_does(
    graph: Graph, x: NDArray[np.float32]
) -> None:
    forms = {"stem": FP8, "right": FP8, "tail": FP8}
    placement, other = place(graph.model), place(graph.model, form=FP8, force=["stem"])
    ranges = ranges_of(placement)
    session = open_switchable(graph.model, placement, ranges, others=[other, placement])
    layers = dict.fromkeys(("stem", "left", "right", "tail"), ("int8", "fp8"))
    assert session.layers == {**layers, "join": ("int8",)}
    mixed = place(graph.model, forms=forms, force=["stem"])
    wanted = outputs_of(quantize(graph.model, mixed, ranges), x)
    chosen = {node.name: node.scheme.form.name for node in mixed.quantized}
    assert {*chosen.values()} == {"int8", "fp8"}
    for ours, theirs in zip(switched_as(session, chosen, x), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(switched(session, (), x), outputs_of(graph.model, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_corrections_of_each_format_are_its_own(
    graph_of: Callable[..., Graph],
) -> None:
    """Those of the biases, of the Adds behind a MatMul and of the rescaled tensors."""
    rng = np.random.default_rng(0)
    body = "[first] m = MatMul (x, w1) [bias] z = Add (m, b1) [second] y = MatMul (z, w2)"
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2")}
    net = f"net (float[N, 6, 16] x) => (float[N, 6, 16] y, float[N, 6, 16] z) {{ {body} }}"
    graph = graph_of(net, **weights, b1=rng.standard_normal(16).astype(np.float32))
    placement, other = place(graph.model, force=["."]), place(graph.model, force=["."], form=FP8)
    scale = tuple(np.geomspace(0.5, 2, 16).tolist())
    channels = {"x": Channels(mean=(5.0,) * 16), "z": Channels(mean=(5.0,) * 16, scale=scale, amax=40.0)}
    ranges = replace(ranges_of(placement), channels=channels)
    session = open_switchable(graph.model, placement, ranges, others=[other])
    x = rng.standard_normal((2, 6, 16)).astype(np.float32)
    for forms in ({}, {"first": FP8}, {"second": FP8}, {"first": FP8, "second": FP8}):
        mixed = place(graph.model, force=["."], forms=forms)
        wanted = outputs_of(quantize(graph.model, mixed, ranges), x)
        chosen = {node.name: node.scheme.form.name for node in mixed.quantized}
        for ours, theirs in zip(switched_as(session, chosen, x), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "behind", ["[second] y = MatMul (r, w2)", "[second] m = MatMul (r, w2) [bias] y = Add (m, b1)"]
)
@pytest.mark.parametrize("mean", [(), (5.0,) * 16])
def test_what_is_shifted_for_one_format_stays_as_it_was_for_the_other(
    graph_of: Callable[..., Graph], behind: str, mean: tuple[float, ...]
) -> None:
    """A shift leaves a float no fine steps; and the constants behind it are those of each format."""
    rng = np.random.default_rng(0)
    body = f"[first] h = MatMul (x, w1) [act] r = Sigmoid (h) {behind} [third] z = MatMul (r, w3)"
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2", "w3")}
    net = f"net (float[N, 6, 16] x) => (float[N, 6, 16] y, float[N, 6, 16] z) {{ {body} }}"
    graph = graph_of(net, **weights, b1=rng.standard_normal(16).astype(np.float32))
    placement, other = place(graph.model, force=["."]), place(graph.model, force=["."], form=FP8)
    channels = {"r": Channels(mean=mean, scale=(0.5,) * 16, shift=(0.5,) * 16, amax=1.0)}
    ranges = replace(ranges_of(placement), channels=channels)
    session = open_switchable(graph.model, placement, ranges, others=[other])
    x = rng.standard_normal((2, 6, 16)).astype(np.float32)
    for count in range(3):
        for names in itertools.combinations(("first", "second", "third"), count):
            mixed = place(graph.model, force=["."], forms=dict.fromkeys(names, FP8))
            made = quantize(graph.model, mixed, ranges)
            chosen = {node.name: node.scheme.form.name for node in mixed.quantized}
            for ours, theirs in zip(switched_as(session, chosen, x), outputs_of(made, x), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            reads = {str(node.name): str(node.inputs[0].name) for node in made.graph if node.inputs[0]}
            for name in ("second", "third"):
                assert ("rescaled" in reads[name]) == (name not in names)


def test_what_is_float_keeps_its_biases_beside_those_of_two_formats(graph_of: Callable[..., Graph]) -> None:
    """A shift and the correction for another format give a layer new biases, of the same name before."""
    rng = np.random.default_rng(0)
    body = "[first] h = Conv (x, w1) [act] r = Sigmoid (h) [second] y = Conv (r, w2) [third] z = Conv (r, w3)"
    weights = {name: rng.standard_normal((16, 16, 1, 1)).astype(np.float32) for name in ("w1", "w2", "w3")}
    net = f"net (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {{ {body} }}"
    graph = graph_of(net, **weights)
    placement, other = place(graph.model, force=["."]), place(graph.model, force=["."], form=FP8)
    channels = {"r": Channels(mean=(5.0,) * 16, scale=(0.5,) * 16, shift=(0.5,) * 16, amax=1.0)}
    ranges = replace(ranges_of(placement), channels=channels)
    session = open_switchable(graph.model, placement, ranges, others=[other])
    x = rng.standard_normal((2, 16, 4, 4)).astype(np.float32)
    for ours, theirs in zip(switched_as(session, {}, x), outputs_of(graph.model, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        "[first] z = MatMul (x, w1) [act] r = Relu (z) [second] y = MatMul (r, w2)",
        "[first] m = MatMul (x, w1) [bias] z = Add (m, b1) [second] y = MatMul (z, w2)",
        "[f] f = Reshape (x, s) [first] g = Gemm <beta=0.5> (f, w1, b1) [second] h = Gemm (g, w2, g) "
        "[y] y = Reshape (h, t) [z] z = Reshape (g, t)",
    ],
)
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_layers_whose_rows_have_scales_are_switched_as_a_whole(
    graph_of: Callable[..., Graph], body: str, mean: float
) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2")}
    shapes = {"s": np.array([-1, 16]), "t": np.array([-1, 6, 16])} if "Reshape" in body else {}
    net = f"net (float[N, 6, 16] x) => (float[N, 6, 16] y, float[N, 6, 16] z) {{ {body} }}"
    graph = graph_of(net, **weights, **shapes, b1=rng.standard_normal(16).astype(np.float32))
    placement = place(graph.model, force=["."], per_token=True)
    assert (placement.activations, len(placement.layers)) == ((), 2)
    read = {tensor for node in placement.layers for _, tensor in node.activations}
    channels = {name: Channels(mean=(mean,) * 16) for name in read} if mean else {}
    ranges = replace(ranges_of(placement), channels=channels)
    session = open_switchable(graph.model, placement, ranges)
    x = rng.standard_normal((2, 6, 16)).astype(np.float32)
    for layers in ((), ("first",), ("second",), ("first", "second")):
        part = Placement(tuple(node for node in placement.quantized if node.name in layers), ())
        wanted = outputs_of(quantize(graph.model, part, ranges), x)
        for ours, theirs in zip(switched(session, layers, x), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_layer_may_have_int8_fp8_and_nvfp4(graph_of: Callable[..., Graph]) -> None:
    """Each with what it puts before and behind the layer."""
    rng = np.random.default_rng(0)
    body = "[first] m = MatMul (x, w1) [bias] z = Add (m, b1) [second] y = MatMul (z, w2)"
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2")}
    net = f"net (float[2, 3, 2, 16] x) => (float[2, 3, 2, 16] y, float[2, 3, 2, 16] z) {{ {body} }}"
    graph = graph_of(net, **weights, b1=rng.standard_normal(16).astype(np.float32))
    placement, *others = (place(graph.model, force=["."], form=form) for form in (INT8, FP8, NVFP4))
    ranges = replace(ranges_of(placement), channels={name: Channels(mean=(5.0,) * 16) for name in "xz"})
    session = open_switchable(graph.model, placement, ranges, others=others)
    assert session.layers == dict.fromkeys(("first", "second"), ("int8", "fp8", "nvfp4"))
    x = rng.standard_normal((2, 3, 2, 16)).astype(np.float32)
    for forms in itertools.product((INT8, FP8, NVFP4), repeat=2):
        chosen = dict(zip(("first", "second"), forms, strict=True))
        mixed = place(graph.model, force=["."], forms=chosen)
        wanted = outputs_of(without_fp4(quantize(graph.model, mixed, ranges)), x)
        found = switched_as(session, {name: form.name for name, form in chosen.items()}, x)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_every_layer_changes_something(graph: Graph, x: NDArray[np.float32]) -> None:
    placement = place(graph.model)
    session = open_switchable(graph.model, placement, ranges_of(placement))
    plain = switched(session, (), x)
    for layer in session.layers:
        assert any((a != b).any() for a, b in zip(switched(session, [layer], x), plain, strict=True))


def test_scales_have_the_dtype_that_is_asked_for(graph: Graph, x: NDArray[np.float32]) -> None:
    placement = place(graph.model)
    session = open_switchable(graph.model, placement, ranges_of(placement), scale_dtype="float16")
    wanted = outputs_of(quantize(graph.model, placement, ranges_of(placement), scale_dtype="float16"), x)
    np.testing.assert_array_equal(switched(session, session.layers, x)[0], wanted[0])


def test_the_float_model_stays_as_it_is(graph: Graph, tmp_path: Path) -> None:
    before = ir.to_proto(graph.model).SerializeToString()
    placement = place(graph.model)
    made = build_switchable(graph.model, placement, ranges_of(placement))
    assert ir.to_proto(graph.model).SerializeToString() == before
    assert [value.name for value in made.graph.outputs] == ["y", "z"]
    outside = {node.op_type for node in made.graph}
    assert outside == {"If", "Relu"}  # no pair is computed that is not asked for


def test_no_layer_is_computed_again_in_the_branch_of_another(graph: Graph) -> None:
    placement = place(graph.model)
    made = build_switchable(graph.model, placement, ranges_of(placement))
    inside = [node.op_type for body in made.graph.subgraphs() for node in body]
    assert (inside.count("If"), inside.count("Conv"), inside.count("Add")) == (0, 8, 2)
