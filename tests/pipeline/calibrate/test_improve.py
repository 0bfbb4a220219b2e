"""Tests of the step from what was seen to ranges and repairs, on the demo model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import read_ranges
from trtq.calibrators.statistics import Statistics
from trtq.models.spec import CalibrationSpec, Effort, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.calibrate import calibrate, estimate_ranges, improve, observe
from trtq.pipeline.calibrate.data import ObserveOptions, open_calibration_data, place_layers
from trtq.pipeline.calibrate.improve import RangeSearch, improve_ranges
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge import macs as macs_module
from trtq.pipeline.judge.repairs import SampleBudget
from trtq.pipeline.quantize import quantize
from trtq.progress import Log, Silent

WITHOUT_ENGINE = Target(backend="onnxruntime", high_precision="fp16")


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Path:
    return demo_folder / "model.onnx"


@pytest.fixture(scope="module")
def spec(demo: Path) -> ModelSpec:
    data = CalibrationSpec(data=str(demo.parent / "calibration.npz"), samples=96)
    return ModelSpec(calibration=data)


@pytest.fixture(scope="module")
def seen(demo: Path, spec: ModelSpec) -> tuple[Graph, Placement, Statistics, Batches]:
    graph = load(demo, min_opset=19)
    placement = place_layers(graph, spec, Target(), Silent())
    batches = open_calibration_data(graph, spec, Target(), random_data=False)
    statistics = observe_graph(graph, placement.activations, batches, ObserveOptions(), Silent())
    return graph, placement, statistics, batches


def _improved(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec, log: Log | None = None
) -> RangeSearch:
    return improve_ranges(*seen, spec, log or Log(Silent()))


def _with(spec: ModelSpec, method: str = "auto", repair: str = "auto") -> ModelSpec:
    return replace(
        spec,
        calibration=replace(spec.calibration, method=method),
        quantization=QuantizationSpec((repair,)),
    )


def test_the_demo_gains_by_repairs(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    found = _improved(seen, spec)
    assert found.repairs is not None
    assert found.repairs.applied
    assert found.repairs.after_db > found.repairs.before_db + 1
    assert found.ranges.method == found.repairs.method
    tried = {item.name for item in found.repairs.tried}
    assert {"minmax", "percentile", "mse", "bias", "weights"} < tried


def test_in_fp8_roundings_of_weights_are_tried_too(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    graph, _, _, batches = seen
    placement = place_layers(graph, spec, Target(precision="fp8"), Silent())
    statistics = observe_graph(graph, placement.activations, batches, ObserveOptions(), Silent())
    found = improve_ranges(graph, placement, statistics, batches, spec, Log(Silent()))
    assert found.repairs is not None
    assert "adaround" in {item.name for item in found.repairs.tried}
    named = improve_ranges(graph, placement, statistics, batches, _with(spec, repair="bias"), Log(Silent()))
    assert named.repairs is not None
    assert "adaround" not in {item.name for item in named.repairs.tried}


def test_a_method_and_no_repair_are_taken_without_a_trial(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    found = _improved(seen, _with(spec, "minmax", "none"))
    assert found.repairs is None
    assert (found.ranges.method, found.ranges.channels) == ("minmax()", {})


def test_a_method_that_is_named_is_not_weighed_against_others(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    found = _improved(seen, _with(spec, "minmax", "bias"))
    assert found.repairs is not None
    assert found.ranges.method == "minmax()"
    assert [item.name for item in found.repairs.tried] == ["bias"]


def test_methods_are_weighed_without_repairs(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    found = _improved(seen, _with(spec, repair="none"))
    assert found.repairs is not None
    assert {item.name for item in found.repairs.tried} <= {"minmax", "percentile", "mse", "cosine"}
    assert found.repairs.applied == ()


def test_random_data_repairs_nothing(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    graph, placement, statistics, batches = seen
    made_up = replace(batches, is_random=True)
    found = _improved((graph, placement, statistics, made_up), spec)
    assert found.repairs is None
    assert found.ranges.method.startswith("entropy(")


def test_too_few_samples_to_rescale_channels_are_told_of(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    graph, placement, statistics, batches = seen
    log = Log(Silent())
    found = _improved((graph, placement, statistics, batches.first(24)), spec, log)
    assert found.repairs is not None
    assert log.notes == [
        "no channels are rescaled: that takes 16 samples held back to judge by, and there were 8; give "
        "32 calibration samples or more"
    ]
    alone = replace(spec, quantization=QuantizationSpec(repair=("bias",)))
    quiet = Log(Silent())
    _improved((graph, placement, statistics, batches.first(24)), alone, quiet)
    assert quiet.notes == []


def test_a_quick_search_tries_nothing(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    quick = replace(spec, quantization=QuantizationSpec(effort="quick"))
    found = _improved(seen, quick)
    assert found.repairs is None
    assert found.ranges.method.startswith("entropy(")
    assert not found.ranges.channels


def test_one_batch_repairs_nothing_and_says_so(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    graph, placement, statistics, batches = seen
    log = Log(Silent())
    found = _improved((graph, placement, statistics, batches.first(8)), spec, log)
    assert found.repairs is None
    assert log.notes == [
        "no repair is tried: the calibration data is one batch, so that nothing can be held back; "
        "give more data, or a smaller --calib-batch-size"
    ]


def test_without_a_float_behind_an_output_no_repair_is_judged_and_a_note_says_so(
    seen: tuple[Graph, Placement, Statistics, Batches], spec: ModelSpec
) -> None:
    graph, placement, statistics, batches = seen
    model = graph.model.clone()
    model.graph.outputs.clear()
    log = Log(Silent())
    without = replace(graph, model=model)
    assert _improved((without, placement, statistics, batches), spec, log).repairs is None
    assert log.notes == ["no repair is tried: no output is computed from float values"]


@pytest.mark.parametrize(
    ("macs", "num_samples", "effort", "budget"),
    [
        (1e6, 128, "balanced", SampleBudget(8, 64)),
        (2e8, 100, "balanced", SampleBudget(5, 43)),  # as cheap as 500 runs
        (2e8, 1000, "balanced", SampleBudget(8, 64)),  # two passes over the data are more
        (1e10, 200, "balanced", SampleBudget(4, 34)),
        (1e10, 128, "thorough", SampleBudget(8, 64, races=False)),
        (1e12, 8, "balanced", SampleBudget(4, 24)),  # never fewer
    ],
)
def test_large_models_are_judged_on_fewer_samples(
    seen: tuple[Graph, Placement, Statistics, Batches],
    monkeypatch: pytest.MonkeyPatch,
    macs: float,
    num_samples: int,
    effort: Effort,
    budget: SampleBudget,
) -> None:
    monkeypatch.setattr(macs_module, "count_macs", lambda *_: {"a": int(macs / 2), "b": int(macs / 2)})
    assert improve._plan_budget(seen[0], seen[3], num_samples, effort) == budget


# The other stages


@pytest.mark.slow
def test_the_stages_make_what_the_build_makes(demo: Path, spec: ModelSpec, tmp_path: Path) -> None:
    spec = replace(_with(spec, "mse"), quantization=QuantizationSpec(("equalize", "smooth", "shift")))
    report = build(demo, spec=spec, target=WITHOUT_ENGINE, output=tmp_path / "out")
    assert report.repairs is not None
    ranges = calibrate(demo, spec=spec, target=WITHOUT_ENGINE)
    assert ranges == read_ranges(tmp_path / "out" / "ranges.json")
    assert ranges.channels
    made = quantize(demo, ranges, tmp_path / "m.onnx", spec=spec, target=WITHOUT_ENGINE)
    onnx.checker.check_model(str(made), full_check=True)
    assert made.read_bytes() == (tmp_path / "out" / "model.int8.onnx").read_bytes()
    again = build(demo, spec=spec, target=WITHOUT_ENGINE, output=tmp_path / "out")
    assert (again.reused, again.repairs) == (("everything",), report.repairs)


@pytest.mark.parametrize("other", [("auto", "none"), ("entropy", "auto"), ("auto", "bias")])
def test_ranges_are_known_again_by_what_may_be_done(
    demo: Path, spec: ModelSpec, other: tuple[str, str]
) -> None:
    one, two = (
        prepare(demo, item, WITHOUT_ENGINE, None, False, Silent()).keys["ranges"]
        for item in (spec, _with(spec, *other))
    )
    assert one != two


@pytest.mark.slow
def test_auto_keeps_layers_of_a_repaired_model(demo: Path, spec: ModelSpec, tmp_path: Path) -> None:
    """A gate that hardly any model passes: layers are taken out of a model with repaired channels."""
    strict = replace(
        _with(spec, "mse", "smooth"),
        evaluation=replace(
            spec.evaluation, data=str(demo.parent / "evaluation.npz"), labels="labels", samples=64
        ),
        accuracy=replace(spec.accuracy, min_cosine=0.99999),
    )
    target = replace(WITHOUT_ENGINE, auto=True)
    report = build(demo, spec=strict, target=target, output=tmp_path / "out")
    assert report.auto is not None
    assert report.auto.kept
    assert report.repairs is not None
    assert report.verdict == "pass"
    skipping = replace(strict, layers=replace(strict.layers, skip=report.auto.skip))
    same = quantize(
        demo, read_ranges(tmp_path / "out" / "ranges.json"), tmp_path / "m.onnx", spec=skipping, target=target
    )
    assert same.read_bytes() == (tmp_path / "out" / "model.int8.onnx").read_bytes()


@pytest.mark.parametrize("repair", ["none", "bias"])
def test_asymmetric_activations_stay_so_whatever_is_tried(demo: Path, spec: ModelSpec, repair: str) -> None:
    calibration = replace(spec.calibration, method="minmax", samples=32)
    wanted = replace(
        spec, calibration=calibration, quantization=QuantizationSpec((repair,), activations="asymmetric")
    )
    assert calibrate(demo, spec=wanted).activations == "asymmetric"
    assert estimate_ranges(observe(demo, spec=wanted), spec=wanted).activations == "asymmetric"
