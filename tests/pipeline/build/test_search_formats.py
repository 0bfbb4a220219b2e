"""A gate that fails, and the formats that `--formats` gives to layers so that it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from spoiled import int8_of, spec_for

from trtq.calibrators.ranges import read_ranges
from trtq.errors import DataError, UsageError
from trtq.models.spec import (
    AccuracySpec,
    ModelSpec,
    QuantizationSpec,
)
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.rewrite.rounding import hash_weight, pack

AUTO = Target(backend="onnxruntime", high_precision="fp16", auto=True)
PLAIN = replace(AUTO, auto=False)
FORMATS = replace(PLAIN, formats=("int8", "fp8", "fp16"))


def test_a_layer_that_int8_spoils_is_fp8_where_that_is_allowed(poisoned: Path) -> None:
    """The large channel leaves the others few of INT8's steps; FP8's are finer near zero."""
    report = build(poisoned, spec=spec_for(poisoned), target=FORMATS)
    assert (report.verdict, report.precision) == ("pass", "quantized")
    assert report.auto is not None
    assert report.auto.layers == {"first": "int8", "second": "fp8", "third": "int8"}
    first, second, third = 8 * 27, 8 * 8, 4 * 8
    total = first + second + third
    assert report.auto.formats == {"int8": (first + third) / total, "fp8": second / total, "fp16": 0.0}
    assert (report.auto.kept, report.auto.quantized_macs, report.kept_float) == ((), 1.0, ())
    assert report.auto.outcome.startswith(
        "the gate passes: 0 of 3 layers are kept out of INT8 and FP8, 79.5% of the MACs are in INT8, 20.5% "
    )
    assert report.auto.cost == report.auto.cost_before  # FP8 costs what INT8 does
    assert report.auto.cost_float == pytest.approx(1.0)
    built = onnx.load(Path(report.output) / "model.quantized.onnx")
    zero_points = {item.name: item.data_type for item in built.graph.initializer if "zero_point" in item.name}
    assert {*zero_points.values()} == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN}
    assert read_report(Path(report.output) / "report.json").auto == report.auto
    assert report.auto.outcome.endswith("; weights are rounded by data (--repair auto,adaround)")
    ranges = read_ranges(Path(report.output) / "ranges.json")
    weights = [numpy_helper.to_array(item) for item in onnx.load(poisoned).graph.initializer]
    rounded = {hash_weight(item, form) for item in weights for form in (INT8, FP8)} & {*ranges.roundings}
    assert len(rounded) == 6  # the three in both formats


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (QuantizationSpec(), True),
        (QuantizationSpec(effort="quick"), False),
        (QuantizationSpec(repair=("bias",)), False),
    ],
)
def test_weights_are_not_rounded_where_that_loses_or_is_not_asked_for(
    poisoned: Path, own: QuantizationSpec, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move_all(model: ir.Model, *_: object) -> dict[str, bytes]:
        arrays = [item.const_value.numpy() for item in model.graph.initializers.values() if item.const_value]
        return {hash_weight(item): pack(np.ones(item.shape, np.bool_)) for item in arrays}

    monkeypatch.setattr("trtq.pipeline.build.rounding.find_roundings", move_all)
    report = build(poisoned, spec=replace(spec_for(poisoned), quantization=own), target=FORMATS)
    assert report.auto is not None
    assert "rounded" not in report.auto.outcome
    assert any("--formats: weights are not rounded by data: " in note for note in report.notes) == told
    assert not read_ranges(Path(report.output) / "ranges.json").roundings


def test_the_builder_runs_each_layer_in_the_format_that_was_chosen(poisoned: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = replace(FORMATS, backend="tensorrt-rtx", compute_capabilities=("8.9",))
    report = build(poisoned, spec=spec_for(poisoned), target=target)
    assert report.auto is not None
    assert report.auto.layers["second"] == "fp8"
    assert (report.engine.layers_realized, report.engine.fallbacks) == ({"int8": 2, "fp8": 1}, ())
    assert report.verdict == "pass"


def test_formats_of_which_the_first_holds_are_not_searched(poisoned: Path) -> None:
    easy = replace(spec_for(poisoned), accuracy=AccuracySpec(min_cosine=0.1))
    report = build(poisoned, spec=easy, target=FORMATS)
    assert report.auto is not None
    assert report.auto.outcome == "not needed: the gate does not fail with every layer in INT8"


def test_without_fp16_a_gate_that_no_format_holds_fails(poisoned: Path) -> None:
    spec = replace(spec_for(poisoned), accuracy=AccuracySpec(min_cosine=0.9999999))
    report = build(
        poisoned, spec=spec, target=replace(FORMATS, formats=("fp8", "int8"), high_precision="fp32")
    )
    assert report.verdict == "fail"
    assert report.auto is not None
    assert report.auto.outcome.startswith("the gate still fails: 0 of 3 layers are kept out of INT8 and FP8")
    assert (report.auto.kept, report.auto.formats["fp16"], report.auto.cost_float) == ((), 0.0, None)


def test_int8_and_fp16_are_what_auto_is(poisoned: Path) -> None:
    spec = spec_for(poisoned)
    auto = build(poisoned, spec=spec, target=AUTO, output=poisoned.parent / "auto")
    target = replace(PLAIN, formats=("int8", "fp16"))
    named = build(poisoned, spec=spec, target=target, output=poisoned.parent / "named")
    assert named.auto is not None
    assert replace(named.auto, option="--auto") == auto.auto
    assert int8_of(named) == int8_of(auto)


def test_formats_that_the_gpu_or_the_model_lacks_are_refused(poisoned: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    target = replace(FORMATS, backend="tensorrt-rtx")
    words = r"fp8 in --formats needs GPUs of compute capability 8\.9 or newer, .* --formats without fp8"
    for capabilities in ((), ("8.6", "8.9")):
        with pytest.raises(UsageError, match=words):
            build(
                poisoned,
                spec=spec_for(poisoned),
                target=replace(target, compute_capabilities=capabilities),
            )
    with pytest.raises(DataError, match="--formats chooses layers by what they cost on real data"):
        build(poisoned, spec=ModelSpec(), target=FORMATS, random_data=True)


def test_layers_start_in_nvfp4_where_it_is_fastest_and_are_raised_to_fp8(
    path_of: Callable[..., Path],
) -> None:
    pytest.importorskip("tensorrt_rtx")
    rng = np.random.default_rng(0)
    text = """net (float[N, 64] x) => (float[N, 64] y) {
      [first] a = MatMul (x, w1) b = Relu (a)
      [second] c = MatMul (b, w2) d = Relu (c)
      [third] y = MatMul (d, w3)
    }"""
    made = {f"w{index}": rng.standard_normal((64, 64)).astype(np.float32) / 8 for index in (1, 2, 3)}
    model = path_of(text, **made)
    x = rng.standard_normal((64, 64)).astype(np.float32)
    spec = replace(spec_for(model, x), accuracy=AccuracySpec(min_cosine=0.985))
    target = Target(backend="tensorrt-rtx", formats=("fp8", "nvfp4", "fp16"), compute_capabilities=("12.0",))
    report = build(model, spec=spec, target=target)
    assert report.auto is not None
    assert report.verdict == "pass", report.reasons
    forms = [*report.auto.layers.values()]
    assert {"nvfp4", "fp8"} == {*forms}
    realized = {form: forms.count(form) for form in ("nvfp4", "fp8")}
    assert (dict(report.engine.layers_realized), report.engine.fallbacks) == (realized, ())
    costs = [report.auto.cost_before, report.auto.cost, report.auto.cost_float]
    known = [cost for cost in costs if cost is not None]
    assert known == sorted(set(known))
    assert len(known) == 3
