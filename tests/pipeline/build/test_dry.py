"""Tests of the plan of a build: what it says is what the build then does, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_builds import files_of, spec_of

from trtq.errors import ArtifactError, DataError, UsageError
from trtq.files import copy_atomically
from trtq.models.spec import AccuracySpec, EvaluationSpec, InputSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.build.dry import PlannedData, plan_build
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.scheme import WeightScheme

CPU = Target(backend="onnxruntime")
PER_TOKEN = {"activations": "per-token"}


def listed(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("target", "quantization"),
    [
        (Target(), {}),
        (CPU, {}),
        (replace(CPU, precision="fp16"), {}),
        (replace(CPU, precision="weights", weights=WeightScheme("int4", "rtn", 16)), {}),
        (replace(CPU, precision="fp8"), {}),
        (CPU, PER_TOKEN),
    ],
)
def test_a_plan_names_the_files_and_layers_of_the_build(
    target: Target, quantization: dict[str, Any], small: Path
) -> None:
    spec = spec_of(small, "minmax", skip=("^second",))
    spec = replace(spec, quantization=replace(spec.quantization, **quantization))
    before = listed(small.parent)
    plan = plan_build(small, spec=spec, target=target)
    assert listed(small.parent) == before
    report = build(small, spec=spec, target=target)
    assert {*plan.files} == files_of(report)
    assert (plan.output, plan.backend, plan.precision) == (report.output, report.backend, report.precision)
    assert plan.high_precision == report.high_precision
    assert sum(plan.layers.values()) == report.engine.layers_quantized
    assert sum(plan.kept.values()) == len(report.kept_float)
    again = plan_build(small, spec=spec, target=target)
    assert replace(again, reused=()) == plan
    assert again.reused == ("everything",)


def test_a_plan_of_a_model_with_qdq_is_that_of_its_build(small: Path) -> None:
    report = build(small, spec=spec_of(small, "minmax"), target=CPU)
    given = Path(report.output, "model.int8.onnx").rename(small.parent / "given.onnx")
    for start in (plan_build, build):
        with pytest.raises(UsageError, match="there is no data to take its shapes from"):
            start(given, target=CPU)
    target = replace(CPU, shapes=GivenShapes(opt={"x": (2, 3, 8, 8)}))
    plan = plan_build(given, target=target)
    assert {*plan.files} == files_of(build(given, target=target))
    assert (plan.high_precision, plan.calibration) == ("as it is", None)
    assert plan.kept["it comes quantized"] == 1


def test_a_plan_names_the_file_that_pictures_are_drawn_in(small: Path) -> None:
    for number in range(3):
        Image.new("L", (8, 8), 50 * number).save(small.parent / f"{number}.png")
    spec = ModelSpec(evaluation=EvaluationSpec(data=str(small.parent / "*.png")))
    target = replace(CPU, precision="fp16")
    plan = plan_build(small, spec=spec, target=target)
    assert "tensors.json" in plan.files
    assert {*plan.files} == files_of(build(small, spec=spec, target=target))


def test_a_plan_says_what_decides(small: Path) -> None:
    spec = replace(spec_of(small, "mse", skip=("^second",)), accuracy=AccuracySpec(min_cosine=0.5))
    plan = plan_build(small, spec=spec, target=CPU)
    data = str(small.parent / "data.npz")
    assert plan.calibration == plan.evaluation == PlannedData(data, 16)
    assert (plan.method, plan.repairs, plan.gate.min_cosine) == ("mse", (), 0.5)
    assert plan.layers == {"int8": 1}
    assert plan.kept == {"skipped by '^second'": 1}
    assert plan.profiles == {"x": None}
    assert "--skip '^second'" in plan.command
    shapes = GivenShapes(max={"x": (4, 3, 8, 8)})
    own = plan_build(small, spec=spec, target=replace(CPU, shapes=shapes)).profiles["x"]
    assert own == InputSpec((4, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8))


def test_a_plan_finds_what_is_wrong_as_the_build_does(small: Path) -> None:
    with pytest.raises(DataError, match="cannot be calibrated without data"):
        plan_build(small, spec=ModelSpec(), target=CPU)
    made_up = plan_build(small, spec=ModelSpec(), target=CPU, random_data=True)
    assert made_up.calibration is not None
    assert made_up.calibration.origin == "random numbers"
    other = small.with_name("other.npz")
    np.savez(other, x=np.zeros((8, 3, 8, 8), np.float32))
    labelled = EvaluationSpec(data=str(other), labels="truth")
    with pytest.raises(DataError, match=r"other.npz \(samples 0 to 7\) has no labels 'truth'; it has x$"):
        plan_build(small, spec=replace(spec_of(small), evaluation=labelled), target=CPU)
    np.savez(other, z=np.zeros((8, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match=r"other.npz \(samples 0 to 7\) has no array 'x'"):
        plan_build(small, str(other), target=CPU)


# A file for the engine


def test_the_engine_is_copied_to_a_file_of_its_own_beside_its_folder(small: Path, tmp_path: Path) -> None:
    spec, file = spec_of(small, "minmax"), tmp_path / "out.engine"
    assert plan_build(small, spec=spec, output=file).engine_file == str(file)
    assert not file.exists()
    report = build(small, spec=spec, output=file)
    assert report.output == str(tmp_path / "out.trtq")
    assert file.read_bytes() == (tmp_path / "out.trtq" / "model.engine").read_bytes()
    file.unlink()
    assert build(small, spec=spec, output=file).reused == ("everything",)
    assert file.read_bytes() == (tmp_path / "out.trtq" / "model.engine").read_bytes()


def test_an_engine_whose_gate_failed_stays_in_its_folder(small: Path, tmp_path: Path) -> None:
    spec, file = spec_of(small, "minmax"), tmp_path / "out.plan"
    file.write_bytes(b"an engine that passed")
    report = build(small, spec=replace(spec, accuracy=AccuracySpec(min_cosine=1.0)), output=file)
    assert report.verdict == "fail"
    assert file.read_bytes() == b"an engine that passed"
    assert (tmp_path / "out.trtq" / "model.engine").exists()


def test_a_folder_may_be_called_as_engines_are(small: Path, tmp_path: Path) -> None:
    (tmp_path / "v1.engine").mkdir()
    plan = plan_build(small, spec=spec_of(small, "minmax"), target=CPU, output=tmp_path / "v1.engine")
    assert (plan.output, plan.engine_file) == (str(tmp_path / "v1.engine"), "")


@pytest.mark.parametrize("start", [build, plan_build])
def test_an_engine_file_that_cannot_be_is_refused_before_any_work(
    start: Callable[..., Any], small: Path, tmp_path: Path
) -> None:
    spec = spec_of(small, "minmax")
    with pytest.raises(UsageError, match=r"asks for an engine file, and the backend onnxruntime makes none"):
        start(small, spec=spec, target=CPU, output=tmp_path / "out.engine")
    with pytest.raises(ArtifactError, match=r"^cannot write .*none/out\.engine: there is no folder"):
        start(small, spec=spec, output=tmp_path / "none" / "out.engine")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("start", [build, plan_build])
def test_a_folder_of_someone_else_is_refused_before_any_work(
    start: Callable[..., Any], small: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ArtifactError, match=r"mine is not empty and was not written by trtq; choose another"):
        start(small, spec=spec_of(small, "minmax"), target=CPU, output=tmp_path / "mine")


def test_a_copy_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")

    def stop(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", stop)
    with pytest.raises(
        ArtifactError, match=r"^cannot copy .*a to .*b: No space left on device; its folder must exist"
    ):
        copy_atomically(tmp_path / "a", tmp_path / "b")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"old"}
    copy_atomically(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new"
