"""A gate that fails, and the layers that `auto` keeps out of INT8 so that it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pickled_workers import Pickled
from spoiled import int8_of, spec_for, weights

from trtq.errors import DataError, UsageError
from trtq.models.session import open_session, run
from trtq.models.spec import (
    AccuracySpec,
    EvaluationSpec,
    LayerSpec,
    ModelSpec,
    QuantizationSpec,
)
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.engine.target import Target

AUTO = Target(backend="onnxruntime", high_precision="fp16", auto=True)
PLAIN = replace(AUTO, auto=False)
_JOINED = """
net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
  [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  [act] r = Relu (a)
  [spread] s = Mul (r, scale)
  [second] h = Conv <kernel_shape = [1, 1]> (s, w2)
  [beside] b = Conv <kernel_shape = [1, 1]> (r, w2)
  [join] j = Add (h, b)
  [third] y = Conv <kernel_shape = [1, 1]> (j, w3)
}"""
_COARSE = """
net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
  [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  [up] u = Add (a, large)
  [down] d = Sub (u, other)
  [second] y = Conv <kernel_shape = [1, 1]> (d, w2)
}"""
"""10,003 and 10,000 are the same in FP16."""


def test_the_layer_that_spoils_it_is_kept_and_the_patterns_reproduce_the_model(poisoned: Path) -> None:
    spec = spec_for(poisoned)
    before = build(poisoned, spec=spec, target=PLAIN)
    assert (before.verdict, before.auto) == ("fail", None)
    report = build(poisoned, spec=spec, target=AUTO)
    assert (report.verdict, report.reasons) == ("pass", ())
    assert report.auto is not None
    assert [layer.name for layer in report.auto.kept] == ["second"]
    assert report.auto.skip == ("^second$",)
    first, second, third = 8 * 27, 8 * 8, 4 * 8
    assert report.auto.kept[0].macs == pytest.approx(second / (first + second + third))
    assert report.auto.quantized_macs == pytest.approx((first + third) / (first + second + third))
    assert report.auto.quantized_macs_before == 1.0
    assert report.auto.outcome.startswith("the gate passes: 1 of 3 layers are kept out of INT8, 79.5% of the")
    (kept,) = report.kept_float
    assert (kept.name, kept.reason[:40]) == ("second", "kept by --auto: alone in INT8 it leaves ")
    assert report.evaluated_samples == 8
    assert report.evaluation_data.startswith("every second batch of ")
    assert report.auto.times_judged == 1
    assert 1 < report.auto.evaluation_passes < 30
    assert read_report(Path(report.output) / "report.json").auto == report.auto
    layers = replace(spec.layers, skip=report.auto.skip)
    assert int8_of(build(poisoned, spec=replace(spec, layers=layers), target=PLAIN)) == int8_of(report)


def test_workers_choose_and_judge_the_same(poisoned: Path) -> None:
    found: list[tuple[object, ...]] = []
    workers = Pickled()
    spec = replace(spec_for(poisoned), quantization=QuantizationSpec(effort="quick"))
    for item in (None, workers):
        output = poisoned.parent / f"{len(found)}.trtq"
        report = build(poisoned, spec=spec, target=AUTO, output=output, workers=item)
        found.append((report.auto, report.comparison, report.verdict, report.reasons, int8_of(report)))
    assert found[0] == found[1]
    layers = [item for item in workers.done if isinstance(item, dict)]
    assert [len(group) for group in layers] == [2, 1], "two workers take a group each"
    feeds = [item for item in workers.done if item in (0, 1, 2, 3)]
    assert len(feeds) > 20, "neither mixtures nor the models were compared by workers"


def test_unchanged_work_is_used_again_and_another_gate_chooses_again(poisoned: Path) -> None:
    spec = spec_for(poisoned)
    report = build(poisoned, spec=spec, target=AUTO)
    again = build(poisoned, spec=spec, target=AUTO)
    assert (again.reused, again.auto) == (("everything",), report.auto)
    easy = build(poisoned, spec=replace(spec, accuracy=AccuracySpec(min_cosine=0.1)), target=AUTO)
    assert easy.reused == ("ranges",)
    assert easy.auto is not None
    assert easy.auto.outcome == "not needed: the gate does not fail with every layer in INT8"
    assert easy.verdict == "unverified"  # one answer for all samples would be as near
    assert (easy.auto.kept, easy.evaluated_samples) == ((), 16)


def test_an_add_whose_other_input_would_be_quantized_then_is_kept_too(path_of: Callable[..., Path]) -> None:
    model = path_of(_JOINED, **weights(spread=300.0))
    spec = spec_for(model)
    report = build(model, spec=spec, target=AUTO)
    assert report.verdict == "pass"
    assert report.auto is not None
    assert report.auto.skip == ("^second$", "^join$")
    assert "1 of 4 layers are kept out of INT8" in report.auto.outcome  # an Add is no layer
    layers = replace(spec.layers, skip=report.auto.skip)
    assert int8_of(build(model, spec=replace(spec, layers=layers), target=PLAIN)) == int8_of(report)


def test_a_choice_that_the_other_data_does_not_confirm_is_widened(
    poisoned: Path,
) -> None:
    # the second layer's error is small beside a large input, which the batches of the choice have only
    x = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
    x[0:4] *= 1e3
    x[8:12] *= 1e3
    report = build(poisoned, spec=replace(spec_for(poisoned, x), accuracy=AccuracySpec(0.7)), target=AUTO)
    assert report.auto is not None
    assert report.auto.times_judged > 1
    assert "the first choice failed on the held-out data, which then decided" in report.auto.outcome


def test_fp16_that_fails_by_itself_is_told(path_of: Callable[..., Path]) -> None:
    made = weights(spread=1.0)
    model = path_of(
        _COARSE, w1=made["w1"], w2=made["w2"], large=np.float32(10003.0), other=np.float32(10000.0)
    )
    x = 2 * np.random.default_rng(1).standard_normal((64, 3, 8, 8)).astype(np.float32)
    spec = spec_for(model, x)
    report = build(model, spec=spec, target=AUTO)
    assert report.verdict == "fail"
    assert report.auto is not None
    assert report.auto.outcome.startswith(
        "FP16 fails the gate without any quantization (output 'y' has cosine"
    )
    assert "quantization is not the cause; keep layers in FP32 with --keep-fp32" in report.auto.outcome
    assert any(warning.startswith("--auto cannot help: FP16 fails") for warning in report.warnings)
    whole = build(model, spec=spec, target=replace(AUTO, high_precision="fp32"))
    assert whole.verdict == "pass", whole.reasons


def test_one_batch_cannot_be_split(poisoned: Path) -> None:
    spec = spec_for(poisoned)
    spec = replace(spec, calibration=replace(spec.calibration, batch_size=16))
    report = build(poisoned, spec=spec, target=AUTO)
    assert report.verdict == "fail"
    assert report.auto is not None
    assert (
        "is one batch, and layers are not judged on the data that they are chosen on" in report.auto.outcome
    )


def test_a_model_without_layers_is_built_as_without_auto(poisoned: Path) -> None:
    spec = replace(spec_for(poisoned), layers=LayerSpec(skip=(".",)))
    assert build(poisoned, spec=spec, target=AUTO).auto is None


def test_a_metric_of_ones_own_is_held_too(poisoned: Path) -> None:
    script = poisoned.parent / "own.py"
    script.write_text(
        "import numpy as np\nwith open(__file__ + '.log', 'a') as log:\n    log.write('run ')\n"
        "def f(outputs, labels):\n"
        "    return float((np.sign(outputs['y']) == labels).mean())\n"
    )
    spec = spec_for(poisoned)
    with np.load(poisoned.parent / "data.npz") as archive:
        x = archive["x"]
    (y,) = run(open_session(poisoned, optimize=False), ["y"], {"x": x})
    np.savez(poisoned.parent / "eval.npz", x=x, labels=np.sign(y))
    spec = replace(
        spec,
        evaluation=EvaluationSpec(data=str(poisoned.parent / "eval.npz"), labels="labels"),
        accuracy=AccuracySpec(min_cosine=-1, max_drop=4.0, metric=f"{script}:f"),
    )
    assert build(poisoned, spec=spec, target=PLAIN).verdict == "fail"
    times_run = script.with_name("own.py.log")
    times_run.unlink()
    report = build(poisoned, spec=spec, target=AUTO)
    assert (
        times_run.read_text().split() == ["run"] * 3
    )  # to see that it can be, for the choice, for the engine
    assert report.verdict == "pass"
    assert report.auto is not None
    assert "second" in [layer.name for layer in report.auto.kept]
    assert report.accuracy["fp32"] - report.accuracy["engine"] <= 0.04
    assert any(
        warning.startswith("--auto has 8 samples to choose on, so that one answer can be 12.5 points, and")
        for warning in report.warnings
    )


def test_auto_without_data_or_layers_is_refused(poisoned: Path) -> None:
    spec = ModelSpec(layers=LayerSpec(force=(".",)))
    with pytest.raises(DataError, match="cannot be calibrated without data"):
        build(poisoned, spec=spec, target=AUTO)
    with pytest.raises(
        DataError, match=r"--auto chooses layers by what they cost on real data, and .* random"
    ):
        build(poisoned, spec=spec, target=AUTO, random_data=True)
    report = build(poisoned, spec=spec_for(poisoned), target=PLAIN)
    with pytest.raises(UsageError, match="is quantized already, so --auto has no layers to choose among"):
        build(Path(report.output) / "model.int8.onnx", spec=ModelSpec(), target=AUTO, output="elsewhere")


@pytest.mark.parametrize("target", [{"precision": "fp16"}, {"quantization": "implicit"}])
def test_auto_is_for_int8_by_qdq(target: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match="--auto chooses which layers get Q/DQ, of which there are none with"
    ):
        Target(auto=True, **target)


def test_a_gate_that_no_int8_layer_holds_fails(poisoned: Path) -> None:
    spec = replace(spec_for(poisoned), accuracy=AccuracySpec(min_cosine=0.99999999))
    report = build(poisoned, spec=spec, target=replace(AUTO, high_precision="fp32"))
    assert report.auto is not None
    assert (report.verdict, report.reasons) == ("fail", (report.auto.outcome,))
    assert report.auto.outcome.startswith(
        "no choice of layers in INT8 was found that holds the gate: 2 of 2 layers are kept out of INT8"
    )
    assert (report.auto.quantized_macs, report.engine.layers_quantized) == (0.0, 0)
    (warning,) = (item for item in report.warnings if item.startswith("only 0.0% of the MACs are in INT8, "))
    assert "with every layer in INT8 the outputs had an SQNR of " in warning
    assert "the worst layers are 'second' (" in warning


def test_most_macs_in_int8_are_no_cause_for_a_warning(poisoned: Path) -> None:
    wide = replace(spec_for(poisoned), accuracy=AccuracySpec(min_cosine=0.1))
    report = build(poisoned, spec=wide, target=AUTO)
    assert not [item for item in report.warnings if "of the MACs" in item]
