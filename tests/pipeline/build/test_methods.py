"""A gate that fails for the ranges' sake: `auto` takes those of another method first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from recording_watcher import RecordingWatcher

from trtq.models.spec import AccuracySpec, CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target

AUTO = Target(backend="onnxruntime", auto=True)
_NET = """
net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
  [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  [act] r = Relu (a)
  [second] h = Conv <kernel_shape = [1, 1]> (r, w2)
  [third] y = Conv <kernel_shape = [1, 1]> (h, w3)
}"""


@pytest.fixture
def model(random_model: Callable[..., Path]) -> Path:
    """Three layers of random weights, with 32 samples beside them."""
    return random_model(_NET, (32, 3, 8, 8), w1=(8, 3, 3, 3), w2=(8, 8, 1, 1), w3=(8, 8, 1, 1))


def spec_of(model: Path, method: str, **parameters: float) -> ModelSpec:
    data = CalibrationSpec(str(model.parent / "x.npz"), method, parameters, batch_size=4)
    none = QuantizationSpec(repair=("none",))
    return ModelSpec(calibration=data, quantization=none, layers=LayerSpec(force=(".",)))


def test_ranges_at_fault_are_replaced_and_no_layer_is_kept(model: Path) -> None:
    spec, watcher = spec_of(model, "percentile", percentile=60.0), RecordingWatcher()
    assert build(model, spec=spec, target=replace(AUTO, auto=False)).verdict == "fail"
    report = build(model, spec=spec, target=AUTO, watcher=watcher)
    assert report.verdict == "pass"
    assert [item.name for item in report.kept_float] == ["third"]  # ONNX Runtime has no kernel for the last
    assert report.auto is not None
    assert (report.auto.method, report.auto.kept) == ("auto", ())
    (warning,) = watcher.warnings
    assert warning.startswith("--auto: the ranges by percentile were at fault: with every layer in INT8 they")
    assert warning.removeprefix("--auto: ") in report.auto.outcome
    assert report.calibration is not None
    assert not report.calibration.method.startswith("percentile(percentile=60")
    assert build(model, spec=spec, target=AUTO).reused == ("everything",)


def test_replaced_ranges_are_not_taken_for_those_of_the_named_method(model: Path) -> None:
    spec = spec_of(model, "percentile", percentile=60.0)
    build(model, spec=spec, target=AUTO)
    plain = build(model, spec=spec, target=replace(AUTO, auto=False))
    assert (plain.verdict, plain.reused) == ("fail", ())
    assert plain.calibration is not None
    assert plain.calibration.method == "percentile(percentile=60.0)"
    build(model, spec=spec, target=AUTO)
    assert build(model, spec=spec_of(model, "auto"), target=replace(AUTO, auto=False)).reused == ("ranges",)


def test_ranges_of_an_earlier_build_are_tried_against_a_new_pass(model: Path) -> None:
    spec = spec_of(model, "percentile", percentile=60.0)
    build(model, spec=spec, target=replace(AUTO, auto=False))
    report = build(model, spec=spec, target=AUTO)
    assert (report.verdict, report.reused) == ("pass", ("ranges",))
    assert report.auto is not None
    assert report.auto.method == "auto"


def test_ranges_that_are_not_at_fault_stay(model: Path) -> None:
    watcher = RecordingWatcher()
    spec = replace(spec_of(model, "minmax"), accuracy=AccuracySpec(min_cosine=0.9999999))
    report = build(model, spec=spec, target=AUTO, watcher=watcher)
    assert report.auto is not None
    assert (report.auto.method, bool(report.auto.kept)) == ("", True)
    assert report.calibration is not None
    assert report.calibration.method == "minmax()"
    assert any(
        "other ranges than those by minmax gain too little: the best" in note for note in watcher.notes
    )


def test_the_best_of_all_methods_is_not_tried_again(model: Path) -> None:
    watcher = RecordingWatcher()
    spec = replace(spec_of(model, "auto"), accuracy=AccuracySpec(min_cosine=0.9999999))
    report = build(model, spec=spec, target=AUTO, watcher=watcher)
    assert report.auto is not None
    assert report.auto.method == ""
    assert not any("at fault" in note for note in (*watcher.notes, *watcher.warnings))
