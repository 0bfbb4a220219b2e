"""Tests of the way that INT8 gets into an engine, and of what implicit quantization is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory

from trtq.calibrators import METHODS
from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError, UsageError
from trtq.models.spec import CalibrationSpec, LayerSpec
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.implicit import (
    find_tensorrt_algorithm,
    list_float_tensors,
    list_implicit_layers,
    plan_implicit,
)
from trtq.pipeline.engine.strategy import Strategy, choose_rest, choose_strategy, pin_precisions
from trtq.pipeline.engine.target import Target
from trtq.pipeline.engine.tensorrt import TensorRt
from trtq.pipeline.formats import BF16, FP16, FP32
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
IMPLICIT = Strategy("implicit", "", FP16, is_typed=False)
GRAPH = """
    g (float[N, 4] x, int64[2] size) => (float[A, B] y, int64[2] shape) {
        [first] h = MatMul (x, w)
        [act] r = Relu (h)
        [second] m = MatMul (r, v)
        [measure] shape = Shape (m)
        [top] t, i = TopK (m, k)
        [back] y = Reshape (t, size)
    }"""


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    eye = np.eye(4, dtype=np.float32)
    return graph_of(GRAPH, w=eye, v=eye, k=np.array([2], np.int64))


@pytest.fixture
def backend(tensorrt_module: Callable[[str], str], one_gpu: None) -> Callable[[str], Any]:
    def named(name: str) -> Any:
        return BACKENDS[name] if name in BACKENDS else TensorRt(tensorrt_module(name), HostMemory)

    return named


# Explicit or implicit


@pytest.mark.parametrize(
    ("target", "name", "rest", "is_typed"),
    [
        (Target(), "tensorrt-rtx", FP16, True),
        (Target(), "onnxruntime", FP32, True),
        (Target(), OLD, FP16, False),
        (Target(), TEN, FP16, True),
        (Target(), ELEVEN, FP16, True),
        (Target(high_precision="fp32"), TEN, FP32, True),
        (Target(high_precision="fp16"), "onnxruntime", FP16, True),
        (Target(precision="fp16"), "onnxruntime", FP16, True),
        (Target(precision="fp16", high_precision="fp32"), OLD, FP16, False),
        (Target("weights", "bf16", weights=WeightScheme("int4")), "tensorrt-rtx", BF16, True),
    ],
)
def test_explicit_is_chosen_unless_implicit_is_asked_for(
    target: Target, name: str, rest: FloatFormat, is_typed: bool, backend: Callable[[str], Any]
) -> None:
    strategy = choose_strategy(target, backend(name))
    assert (strategy.quantization, strategy.rest, strategy.is_typed) == ("explicit", rest, is_typed)
    assert strategy.graph_float == (rest if is_typed else FP32)
    assert strategy.scale_dtype == ("float16" if is_typed and rest is FP16 else "float32")
    assert strategy.reason.endswith("takes Q/DQ models, as every version since TensorRT 8 does")


@pytest.mark.parametrize("version", [OLD, TEN])
@pytest.mark.parametrize(("high", "rest"), [("auto", FP16), ("fp16", FP16), ("fp32", FP32)])
def test_implicit_is_never_typed(
    version: str, high: Any, rest: FloatFormat, backend: Callable[[str], Any]
) -> None:
    strategy = choose_strategy(Target(quantization="implicit", high_precision=high), backend(version))
    assert strategy == Strategy("implicit", "as asked; TensorRT 11 no longer has it", rest, is_typed=False)
    assert strategy.graph_float is FP32


@pytest.mark.parametrize(
    ("name", "rest"),
    [("auto", FP16), ("tensorrt", FP16), ("onnxruntime", FP32), ("tensorrt-rtx", FP16)],
)
def test_the_rest_is_known_without_a_builder(name: str, rest: FloatFormat) -> None:
    assert choose_rest(Target(backend=name)) == rest


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tensorrt-rtx", r"it takes Q/DQ models only; for implicit quantization take TensorRT 8\.6 to 10$"),
        ("onnxruntime", r"it takes Q/DQ models; for implicit quantization take TensorRT 8\.6 to 10$"),
        (ELEVEN, r"TensorRT 11\.4\.0\.106 has no INT8 calibrators, they ended with TensorRT 10;"),
    ],
)
def test_implicit_is_refused_where_there_is_none(name: str, told: str, backend: Callable[[str], Any]) -> None:
    found = backend(name)
    with pytest.raises(UsageError, match=rf"^backend {found.name} has no implicit quantization: {told}"):
        choose_strategy(Target(quantization="implicit"), found)


def test_implicit_makes_no_fp16_engine(backend: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match=r"^--quantization implicit makes INT8 engines, no fp16 one$"):
        choose_strategy(Target(quantization="implicit", precision="fp16"), backend(TEN))


@pytest.mark.parametrize(
    ("strategy", "precision", "allowed"),
    [
        (Strategy("explicit", "", FP16, is_typed=True), "int8", ()),
        (Strategy("explicit", "", FP16, is_typed=False), "int8", ("int8", "fp16")),
        (Strategy("explicit", "", FP32, is_typed=False), "int8", ("int8",)),
        (Strategy("explicit", "", FP16, is_typed=False), "fp16", ("fp16",)),
        (IMPLICIT, "int8", ("int8", "fp16")),
    ],
)
def test_precisions_are_allowed_where_types_do_not_rule(
    strategy: Strategy, precision: Any, allowed: tuple[str, ...]
) -> None:
    assert strategy.list_precisions(precision) == allowed


@pytest.mark.parametrize(
    ("spec", "algorithm"),
    [
        (CalibrationSpec(), "entropy2"),
        (CalibrationSpec(method="minmax"), "minmax"),
        (CalibrationSpec(parameters={"num_bins": 1024}), None),
        (CalibrationSpec(parameters={"max_clipped": 0.5}), None),
        (CalibrationSpec(method="percentile"), None),
        (CalibrationSpec(method="mse"), None),
        (CalibrationSpec(method="cross-entropy"), None),
    ],
)
def test_tensorrt_runs_its_own_methods_where_nothing_is_set(
    spec: CalibrationSpec, algorithm: str | None
) -> None:
    assert find_tensorrt_algorithm(spec) == algorithm


def test_every_method_is_tensorrts_or_ours() -> None:
    found = {name: find_tensorrt_algorithm(CalibrationSpec(method=name)) for name in METHODS}
    assert {name for name, algorithm in found.items() if algorithm} == {"entropy", "minmax"}


# What TensorRT is told


def test_ranges_are_wanted_of_float_tensors_alone(graph: Graph) -> None:
    assert list_float_tensors(graph) == ("x", "h", "r", "m", "t", "y")


def _batches(*sizes: int) -> Batches:
    def read() -> Iterator[Feed]:
        for size in sizes:
            arrays = {"x": np.ones((size, 4), np.float32), "size": np.array([size, 2])}
            yield Feed(arrays, "feed", size)

    return Batches(read, "calib.npz", None)


@pytest.mark.parametrize(("method", "algorithm"), [("entropy", "entropy2"), ("minmax", "minmax")])
def test_the_first_batch_gives_the_shapes(method: str, algorithm: str, graph: Graph) -> None:
    batches = _batches(8, 8, 3)
    implicit = plan_implicit(graph, CalibrationSpec(method=method), batches=batches, ranges=None)
    assert (implicit.algorithm, implicit.batches) == (algorithm, batches)
    assert implicit.shapes == {"x": (8, 4), "size": (2,)}
    assert implicit.scales == {}


def test_data_without_a_batch_is_refused(graph: Graph) -> None:
    with pytest.raises(DataError, match=r"^calib\.npz holds no batch to calibrate with$"):
        plan_implicit(graph, CalibrationSpec(), batches=_batches(), ranges=None)


def _kept(graph: Graph, way: Strategy, kept_fp32: tuple[str, ...] = (), **layers: Any) -> dict[str, str]:
    spec = LayerSpec(**layers)
    placement = place(graph.model, skip=(*spec.skip, *spec.keep_fp32), op_types=("MatMul",))
    return dict(pin_precisions(graph, placement, way, spec, kept_fp32))


def test_skipped_nodes_are_kept_in_the_precision_of_the_rest(graph: Graph) -> None:
    assert _kept(graph, IMPLICIT, skip=("second|act",)) == {"act": "fp16", "second": "fp16"}
    in_fp32 = Strategy("implicit", "", FP32, is_typed=False)
    assert _kept(graph, in_fp32, skip=("second",)) == {"second": "fp32"}


def test_what_is_kept_fp32_is_so_also_where_it_is_skipped(graph: Graph) -> None:
    assert _kept(graph, IMPLICIT, skip=("act",), keep_fp32=("act", "first")) == {
        "first": "fp32",
        "act": "fp32",
    }


def test_what_fp16_ruins_is_kept_fp32_only_where_there_is_fp16(graph: Graph) -> None:
    assert _kept(graph, IMPLICIT, ("act",)) == {"act": "fp32"}
    assert _kept(graph, Strategy("implicit", "", FP32, is_typed=False), ("act",)) == {}
    assert _kept(graph, Strategy("explicit", "", FP16, is_typed=False), ("act",)) == {"act": "fp32"}


def test_an_explicit_model_says_itself_what_is_quantized(graph: Graph) -> None:
    untyped = Strategy("explicit", "", FP16, is_typed=False)
    assert _kept(graph, untyped, skip=("first",), keep_fp32=("act",)) == {"act": "fp32"}
    for way in (
        Strategy("explicit", "", FP16, is_typed=True),
        Strategy("explicit", "", FP32, is_typed=False),
    ):
        assert _kept(graph, way, ("act",), skip=("first",), keep_fp32=("act",)) == {}


def test_layers_that_cannot_be_quantized_explicitly_are_kept(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("g (float[2, 4] x, float[4, 4] v) => (float[2, 4] y) { [mm] y = MatMul (x, v) }")
    assert _kept(graph, IMPLICIT) == {"mm": "fp16"}


def test_the_layers_of_a_placement_have_no_scales_yet(graph: Graph) -> None:
    layers = list_implicit_layers(place(graph.model, skip=(), op_types=("MatMul",)))
    assert [(layer.name, layer.op_type, layer.scale_shape) for layer in layers] == [
        ("first", "MatMul", None),
        ("second", "MatMul", None),
    ]
