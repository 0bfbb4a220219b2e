"""Weight-only quantization as a part of a build: what is refused, warned of and placed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError, UsageError
from trtq.models.session import open_session, run
from trtq.models.spec import LayerSpec, ModelSpec
from trtq.pipeline import formats
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import BF16, FP16, FP32
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph import load as loading
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.judge.widen import has_bf16, without_bf16
from trtq.pipeline.quantize.weights import (
    describe_smaller_blocks,
    place_weights,
    refuse_nothing_stored,
    refuse_weights,
    report_weights,
)
from trtq.pipeline.rewrite.mixed import quantize_graph
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, group_by_weight
from trtq.progress import Log, Silent

INT4 = Target(precision="weights", weights=WeightScheme("int4"))


def _int4(block_size: int) -> Encoding:
    return Encoding(formats.INT4, PerBlock(0, block_size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "weights"}, 'the precision is "weights" if a weight scheme is given without INT8'),
        ({"precision": "fp16", "weights": WeightScheme("int8")}, 'the precision is "weights" if'),
        (
            {"precision": "weights", "weights": WeightScheme("int4", "mse", in_products=True)},
            "W4A8 has activations of 8 bits; give --int8 or --fp8 with --w4a8",
        ),
        ({"high_precision": "bf16"}, "bf16 is for weights of fewer bits"),
        (
            {"weights": WeightScheme("int8"), "quantization": "implicit"},
            "weights of fewer bits stand in the graph, which --quantization implicit does not read",
        ),
    ],
)
def test_a_target_that_does_not_exist_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Target(**settings)


def test_a_target_is_called_by_what_is_built() -> None:
    assert INT4.name == "int4-weights"
    assert Target(weights=WeightScheme("int4")).name == "int8"
    assert (INT4.min_opset, Target().min_opset) == (21, 13)


@dataclass(frozen=True)
class _Free:
    name: str = "tensorrt"

    def version(self) -> str:
        return "8.6"


def test_a_builder_that_picks_precisions_itself_is_refused() -> None:
    free = Strategy("explicit", "", FP16, is_typed=False)
    message = (
        "--weights int4 needs a builder that takes its precisions from the graph; backend tensorrt of "
        "version 8.6 picks them itself"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        refuse_weights(INT4, _Free(), free)  # type: ignore[arg-type]
    refuse_weights(Target(), _Free(), free)  # type: ignore[arg-type]


def test_onnx_runtime_is_not_asked_for_bf16() -> None:
    target = Target(precision="weights", weights=WeightScheme("int4"), high_precision="bf16")
    with pytest.raises(UsageError, match="backend onnxruntime has no BF16 on the CPU"):
        refuse_weights(target, BACKENDS["onnxruntime"], Strategy("explicit", "", FP32, is_typed=True))


@pytest.mark.parametrize(
    ("targets", "named"), [((), "8.0 and newer"), (("8.6", "8.9"), "8.6"), (("7.5", "8.0"), "7.5, 8.0")]
)
def test_fp8_is_for_gpus_that_have_it(targets: tuple[str, ...], named: str) -> None:
    typed = Strategy("explicit", "", FP16, is_typed=True)
    target = Target(precision="weights", weights=WeightScheme("fp8"), compute_capabilities=targets)
    message = (
        f"--weights fp8 needs GPUs of compute capability 8.9 or newer, and the engine is for {named}; "
        "give --compute-capability 8.9, or take --weights int8"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        refuse_weights(target, BACKENDS["tensorrt-rtx"], typed)
    refuse_weights(replace(target, compute_capabilities=("8.9", "12.0")), BACKENDS["tensorrt-rtx"], typed)
    refuse_weights(target, BACKENDS["onnxruntime"], typed)


TEXT = """g (float[N,512] x) => (float[N,64] y) {
  [big] h = MatMul (x, w)
  [small] y = MatMul (h, v)
}"""


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((512, 640), (640, 64)))
    return graph_of(TEXT, min_opset=21, w=w, v=v)


def test_beside_int8_only_small_products_are_in_few_bits(graph: Graph) -> None:
    target = Target(weights=WeightScheme("int4"))
    placement = place_weights(graph, ModelSpec(), target, place(graph.model), Silent())
    assert [(node.name, str(node.scheme)) for node in placement.quantized] == [
        ("big", "int8 x int8"),
        ("small", "float x int4"),
    ]
    assert [node.name for node in placement.layers] == ["big"]
    assert [node.weight for node in placement.weights_alone] == [(1, "v")]
    assert (placement.activations, placement.kept) == (("x",), ())


def test_a_small_product_that_cannot_be_in_few_bits_stays_in_int8(graph_of: Callable[..., Graph]) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((512, 900), (900, 64)))
    graph = graph_of(TEXT, min_opset=21, w=w, v=v)  # no block of 16 divides 900
    target = Target(weights=WeightScheme("int4"))
    placement = place_weights(graph, ModelSpec(), target, place(graph.model), Silent())
    assert [str(node.scheme) for node in placement.quantized] == ["int8 x int8", "int8 x int8"]
    assert (placement.weights_alone, placement.kept) == ((), ())


def test_blocks_that_are_smaller_than_asked_are_told(graph_of: Callable[..., Graph]) -> None:
    log = Log(Silent())
    w, v = np.ones((512, 80), np.float32), np.ones((80, 64), np.float32)
    place_weights(graph_of(TEXT, min_opset=21, w=w, v=v), ModelSpec(), INT4, Placement(), log)
    assert log.warnings == [
        "1 of 2 weights have smaller blocks, since 64 does not divide their inputs: 'v' (16)"
    ]
    chosen = tuple(ChosenWeight(f"w{index}", (80, 64), _int4(16), ()) for index in range(5))
    assert describe_smaller_blocks(chosen, 64).endswith("'w0' (16), 'w1' (16), 'w2' (16) and 2 more")


def test_what_is_skipped_or_matches_nothing_is_told(graph: Graph) -> None:
    log = Log(Silent())
    spec = ModelSpec(layers=LayerSpec(skip=("small", "smal$"), keep_fp32=("^big$",)))
    placement = place_weights(graph, spec, INT4, Placement(), log)
    assert not placement.quantized
    assert [node.reason for node in placement.kept] == ["skipped by '^big$'", "skipped by 'small'"]
    assert log.warnings == ["'smal$' matches no node or weight; the nearest names are small"]
    with pytest.raises(
        ModelError,
        match=r"has no weight that can be stored as INT4 \(big: skipped by '\^big\$'; small: .*\); leave",
    ):
        refuse_nothing_stored(graph, INT4, placement)


def test_a_format_of_which_no_weight_is_stored_is_told(graph: Graph) -> None:
    log, others = Log(Silent()), (("big", "nf4"), ("bi|x$", "int8"), ("smal", "int8"), ("big", "int4"))
    spec = ModelSpec(layers=LayerSpec(skip=("^small$",)))
    scheme = WeightScheme("int4", others=others)
    target = replace(INT4, weights=scheme)
    placement = place_weights(graph, spec, target, Placement(), log)
    assert log.warnings == [
        "'bi|x$' stores no weight as INT8",
        "'smal' stores no weight as INT8 (small: skipped by '^small$')",
        "'big' stores no weight as INT4",
    ]
    chosen = group_by_weight(graph.model, placement)
    found = report_weights(chosen, target, backend="onnxruntime", rest=FP16)
    assert (found.formats, found.method) == ("nf4", "rtn")
    nothing = report_weights((), target, backend="onnxruntime", rest=FP16)
    assert (nothing.formats, nothing.block_size) == ("int4", 64)


def test_the_report_counts_scales_in_the_precision_of_the_graph(graph: Graph) -> None:
    placement = place_weights(graph, ModelSpec(), INT4, Placement(), Silent())
    chosen = group_by_weight(graph.model, placement)
    bits = {
        rest.name: report_weights(chosen, INT4, backend="onnxruntime", rest=rest).bits_per_weight
        for rest in (FP16, BF16, FP32)
    }
    assert bits == {"fp16": 4.25, "bf16": 4.25, "fp32": 4.5}


def test_the_report_tells_the_blocks_that_were_used() -> None:
    chosen = tuple(ChosenWeight(f"w{size}", (96, 64), _int4(size), ()) for size in (16, 32))
    found = report_weights(chosen, INT4, backend="onnxruntime", rest=FP16)
    assert (found.block_size, found.smallest_block) == (32, 16)


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "nf4"])
def test_bf16_computes_the_same_up_to_its_own_rounding(
    graph: Graph, outputs_of: Callable[..., list[NDArray[np.float32]]], name: Any
) -> None:
    target = Target(precision="weights", weights=WeightScheme(name), high_precision="bf16")
    placement = place_weights(graph, ModelSpec(), target, Placement(), Silent())
    mixed = quantize_graph(graph, placement, rest=BF16)
    result = mixed.model
    assert mixed.kept_fp32 == ()
    assert has_bf16(result)
    assert not has_bf16(graph.model)
    plain = quantize_graph(graph, placement).model
    wanted, found = outputs_of(plain)[0], outputs_of(without_bf16(result))[0]
    assert found.dtype == np.float32
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)  # other scales, other codes


def test_tensorrt_builds_bf16(graph: Graph, build_rtx: Callable[..., dict[str, set[str]]]) -> None:
    target = Target(precision="weights", weights=WeightScheme("int4"), high_precision="bf16")
    placement = place_weights(graph, ModelSpec(), target, Placement(), Silent())
    kernels = build_rtx(quantize_graph(graph, placement, rest=BF16).model, N=2)
    assert any({"Int4", "BFloat16"} <= dtypes for dtypes in kernels.values())


def test_bf16_keeps_what_is_named_and_large_constants_finite(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N] x) => (float[N] y) { [a] h = Mul (x, c) [b] y = Relu (h) }",
        c=np.array([np.finfo(np.float32).min], np.float32),
    )
    result, kept = to_bf16(model, keep_fp32=["^b$"])
    assert [(item.name, item.reason) for item in kept] == [("b", "kept by '^b$'")]
    constant = result.graph.initializers["c_bf16"].const_value
    assert constant is not None
    assert np.isfinite(constant.numpy().astype(np.float32)).all()


def test_large_models_keep_their_weights_in_their_file(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir.save(graph.model, tmp_path / "large.onnx", external_data="large.data")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)}
    wanted = run(open_session(graph.model, optimize=False), ["y"], feed)[0]
    monkeypatch.setattr(loading, "_MOST_IN_MEMORY", 1 << 20)
    large = load(tmp_path / "large.onnx", min_opset=13).model
    assert all(isinstance(item.const_value, ir.ExternalTensor) for item in large.graph.initializers.values())
    monkeypatch.chdir("/")  # not where the data is
    np.testing.assert_array_equal(run(open_session(large, optimize=False), ["y"], feed)[0], wanted)
    half, _ = to_fp16(large)
    assert all(isinstance(item.const_value, ir.LazyTensor) for item in half.graph.initializers.values())
    found = run(open_session(half, optimize=False), ["y"], feed)[0]
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)
