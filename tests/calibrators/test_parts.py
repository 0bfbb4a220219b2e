"""Tests of a pass whose parts several workers observe: it is that of one process, to the last bit."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pickled_workers import Pickled
from recording_watcher import RecordingWatcher

import trtq
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.parts import choose_num_parts
from trtq.calibrators.ranges import ranges_to_json
from trtq.calibrators.sources import make_random_batches, open_batches
from trtq.calibrators.statistics_file import statistics_to_bytes
from trtq.errors import ArtifactError, DataError, UsageError
from trtq.models.signature import TensorSpec
from trtq.pipeline.calibrate import calibrate, observe, open_calibration
from trtq.pipeline.calibrate.data import ObserveOptions
from trtq.pipeline.sensitivity import sensitivity
from trtq.workers import Processes, Shared


@pytest.fixture
def spec(demo_folder: Path) -> trtq.ModelSpec:
    return trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(demo_folder / "calibration.npz"), samples=96),
        evaluation=trtq.EvaluationSpec(data=str(demo_folder / "evaluation.npz"), labels="labels", samples=16),
    )


def test_parts_add_up_to_the_pass_of_one_process(demo_folder: Path, spec: trtq.ModelSpec) -> None:
    workers = Pickled()
    seen = observe(demo_folder / "model.onnx", spec=spec, how=ObserveOptions(workers=workers))
    assert workers.done == [1, 2, 3, 4, 5, 6, 7, 8]
    assert statistics_to_bytes(seen) == statistics_to_bytes(observe(demo_folder / "model.onnx", spec=spec))


def test_a_worker_opens_its_sessions_once_for_all_its_parts(
    demo_folder: Path, spec: trtq.ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = list[str](), onnxruntime.InferenceSession

    def open_counted(*given: Any, **options: Any) -> Any:
        opened.append("session")
        return real(*given, **options)

    subject, workers = open_calibration(demo_folder / "model.onnx", spec=spec), Pickled()
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_counted)
    subject.observe(ObserveOptions(workers=workers), RecordingWatcher())
    assert (len(workers.done), len(opened)) == (8, 2)  # one for the first feed, one for all of them


def test_there_are_no_more_parts_than_feeds(demo_folder: Path, spec: trtq.ModelSpec) -> None:
    workers = Pickled()
    spec = replace(spec, calibration=replace(spec.calibration, samples=24))
    observe(demo_folder / "model.onnx", spec=spec, how=ObserveOptions(workers=workers))
    assert workers.done == [1, 2, 3]


@pytest.mark.parametrize(("num_files", "parts"), [(0, 8), (1, 8), (2, 2), (5, 5), (9, 8)])
def test_a_part_has_files_of_its_own_where_there_are_as_many_as_workers(num_files: int, parts: int) -> None:
    files = tuple(partial(iter, [Feed({}, f"file {index}", 1)]) for index in range(num_files))
    batches = Batches(partial(iter, []), "shards", None, feed_samples=1, files=files)
    assert choose_num_parts(Pickled(), batches) == parts


def test_choices_are_those_of_one_process(demo_folder: Path, spec: trtq.ModelSpec) -> None:
    workers = Pickled()
    found = calibrate(demo_folder / "model.onnx", spec=spec, how=ObserveOptions(workers=workers))
    assert ranges_to_json(found) == ranges_to_json(calibrate(demo_folder / "model.onnx", spec=spec))
    assert len(workers.done) > 8  # trials too


def test_layers_are_measured_by_workers(demo_folder: Path, tmp_path: Path, spec: trtq.ModelSpec) -> None:
    spec = replace(spec, quantization=trtq.QuantizationSpec(effort="quick"))
    model, workers = demo_folder / "model.onnx", Pickled()
    found = sensitivity(model, spec=spec, output=tmp_path / "a.json", workers=workers)
    assert found == sensitivity(model, spec=spec, output=tmp_path / "b.json")
    groups = [item for item in workers.done if isinstance(item, dict)]
    assert sum(name.startswith("alone: ") for group in groups for name in group) == found.num_layers


def test_a_metric_of_the_users_own_is_computed_here(
    demo_folder: Path, tmp_path: Path, spec: trtq.ModelSpec
) -> None:
    (tmp_path / "metric.py").write_text("def score(outputs, labels): return 0.5\n")
    own = trtq.AccuracySpec(metric=f"{tmp_path / 'metric.py'}:score")
    evaluation = replace(spec.evaluation, samples=8)
    spec = replace(
        spec, accuracy=own, evaluation=evaluation, quantization=trtq.QuantizationSpec(effort="quick")
    )
    workers = Pickled()
    found = sensitivity(demo_folder / "model.onnx", spec=spec, output=tmp_path / "a.json", workers=workers)
    assert found.float_score == 0.5
    assert not any(isinstance(item, dict) for item in workers.done)


def test_an_interrupted_pass_goes_on_with_the_parts_that_are_missing(
    demo_folder: Path, tmp_path: Path, spec: trtq.ModelSpec
) -> None:
    model, path = demo_folder / "model.onnx", tmp_path / "c.npz"
    how = ObserveOptions(checkpoint=path, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        observe(model, spec=spec, how=replace(how, workers=Pickled(most=3)))
    workers = Pickled()
    seen = observe(model, spec=spec, how=replace(how, workers=workers))
    assert workers.done == [4, 5, 6, 7, 8]
    assert statistics_to_bytes(seen) == statistics_to_bytes(observe(model, spec=spec))


def test_a_checkpoint_of_one_process_is_refused(
    demo_folder: Path, tmp_path: Path, spec: trtq.ModelSpec
) -> None:
    path = tmp_path / "c.npz"
    seen = observe(demo_folder / "model.onnx", spec=spec)
    path.write_bytes(statistics_to_bytes(replace(seen, feeds=dict.fromkeys(seen.histograms, 3))))
    words = (
        r"c\.npz is of a pass by one process, which was interrupted; let the same command finish it without"
    )
    with pytest.raises(ArtifactError, match=words):
        observe(demo_folder / "model.onnx", spec=spec, how=ObserveOptions(checkpoint=path, workers=Pickled()))


def test_a_worker_that_sees_other_data_is_refused(
    demo_folder: Path, tmp_path: Path, spec: trtq.ModelSpec
) -> None:
    path = tmp_path / "data.npz"
    image = np.load(demo_folder / "calibration.npz")["image"][:32]
    np.savez(path, image=image)

    @dataclass
    class Elsewhere(Pickled):
        def share(self, value: Any) -> Shared[Any]:
            _ = value.batches.digest
            np.savez(path, image=image[::-1])
            return super().share(value)

    spec = replace(spec, calibration=trtq.CalibrationSpec(data=str(path)))
    words = (
        r"^part 1 as its worker reads it is of another data than the data as it is read here: .*data\.npz \("
    )
    with pytest.raises(ArtifactError, match=words):
        observe(demo_folder / "model.onnx", spec=spec, how=ObserveOptions(workers=Elsewhere()))


def test_a_script_that_is_read_by_many_is_warned_of(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for _ in range(3):\n"
        "        yield {'image': np.ones((4, 1, 8, 8), 'float32')}\n"
    )
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=f"{tmp_path / 'data.py'}:feeds"))
    log = RecordingWatcher()
    how = ObserveOptions(workers=Pickled())
    assert observe(demo_folder / "model.onnx", spec=spec, how=how, watcher=log).num_samples == 12
    assert any("must yield the same feeds every time" in text for text in log.warnings)


def test_one_part_is_not_shared(demo_folder: Path, spec: trtq.ModelSpec) -> None:
    with pytest.raises(
        UsageError, match=r"^shard 1/2 is one part of the data, and --workers share all parts"
    ):
        ObserveOptions(shard=(1, 2), workers=Processes(2))


def test_data_is_opened_again_by_those_who_share_it(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", "float32", ("N", 2))]
    np.savez(tmp_path / "d.npz", x=np.arange(12, dtype=np.float32).reshape(6, 2))
    batches = open_batches(str(tmp_path / "d.npz"), inputs, 2).first(4)
    again = pickle.loads(pickle.dumps(batches))
    assert [feed.arrays["x"].tolist() for feed in again] == [feed.arrays["x"].tolist() for feed in batches]
    assert (again.digest, again.num_samples) == (batches.digest, 4)
    assert pickle.loads(pickle.dumps(again)).digest == batches.digest
    made_up = make_random_batches(inputs, {"x": (3, 2)}, 2)
    first, second = (next(iter(item)).arrays["x"] for item in (made_up, pickle.loads(pickle.dumps(made_up))))
    np.testing.assert_array_equal(first, second)


def test_data_that_only_this_process_has_is_not_shared(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", "float32", ("N", 2))]
    np.savez(tmp_path / "d.npz", x=np.ones((4, 2), np.float32))
    batches = open_batches(str(tmp_path / "d.npz"), inputs, 2).changed(lambda feeds: feeds)
    with pytest.raises(
        DataError, match=r"d\.npz is known to this process alone, so that no other can read it"
    ):
        pickle.dumps(batches)
