"""`trtq run`: what is run, what is printed, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import lines_of, trtq


def test_outputs_are_listed_and_written(demo_onnxruntime: Path, tmp_path: Path) -> None:
    folder, data = demo_onnxruntime / "model.trtq", demo_onnxruntime / "evaluation.npz"
    result = trtq("run", folder, "--data", data, "-o", tmp_path / "out.npz", "--samples", 20)
    assert (result.exit_code, result.stderr) == (0, "")
    *table, ran, written = lines_of(result.stdout)
    assert table == ["output dtype shape", "logits float32 (24, 10)"]
    assert ran.startswith(f"model.int8.onnx ran on 24 samples of {data}, by onnxruntime ")
    assert written == f"written to {tmp_path / 'out.npz'}"
    with np.load(tmp_path / "out.npz") as found, np.load(data) as wanted:
        assert (found["logits"].argmax(1) == wanted["labels"][:24]).mean() > 0.9


def test_json_says_what_was_run_on_how_much_and_where(demo_onnxruntime: Path) -> None:
    folder, data = demo_onnxruntime / "model.trtq", demo_onnxruntime / "evaluation.npz"
    answer = json.loads(trtq("run", folder, "--data", data, "--samples", 8, "--json").stdout)
    assert answer.pop("backend").startswith("onnxruntime ")
    assert answer == {
        "folder": str(folder),
        "file": "model.int8.onnx",
        "data": str(data),
        "num_samples": 8,
        "output": "",
        "outputs": {"logits": {"dtype": "float32", "shape": [8, 10]}},
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nothing.npz"), "nothing.npz"),
        (("--data", "evaluation.npz", "-o", "model.trtq/out.npz"), "would be inside model.trtq"),
        (("--data", "evaluation.npz", "-o", "nowhere/out.npz"), "there is no folder"),
        (("--data", "evaluation.npz", "-o", "out.csv"), "outputs are written as .npz, got out.csv"),
        (("--data", "model.toml"), "is not a kind of data that trtq reads"),
        ((), "Missing option '--data'"),
    ],
)
def test_what_cannot_be_run_ends_in_one_line(
    arguments: tuple[str, ...], told: str, demo_onnxruntime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_onnxruntime)
    result = trtq("run", "model.trtq", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
