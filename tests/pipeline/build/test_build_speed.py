"""The speed gate of a build: what is measured, what is said where nothing can be, and what that decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording_watcher import RecordingWatcher
from small_builds import spec_of

from trtq.errors import BuildError
from trtq.models.spec import AccuracySpec, InputSpec, ModelSpec
from trtq.pipeline import build as package
from trtq.pipeline.bench.runnables import Inputs
from trtq.pipeline.bench.speed import Pair
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.build import begin, build
from trtq.pipeline.build import speed as module
from trtq.pipeline.build.delivery import Places
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.gate import Verdict
from trtq.pipeline.judge.speed import SpeedVerdict, refuse_to_judge

OLD, TEN = "8.6.1", "10.16.1.11"
ON_CPU = Target(backend="onnxruntime")
ON_GPU = Target(backend="tensorrt")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCHEDULE", Schedule(rounds=7, seconds=0.007, warmup_s=0.0))


def asks(small: Path, wanted: float | None, min_cosine: float = -1.0) -> ModelSpec:
    accuracy = AccuracySpec(min_cosine=min_cosine, max_drop=100.0, min_speedup=wanted)
    return replace(spec_of(small, "minmax"), accuracy=accuracy)


# in ONNX Runtime, for real


def test_a_model_is_measured_against_the_float_one(small: Path) -> None:
    report = build(small, spec=asks(small, 0.001), target=ON_CPU)
    assert report.speed is not None
    assert (report.speed.verdict, report.speed.candidate, report.speed.against) == ("pass", "int8", "fp32")
    assert (report.speed.rounds, report.speed.wanted, report.verdict) == (7, 0.001, "pass")
    assert report.speed.runtime.startswith("ONNX Runtime ")
    assert "speed" in report.timings_s
    assert read_report(report.output).speed == report.speed
    page = (Path(report.output) / "report.html").read_text()
    assert "times as fast as fp32" in page
    again = build(small, spec=asks(small, 0.001), target=ON_CPU)
    assert again.reused == ("everything",)
    slow = build(small, spec=asks(small, 1000.0), target=ON_CPU)
    assert (slow.reused, slow.verdict, slow.failed_gates) == (("ranges", "engine"), "fail", "speed")
    assert slow.speed is not None
    assert slow.reasons == slow.speed.reasons
    assert "the gate requires 1000" in slow.reasons[0]


@pytest.mark.parametrize(
    ("verdict", "engine", "reused"),
    [
        ("pass", "model.int8.onnx", ("everything",)),
        ("unverified", "model.int8.onnx", ("ranges", "engine")),
        ("unverified", "model.engine", ("everything",)),  # it cannot be measured here
    ],
)
def test_a_speed_that_was_not_decided_is_measured_again(
    verdict: str, engine: str, reused: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begin, "explain_missing_gpu", lambda: "there is no NVIDIA driver")
    kept = read_report(Path(__file__).parents[2] / "data" / "kept" / "report-2.json")
    speed = SpeedVerdict(verdict, (), 1.05, "int8", "fp32", 1.0)  # type: ignore[arg-type]
    report = replace(kept, speed=speed, engine=replace(kept.engine, path=engine))
    stages = ("ranges", "engine", "everything")
    earlier: Any = SimpleNamespace(report=report, same=frozenset(stages))
    job: Any = SimpleNamespace(keys=dict.fromkeys(stages, ""))
    assert begin.BuildStart(job, Places(None), earlier).reused == reused


def test_both_gates_may_fail(small: Path) -> None:
    report = build(small, spec=asks(small, 1000.0, min_cosine=1.0), target=ON_CPU)
    assert (report.verdict, report.failed_gates) == ("fail", "accuracy and speed")
    assert "cosine" in report.reasons[0]
    assert "the gate requires 1000" in report.reasons[-1]


# engines


def test_an_engine_that_cannot_run_here_is_unverified(small: Path, install: Callable[[str], None],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    install(TEN)
    monkeypatch.setattr(module, "explain_missing_gpu", lambda: "there is no NVIDIA driver")
    report = build(small, spec=asks(small, 1.05), target=ON_GPU)
    assert report.speed is not None
    assert (report.verdict, report.speed.ratio) == ("unverified", None)
    assert report.reasons == (
        "the speed of int8 engine is not known: it cannot run here, since there is no NVIDIA driver; measure "
        "it with trtq bench where it will run",
    )


@pytest.mark.parametrize(
    ("version", "precision", "flags", "against"),
    [(OLD, "int8", ["FP16"], "fp16"), (TEN, "int8", [], "fp16"), (TEN, "fp16", [], "fp32")],
)
def test_an_engine_is_measured_against_a_float_one_of_the_same_builder(
    version: str, precision: str, flags: list[str], against: str, small: Path,
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    install(version)
    monkeypatch.setattr(module, "explain_missing_gpu", lambda: "")
    seen: dict[str, object] = {}

    def measure(pair: Pair, inputs: Inputs, *_: object) -> SpeedVerdict:
        assert pair.reference is not None
        plan = json.loads(pair.reference.request.path.read_bytes())
        seen.update(plan=plan["flags"], names=(pair.candidate.name, pair.reference.name), inputs=inputs)
        return refuse_to_judge("it was not run", 1.05, pair.candidate.name)

    monkeypatch.setattr(module, "measure_speed", measure)
    target = replace(ON_GPU, precision=precision)  # type: ignore[arg-type]
    report = build(small, spec=asks(small, 1.05), target=target)
    assert seen["names"] == (f"{precision} engine", f"{against} engine")
    assert seen["plan"] == flags
    inputs = seen["inputs"]
    assert isinstance(inputs, Inputs)
    assert inputs.feed is not None
    assert (inputs.feed["x"].shape, inputs.num_samples) == ((8, 3, 8, 8), 8)
    assert report.reasons == (f"the speed of {precision} engine is not known: it was not run",)


def test_a_model_that_came_quantized_has_nothing_beside_it(small: Path) -> None:
    first = build(small, spec=asks(small, None), target=ON_CPU, output=small.parent / "first")
    assert (first.speed, first.failed_gates) == (None, "")
    assert "speed" not in first.timings_s
    again = build(Path(first.output) / "model.int8.onnx", spec=asks(small, 1.05), target=ON_CPU)
    assert again.speed is not None
    assert again.speed.reasons == (
        "the speed of int8 is not known: this build has no FP32 model to measure against; measure it with "
        "trtq bench",
    )


def test_what_cannot_be_measured_is_unverified_and_told(
    small: Path, install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TEN)
    monkeypatch.setattr(module, "explain_missing_gpu", lambda: "")

    def fail(*_: object) -> Pair:
        raise BuildError("TensorRT did not build the FP16 engine")

    monkeypatch.setattr(module, "_pair_engines", fail)
    report = build(small, spec=asks(small, 1.05), target=ON_GPU)
    assert report.reasons == (
        "the speed of int8 engine is not known: TensorRT did not build the FP16 engine",
    )


def test_the_inputs_are_made_up_where_no_data_fits(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = RecordingWatcher()
    seen: list[Inputs] = []

    def measure(pair: Pair, inputs: Inputs, *_: object) -> SpeedVerdict:
        seen.append(inputs)
        return refuse_to_judge("it was not run", 1.05, pair.candidate.name)

    monkeypatch.setattr(module, "measure_speed", measure)
    shapes = InputSpec((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    spec = ModelSpec(inputs={"x": shapes}, accuracy=AccuracySpec(min_speedup=1.05))
    build(small, spec=spec, target=replace(ON_CPU, precision="fp16"), watcher=told)
    assert seen[0].origin == "random numbers"
    assert seen[0].feed is not None
    assert seen[0].feed["x"].shape == (2, 3, 8, 8)


# the two verdicts together


@pytest.mark.parametrize(
    ("accuracy", "speed", "outcome", "reasons"),
    [
        ("pass", "pass", "pass", ()),
        ("pass", "unverified", "unverified", ("slow",)),
        ("unverified", "pass", "unverified", ("wrong",)),
        ("unverified", "unverified", "unverified", ("wrong", "slow")),
        ("unverified", "fail", "fail", ("slow",)),
        ("fail", "unverified", "fail", ("wrong",)),
        ("fail", "fail", "fail", ("wrong", "slow")),
    ],
)
def test_the_worse_verdict_holds(accuracy: str, speed: str, outcome: str, reasons: tuple[str, ...]) -> None:
    first = Verdict(accuracy, () if accuracy == "pass" else ("wrong",))  # type: ignore[arg-type]
    second = SpeedVerdict(speed, () if speed == "pass" else ("slow",), 1.05, "int8")  # type: ignore[arg-type]
    assert package._join(first, second) == Verdict(outcome, reasons)  # type: ignore[arg-type]
    assert package._join(first, None) == first
