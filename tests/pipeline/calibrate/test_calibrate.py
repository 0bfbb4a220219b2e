"""Statistics from stage to stage: saved, in parts, and after a real kill -9."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.calibrators import METHODS
from trtq.calibrators.data.files import LocalFile
from trtq.calibrators.ranges import ranges_to_json, read_ranges
from trtq.calibrators.statistics_file import merge_statistics, read_statistics, statistics_to_bytes
from trtq.errors import ArtifactError, MissingDependency, UsageError
from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline import calibrate as ranges
from trtq.pipeline.calibrate import calibrate, estimate_ranges, list_placed_tensors, observe
from trtq.pipeline.calibrate.data import ObserveOptions, find_spec
from trtq.pipeline.graph.load import Graph, load
from trtq.progress import Log, Silent

_MEMORY = 8 << 20
"""Does for the histograms of the demo model, and not for all its tensors at a time."""


@pytest.fixture(scope="module")
def model(demo_folder: Path) -> Path:
    return demo_folder / "model.onnx"


@pytest.fixture(scope="module")
def spec(model: Path) -> ModelSpec:
    found = find_spec(model)
    return replace(
        found,
        calibration=replace(found.calibration, samples=96, method="entropy"),
        quantization=QuantizationSpec(repair=("none",)),
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_takes_from_statistics_what_it_takes_from_the_data(
    model: Path, spec: ModelSpec, method: str, tmp_path: Path
) -> None:
    wanted = replace(spec, calibration=replace(spec.calibration, method=method))
    (tmp_path / "s.npz").write_bytes(statistics_to_bytes(observe(model, spec=spec)))
    seen = read_statistics(tmp_path / "s.npz")
    assert tuple(list_placed_tensors(seen, model, spec=wanted)) == tuple(seen.histograms)
    assert ranges_to_json(estimate_ranges(seen, spec=wanted)) == ranges_to_json(calibrate(model, spec=wanted))


def test_statistics_hold_no_rows_for_cross_entropy(model: Path, spec: ModelSpec) -> None:
    wanted = replace(spec, calibration=replace(spec.calibration, method="cross-entropy"))
    with pytest.raises(UsageError, match=r"cross-entropy needs the data: .* give --calib-data"):
        estimate_ranges(observe(model, spec=spec), spec=wanted)


@pytest.mark.parametrize("number", [2, 5, 15])
def test_parts_join_to_the_ranges_of_one_pass_bit_for_bit(model: Path, spec: ModelSpec, number: int) -> None:
    order = np.random.default_rng(number).permutation(number) + 1
    parts = [observe(model, spec=spec, how=ObserveOptions(shard=(int(index), number))) for index in order]
    merged = merge_statistics(parts, [str(index) for index in order])
    assert ranges_to_json(estimate_ranges(merged, spec=spec)) == ranges_to_json(calibrate(model, spec=spec))


def test_passes_over_the_data_give_what_one_pass_gives(model: Path, spec: ModelSpec) -> None:
    log = Log(Silent())
    in_passes = observe(model, spec=spec, how=ObserveOptions(memory_bytes=_MEMORY), watcher=log)
    assert any("passes over the data" in note for note in log.notes)
    assert in_passes == observe(model, spec=spec)


_SCRIPT = """
import os, signal
from pathlib import Path
from typing import Any
import numpy as np

def batches():
    data = np.load({data!r})["image"][:96]
    for index in range(12):
        yield {{"image": data[8 * index : 8 * index + 8]}}
        if str(index) == os.environ.get("DEADLY"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def _calibrate(model: Path, folder: Path, output: str, deadly: int, *more: str) -> tuple[int, str]:
    """Runs the command on a script that kills its process after this feed, as `kill -9` does."""
    script = folder / "feeds.py"
    script.write_text(_SCRIPT.format(data=str(model.parent / "calibration.npz")))
    command = [sys.executable, "-c", "from trtq.cli import main; main()", "calibrate", str(model)]
    command += [
        "--calib-data", f"{script}:batches", "--output", str(folder / output), "--repair", "none", *more,
    ]  # fmt: skip
    environment = {**os.environ, "DEADLY": str(deadly)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return process.returncode, process.stderr


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranges of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert _calibrate(model, folder, "whole.json", -1)[0] == 0
    return folder / "whole.json"


@pytest.mark.slow
@pytest.mark.parametrize("memory", [(), ("--calib-memory", str(_MEMORY))])
def test_after_kill_9_the_same_command_ends_with_the_identical_ranges(
    model: Path, whole: Path, tmp_path: Path, memory: tuple[str, ...]
) -> None:
    checkpoint = tmp_path / "c.npz"
    more = ("--checkpoint", str(checkpoint), "--checkpoint-seconds", "0", *memory)
    assert _calibrate(model, whole.parent, str(tmp_path / "killed.json"), 7, *more)[0] == -signal.SIGKILL
    assert not (tmp_path / "killed.json").exists()
    assert 0 < read_statistics(checkpoint).num_samples < 96
    returncode, told = _calibrate(model, whole.parent, str(tmp_path / "again.json"), -1, *more)
    assert returncode == 0, told
    assert f"note: going on from {checkpoint}: " in told
    assert read_ranges(tmp_path / "again.json") == read_ranges(whole)
    assert not checkpoint.exists()


def _checkpoint(model: Path, spec: ModelSpec, path: Path, shard: tuple[int, int] = (1, 1)) -> Path:
    seen = observe(model, spec=spec, how=ObserveOptions(shard=shard))
    path.write_bytes(statistics_to_bytes(replace(seen, feeds=dict.fromkeys(seen.histograms, 1))))
    return path


def test_a_checkpoint_of_other_data_is_refused(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    path = _checkpoint(model, spec, tmp_path / "c.npz")
    fewer = replace(spec, calibration=replace(spec.calibration, samples=40))
    with pytest.raises(ArtifactError, match=r"c.npz is of another data than this pass: .*calibration.npz"):
        observe(model, spec=fewer, how=ObserveOptions(checkpoint=path))
    assert path.exists()


def test_a_script_that_was_edited_is_other_data(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    script = tmp_path / "feeds.py"
    script.write_text(_SCRIPT.format(data=str(model.parent / "calibration.npz")))
    run = replace(spec, calibration=replace(spec.calibration, data=f"{script}:batches", samples=16))
    how, log = ObserveOptions(checkpoint=tmp_path / "c.npz"), Log(Silent())
    seen = observe(model, spec=run, how=how, watcher=log)
    assert log.warnings == [
        f"{script}:batches must yield the same feeds every time; only that the script is unchanged is checked"
    ]
    assert observe(model, spec=run, how=how) == seen
    longer = replace(run, calibration=replace(run.calibration, samples=24))
    with pytest.raises(ArtifactError, match=r"c.npz is of another data than this pass: .*feeds.py:batches"):
        observe(model, spec=longer, how=how)
    with script.open("a") as file:
        file.write("# edited")
    with pytest.raises(ArtifactError, match=r"c.npz is of another data than this pass: .*feeds.py:batches"):
        observe(model, spec=run, how=how)


def test_data_that_nothing_tells_from_other_data_has_no_checkpoint(
    model: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    feeds = [np.ones((4, 1, 8, 8), np.float32)] * 2
    run, log = replace(spec, calibration=replace(spec.calibration, data=feeds)), Log(Silent())
    with pytest.raises(
        UsageError,
        match=r"^a checkpoint of list in Python could not be told from one of other data; leave it out, or "
        r"give the data as files or as script\.py:function$",
    ):
        observe(model, spec=run, how=ObserveOptions(checkpoint=tmp_path / "c.npz"))
    assert observe(model, spec=run, how=ObserveOptions(shard=(1, 2)), watcher=log).num_samples == 4
    assert log.warnings == ["list in Python must yield the same feeds every time; nothing of it is checked"]


def test_a_checkpoint_goes_on_at_another_path_of_the_data(
    model: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    path = _checkpoint(model, spec, tmp_path / "c.npz")
    seen = read_statistics(path)
    moved = replace(seen, source=replace(seen.source, data="elsewhere.npz"))
    path.write_bytes(statistics_to_bytes(moved))
    assert observe(model, spec=spec, how=ObserveOptions(checkpoint=path)).num_samples > 0


def test_a_checkpoint_of_other_tensors_is_refused(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    path = _checkpoint(model, spec, tmp_path / "c.npz")
    other = replace(spec, layers=LayerSpec(skip=(".*",)))
    with pytest.raises(ArtifactError, match=r"is of other tensors than this pass: only .*c.npz has "):
        observe(model, spec=other, how=ObserveOptions(checkpoint=path))


def test_a_checkpoint_of_another_part_is_refused(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    path = _checkpoint(model, spec, tmp_path / "c.npz", (1, 2))
    with pytest.raises(ArtifactError, match=r"c.npz is of part 1 of the data, this pass is of part 2"):
        observe(model, spec=spec, how=ObserveOptions(checkpoint=path, shard=(2, 2)))


def test_a_checkpoint_that_is_whole_is_taken_as_it_is(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    how = ObserveOptions(checkpoint=tmp_path / "c.npz")
    seen = observe(model, spec=spec, how=how)
    assert read_statistics(tmp_path / "c.npz") == seen  # it stays until the result is kept
    log = Log(Silent())
    assert observe(model, spec=spec, how=how, watcher=log) == seen
    assert log.notes[-1] == f"{tmp_path / 'c.npz'} holds the whole pass: no data is read"


def test_a_checkpoint_cannot_give_ranges(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    seen = read_statistics(_checkpoint(model, spec, tmp_path / "c.npz"))
    with pytest.raises(ArtifactError, match=r"^the statistics are of an interrupted pass"):
        estimate_ranges(seen, spec=spec)


def test_a_part_of_the_data_cannot_give_ranges(model: Path, spec: ModelSpec) -> None:
    seen = observe(model, spec=spec, how=ObserveOptions(shard=(2, 3)))
    with pytest.raises(ArtifactError, match=r"^the statistics lack part 1, 3 of 3 of the data; observe it"):
        estimate_ranges(seen, spec=spec)


def test_statistics_of_another_model_are_refused(model: Path, spec: ModelSpec) -> None:
    seen = observe(model, spec=spec)
    other = replace(seen, source=replace(seen.source, model_sha256="0" * 64))
    with pytest.raises(ArtifactError, match=r"of another file than .*model.onnx: SHA-256 000000000000, not"):
        list_placed_tensors(other, model, spec=spec)


def test_statistics_of_fewer_tensors_are_refused_and_of_more_are_taken(model: Path, spec: ModelSpec) -> None:
    seen = observe(model, spec=spec)
    skipping = replace(spec, layers=LayerSpec(skip=(".*",)))
    assert list_placed_tensors(seen, model, spec=skipping) == {}
    with pytest.raises(ArtifactError, match=r"hold nothing of tensor .* made with other --skip"):
        list_placed_tensors(replace(seen, histograms={}), model, spec=spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "the calibration device must be cpu or cuda, got 'tpu'"),
        ({"shard": (4, 3)}, "a shard is a part and their number, such as 3/8, got 4/3"),
        ({"shard": (1, 10**40)}, f"data has at most 1,000,000 parts, got 1/{10**40}"),
        ({"shard": (0, 3)}, "a shard is a part and their number, such as 3/8, got 0/3"),
        ({"memory_bytes": 0}, "the calibration memory must be at least 1 byte, got 0"),
        ({"checkpoint_seconds": -1.0}, "the seconds between checkpoints must be a number, 0 or more, got -1"),
        ({"checkpoint_seconds": math.nan}, "between checkpoints must be a number, 0 or more, got nan"),
        ({"checkpoint_seconds": math.inf}, "between checkpoints must be a number, 0 or more, got inf"),
    ],
)
def test_a_pass_that_makes_no_sense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObserveOptions(**arguments)  # type: ignore[arg-type]


def test_a_method_that_makes_no_sense_is_told_before_the_data_is_read(model: Path) -> None:
    nothing = ModelSpec(calibration=CalibrationSpec("absent.npz", "mse", {"num_bins": 4}))
    with pytest.raises(UsageError, match="num_bins is not a parameter"):
        calibrate(model, spec=nothing)


def test_cuda_that_is_not_there_is_told(
    model: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match=r"needs ONNX Runtime's CUDAExecutionProvider, this one has"):
        observe(model, spec=spec, how=ObserveOptions(device="cuda"))


def test_a_part_that_is_empty_is_told(model: Path, spec: ModelSpec) -> None:
    log = Log(Silent())
    seen = observe(model, spec=spec, how=ObserveOptions(shard=(13, 13)), watcher=log)  # of 12 feeds
    assert seen.num_samples == 0
    assert any(text.startswith("part 13/13 of the data is empty: ") for text in log.warnings)


def test_the_model_and_the_data_are_opened_once(
    model: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    digest = LocalFile.hash

    def count_load(path: Path, **how: Any) -> Graph:
        opened.append(path)
        return load(path, **how)

    def count_digest(file: LocalFile) -> str:
        opened.append(file.path)
        return digest(file)

    monkeypatch.setattr(ranges, "load", count_load)
    monkeypatch.setattr(LocalFile, "hash", count_digest)
    calibrate(model, spec=spec)
    assert sorted(opened) == sorted([model, Path(str(spec.calibration.data))])
