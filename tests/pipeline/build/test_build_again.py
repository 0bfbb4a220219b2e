"""A build in a folder that holds an earlier one: what is used again, and what a failure leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recording_watcher import RecordingWatcher
from small_builds import spec_of

from trtq.calibrators.ranges import read_ranges
from trtq.calibrators.settings import read_spec
from trtq.errors import ArtifactError, BuildError, DataError, UsageError
from trtq.files import hash_file
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    ModelSpec,
)
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.rewrite.mixed import MixedModel
from trtq.pipeline.verify import verify

WITHOUT_ENGINE = Target(backend="onnxruntime")


@pytest.fixture
def earlier(built: Report, tmp_path: Path) -> Path:
    """A copy of the demo's build, to be spoilt."""
    return shutil.copytree(built.output, tmp_path / "earlier")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir()}


def left_beside(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}")]


# What is used again


def test_an_unchanged_second_run_does_nothing_and_says_so(demo: Path, built: Report) -> None:
    before, watcher = digests(Path(built.output)), RecordingWatcher()
    again = build(demo / "model.onnx", watcher=watcher)
    assert again == replace(built, reused=("everything",))
    assert digests(Path(built.output)) == before
    assert f"nothing has changed since {built.output} was built" in watcher.notes
    assert watcher.stages == [("Loading", None)]


def test_a_moved_folder_is_reported_where_it_is(demo: Path, earlier: Path) -> None:
    again = build(demo / "model.onnx", output=earlier)
    assert again.reused == ("everything",)
    assert again.output == str(earlier)


def test_a_changed_gate_uses_ranges_and_engine_again(demo: Path, built: Report, earlier: Path) -> None:
    spec = read_spec(demo / "model.toml")
    spec = replace(spec, evaluation=replace(spec.evaluation, samples=64))
    watcher = RecordingWatcher()
    changed = build(
        demo / "model.onnx",
        spec=replace(spec, accuracy=AccuracySpec(min_cosine=0.98)),
        output=earlier,
        watcher=watcher,
    )
    assert changed.reused == ("ranges", "engine")
    assert set(changed.timings_s) == {"quantize", "compare"}
    assert (changed.calibration, changed.engine) == (built.calibration, built.engine)
    # Two builds never give the same bytes, so equal bytes were copied.
    assert hash_file(earlier / "model.engine") == hash_file(Path(built.output) / "model.engine")
    assert [text for text, _ in watcher.stages] == ["Loading", "Quantizing", "Comparing"]
    assert verify(earlier).is_intact


def test_a_changed_target_uses_the_ranges_again(small: Path) -> None:
    spec = replace(spec_of(small), quantization=replace(spec_of(small).quantization, activations="symmetric"))
    first = build(small, spec=spec, target=WITHOUT_ENGINE)
    target = Target(compute_capabilities=("8.9",), high_precision="fp32")
    changed = build(small, spec=spec, target=target)
    assert changed.reused == ("ranges",)
    assert changed.calibration == first.calibration
    assert (first.engine.targets, changed.engine.targets) == ((), ("8.9",))
    assert set(changed.timings_s) == {"quantize", "build", "compare"}
    halves = build(small, spec=spec, target=replace(target, high_precision="fp16"))
    assert halves.reused == ()  # what overflows in FP16 was not watched for


def test_a_changed_method_calibrates_again(small: Path) -> None:
    spec = spec_of(small)
    folder = Path(build(small, spec=spec, target=WITHOUT_ENGINE).output)
    before = read_ranges(folder / "ranges.json")
    spec = replace(
        spec, calibration=replace(spec.calibration, method="percentile", parameters={"percentile": 90.0})
    )
    changed = build(small, spec=spec, target=WITHOUT_ENGINE)
    assert changed.reused == ()
    assert changed.calibration is not None
    assert changed.calibration.method == "percentile(percentile=90.0)"
    assert read_ranges(folder / "ranges.json").tensors != before.tensors


def _cut(folder: Path) -> None:
    content = (folder / "model.int8.onnx").read_bytes()
    (folder / "model.int8.onnx").write_bytes(content[:-1])


def _change_ranges(folder: Path) -> None:
    text = (folder / "ranges.json").read_text()
    assert '"num_samples": 16' in text
    (folder / "ranges.json").write_text(text.replace('"num_samples": 16', '"num_samples": 17'))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_cut, id="a cut model"),
        pytest.param(_change_ranges, id="edited ranges"),
        pytest.param(lambda folder: (folder / "model.fp16.onnx").unlink(), id="a missing model"),
        pytest.param(lambda folder: (folder / "manifest.json").write_text("{"), id="a broken manifest"),
        pytest.param(lambda folder: (folder / "report.json").write_text("{}"), id="a broken report"),
    ],
)
def test_a_damaged_folder_is_built_again_whole(small: Path, spoil: Any) -> None:
    folder = Path(build(small, spec=spec_of(small), target=WITHOUT_ENGINE).output)
    names = set(digests(folder))
    spoil(folder)
    again = build(small, spec=spec_of(small), target=WITHOUT_ENGINE)
    assert again.reused == ()
    assert set(again.timings_s) >= {"calibrate", "quantize", "build", "compare"}
    assert set(digests(folder)) == names
    assert verify(folder).is_intact


def test_data_from_a_script_is_never_taken_for_unchanged(small: Path) -> None:
    script = small.parent / "feeds.py"
    script.write_text(
        "import numpy as np\ndef feeds():\n    yield {'x': np.ones((1, 3, 8, 8), np.float32)}\n"
    )
    spec = ModelSpec(calibration=CalibrationSpec(data=f"{script}:feeds"))
    build(small, spec=spec, target=WITHOUT_ENGINE)
    assert build(small, spec=spec, target=WITHOUT_ENGINE).reused == ()


# Failures leave nothing behind


def test_a_failed_build_leaves_nothing(small: Path) -> None:
    output = small.parent / "deep" / "out"
    with pytest.raises(BuildError, match="no tactics to implement the operation within workspace limit"):
        build(small, spec=spec_of(small), target=Target(workspace_bytes=1), output=output)
    assert not output.exists()
    assert left_beside(output) == []


def test_a_failed_build_leaves_the_earlier_one_as_it_was(small: Path) -> None:
    folder = Path(build(small, spec=spec_of(small)).output)
    before = digests(folder)
    with pytest.raises(BuildError):
        build(small, spec=spec_of(small), target=Target(workspace_bytes=1))
    assert digests(folder) == before
    assert left_beside(folder) == []


def test_bad_evaluation_data_leaves_nothing(small: Path) -> None:
    spec = replace(
        spec_of(small), evaluation=EvaluationSpec(data=str(small.parent / "data.npz"), labels="labels")
    )
    with pytest.raises(DataError, match="has no labels 'labels'; it has x"):
        build(small, spec=spec, target=WITHOUT_ENGINE)
    assert not (small.parent / "small.trtq").exists()
    assert left_beside(small.parent / "small.trtq") == []


def test_an_invalid_model_of_our_own_making_is_told_as_our_fault(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, *_: Any, **__: Any) -> MixedModel:
        model = graph.model.clone()
        model.graph[0].op_type = "Nonsense"
        return MixedModel(model)

    monkeypatch.setattr("trtq.pipeline.build.models.quantize_graph", broken)
    with pytest.raises(BuildError, match=r"trtq made an invalid model\.int8\.onnx, which is its fault"):
        build(small, spec=spec_of(small))
    assert not (small.parent / "small.trtq").exists()


_KILLED = """
import sys, time
from pathlib import Path
import trtq
from trtq.progress import Silent

class Hanging(Silent):
    def stage(self, text, total=None):
        if text == "Comparing":
            print("now", flush=True)
            time.sleep(600)

spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=sys.argv[2], method="minmax"))
trtq.build(sys.argv[1], spec=spec, watcher=Hanging())
"""


@pytest.mark.slow
def test_a_killed_build_leaves_the_earlier_one_and_the_next_clears_what_is_left(
    small: Path, torchless: str
) -> None:
    folder = Path(build(small, spec=spec_of(small)).output)
    before = digests(folder)
    command = [sys.executable, "-c", _KILLED, str(small), str(small.parent / "data.npz")]
    environment = {**os.environ, "PYTHONPATH": torchless}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert digests(folder) == before
    assert verify(folder).is_intact
    assert len(left_beside(folder)) == 1
    spec = replace(spec_of(small), accuracy=AccuracySpec(min_cosine=0.5))
    assert build(small, spec=spec).reused == ("ranges", "engine")
    assert left_beside(folder) == []


# The output folder


def test_the_output_may_be_a_text_and_its_parents_are_made(small: Path) -> None:
    output = small.parent / "a" / "b"
    report = build(str(small), spec=spec_of(small), target=WITHOUT_ENGINE, output=str(output))
    assert report.output == str(output)
    assert (output / "manifest.json").is_file()


def test_a_folder_of_other_files_is_not_overwritten(small: Path) -> None:
    output = small.parent / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not empty and was not written by trtq; choose another"):
        build(small, spec=spec_of(small), target=WITHOUT_ENGINE, output=output)
    assert (output / "thesis.txt").read_text() == "years of work"


def test_an_output_folder_that_holds_the_model_or_its_data_is_refused(small: Path) -> None:
    output = Path(build(small, spec=spec_of(small), target=WITHOUT_ENGINE).output)
    inside = output / "model.fp16.onnx"
    with pytest.raises(
        UsageError, match=r"model\.fp16\.onnx is inside the output folder .*small\.trtq, which"
    ):
        build(inside, spec=spec_of(small), target=WITHOUT_ENGINE, output=output)
    data = shutil.copy(small.parent / "data.npz", output / "data.npz")
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    with pytest.raises(UsageError, match=r"data\.npz is inside the output folder"):
        build(small, spec=spec, target=WITHOUT_ENGINE)
    assert inside.is_file()


def test_a_changed_metric_is_asked_again(small: Path) -> None:
    script = small.parent / "own.py"
    script.write_text("def f(outputs, labels):\n    return 0.75\n")
    spec = replace(spec_of(small), accuracy=AccuracySpec(metric=f"{script}:f"))
    first = build(small, spec=spec, target=WITHOUT_ENGINE)
    assert first.accuracy == dict.fromkeys(("fp32", "fp16", "int8", "engine"), 0.75)
    assert first.metric == f"{script}:f"
    assert build(small, spec=spec, target=WITHOUT_ENGINE).reused == ("ranges", "engine")
    (small.parent / "rule.py").write_text("SCORE = 0.625\n")
    script.write_text("from rule import SCORE\ndef f(outputs, labels):\n    return SCORE\n")
    assert build(small, spec=spec, target=WITHOUT_ENGINE).accuracy["fp32"] == 0.625
    (small.parent / "rule.py").write_text("SCORE = 0.25  # the script itself is the same\n")
    assert build(small, spec=spec, target=WITHOUT_ENGINE).accuracy["fp32"] == 0.25
    script.write_text("def f(outputs, labels):\n    return 0.5\n")
    again = build(small, spec=spec, target=WITHOUT_ENGINE)
    assert (again.accuracy["fp32"], again.reused) == (0.5, ("ranges", "engine"))
    script.write_text("def f(outputs, labels):\n    return -outputs['y'].max() + error\n")
    with pytest.raises(DataError, match=r"own\.py:f failed on the outputs of fp32: NameError"):
        build(small, spec=spec, target=WITHOUT_ENGINE)
