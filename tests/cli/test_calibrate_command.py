"""`trtq calibrate` with statistics and `trtq merge-statistics`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import trtq

from trtq.calibrators.statistics_file import read_statistics
from trtq.cli import calibrate as calibrate_module
from trtq.errors import ArtifactError


def test_statistics_give_the_same_ranges_without_the_data(model: Path, tmp_path: Path) -> None:
    saved, first, second = tmp_path / "s.npz", tmp_path / "a.json", tmp_path / "b.json"
    few = ("--calib-samples", "32", "--calib-method", "entropy", "--repair", "none")
    assert trtq("calibrate", model, *few, "-o", first, "--save-statistics", saved, "-q").exit_code == 0
    for name in ("minmax", "entropy"):
        result = trtq("calibrate", model, "--statistics", saved, "--calib-method", name, "-o", second)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"written to {second}"
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "searches"),
    [((), True), (("--calib-method", "mse"), False), (("--calib-method", "mse", "--repair", "bias"), True)],
)
def test_a_named_method_gives_ranges_and_repairs_are_searched_for_if_asked(
    demo_folder: Path, tmp_path: Path, arguments: tuple[str, ...], searches: bool
) -> None:
    output = tmp_path / "r.json"
    result = trtq("calibrate", demo_folder / "model.onnx", "--calib-samples", "32", "-o", output, *arguments)
    assert result.exit_code == 0, result.stderr
    assert ("repairs:" in result.stdout) == searches
    if not searches:
        assert json.loads(output.read_text())["method"].startswith("mse(")


def test_parts_are_joined_by_merge_statistics(model: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"{index}.npz" for index in (1, 2)]
    whole, merged = tmp_path / "whole.npz", tmp_path / "merged.npz"
    few = ("--calib-samples", "32")
    for index, part in enumerate(parts, 1):
        result = trtq("calibrate", model, *few, "--shard", f"{index}/2", "--save-statistics", part)
        assert result.exit_code == 0
        assert result.stdout == f"10 tensors over 16 samples, part {index} of 2\nwritten to {part}\n"
    result = trtq("merge-statistics", *reversed(parts), "-o", merged)
    assert (result.exit_code, result.stdout) == (0, f"10 tensors over 32 samples\nwritten to {merged}\n")
    assert trtq("merge-statistics", *parts, "-o", merged, "-q").stdout == ""
    arguments = (*few, "-o", tmp_path / "r.json", "--save-statistics", whole, "-q")
    assert trtq("calibrate", model, *arguments).exit_code == 0
    assert read_statistics(merged).histograms == read_statistics(whole).histograms


def test_a_part_is_told_as_json(model: Path, tmp_path: Path) -> None:
    part = tmp_path / "1.npz"
    few = ("--calib-samples", "32", "--shard", "1/2", "--save-statistics", part)
    assert json.loads(trtq("calibrate", model, *few, "--json").stdout) == {
        "statistics": str(part),
        "num_tensors": 10,
        "num_samples": 16,
        "shard": 1,
        "num_shards": 2,
    }


def test_a_part_that_misses_is_refused(model: Path, tmp_path: Path) -> None:
    part = tmp_path / "2.npz"
    arguments = ("--calib-samples", "32", "--shard", "2/3", "--save-statistics", part, "-q")
    assert trtq("calibrate", model, *arguments).stdout == ""
    result = trtq("merge-statistics", part, "-o", tmp_path / "m.npz")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: part 1, 3 of 3 of the data is missing; observe it with `trtq calibrate --shard 1/3`\n"
    )
    assert not (tmp_path / "m.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--shard", "3"), "'3' is not a shard; write a part and their number, such as 3/8"),
        (("--shard", "1/2"), "--shard observes a part of the data, which gives no ranges: name a file with"),
        (("--calib-memory", "much"), "'much' is not a size"),
        (("--statistics", "s.npz", "--calib-data", "d.npz"), "--calib-data has no effect with --statistics"),
        (("--statistics", "s.npz", "--checkpoint", "c.npz"), "--checkpoint has no effect with --statistics"),
        (
            ("--statistics", "s.npz", "--calib-samples", "8"),
            "--calib-samples has no effect with --statistics",
        ),
        (("--statistics", "s.npz", "--calib-batch-size", "8"), "--calib-batch-size has no effect with"),
        (("--statistics", "s.npz", "--calib-memory", "1G"), "--calib-memory has no effect with --statistics"),
        (
            ("--statistics", "s.npz", "--calib-device", "cpu"),
            "--calib-device has no effect with --statistics",
        ),
        (
            ("--shard", "1/2", "--save-statistics", "s.npz", "-o", "r.json"),
            "--output has no effect with --shard: a part of the data gives no ranges",
        ),
        (("--checkpoint-seconds", "nan"), "between checkpoints must be a number, 0 or more, got nan"),
        (("--statistics", "absent.npz"), "there are no statistics absent.npz; `trtq calibrate` writes them"),
        (("--save-statistics", "nowhere/s.npz"), "cannot write nowhere/s.npz: there is no folder"),
        (("--percentile", "7", "--calib-method", "mse"), "--percentile is for --calib-method percentile"),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = trtq("calibrate", model, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert told in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_the_sample_that_makes_a_tensor_infinite_is_named(tmp_path: Path, model: Path) -> None:
    with np.load(model.parent / "calibration.npz") as archive:
        images = archive["image"][:24].copy()
    images[21] = 3e38
    np.savez(tmp_path / "bad.npz", image=images)
    result = trtq("calibrate", model, "--calib-data", tmp_path / "bad.npz", "-o", tmp_path / "r.json")
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "of the float model, made by node '" in told
    assert "NaN or infinite values on " in told
    assert "(samples 16 to 23), in its sample 5; leave this data out or repair the model" in told


@pytest.mark.parametrize("name", ["s.npz", "./s.npz"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("--output", "--save-statistics"), ("--output", "--checkpoint"), ("--save-statistics", "--checkpoint")],
)
def test_two_outputs_in_one_file_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = trtq("calibrate", model, first, "s.npz", second, name)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert told == f"error: s.npz is given as {first} and as {second}; give each its own file"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--output", "--save-statistics"])
def test_a_folder_as_output_is_refused_before_the_pass(model: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "dd").mkdir()
    result = trtq("calibrate", model, option, tmp_path / "dd", "--checkpoint", tmp_path / "ck")
    assert result.exit_code == 2
    assert "dd: it is a folder; name a file in it" in " ".join(result.stderr.split())
    assert not (tmp_path / "ck").exists()


def test_the_checkpoint_stays_until_all_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, kept = tmp_path / "r.json", tmp_path / "ck"
    arguments = ("calibrate", model, "--calib-samples", "16", "-o", output, "--checkpoint", kept)

    def full(path: Path, data: bytes) -> None:
        raise ArtifactError(f"cannot write {path}: no room")

    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "write_atomically", full)
        assert "no room" in trtq(*arguments).stderr
    assert read_statistics(kept).num_samples == 16
    result = trtq(*arguments)
    assert result.exit_code == 0
    assert "holds the whole pass: no data is read" in " ".join(result.stderr.split())
    assert output.exists()
    assert not kept.exists()


def test_merging_does_not_overwrite_a_part(model: Path, tmp_path: Path) -> None:
    part = tmp_path / "1.npz"
    few = ("--calib-samples", "16", "--save-statistics", part, "-o", tmp_path / "r.json", "-q")
    assert trtq("calibrate", model, *few).exit_code == 0
    before = part.read_bytes()
    result = trtq("merge-statistics", part, "-o", part)
    assert result.exit_code == 2
    assert "1.npz is read by this command; choose another file" in " ".join(result.stderr.split())
    assert part.read_bytes() == before
    result = trtq("merge-statistics", tmp_path / "absent.npz", "-o", tmp_path / "nowhere" / "m.npz")
    assert "there is no folder" in " ".join(result.stderr.split())
