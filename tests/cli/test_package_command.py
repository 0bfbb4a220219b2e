"""`trtq package` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import trtq


@pytest.fixture(scope="module")
def folder(demo_onnxruntime: Path) -> Path:
    return demo_onnxruntime / "model.trtq"


def test_a_version_is_added_and_told(folder: Path, tmp_path: Path) -> None:
    result = trtq("package", folder, "--triton", tmp_path / "models", "--name", "digits")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if line.strip(" ─")]
    assert lines == ["model version", "digits 1 new", f"in {tmp_path / 'models'}"]
    result = trtq("package", folder, "--triton", tmp_path / "models", "--name", "digits", "--max-batch", "0")
    assert result.exit_code == 2
    assert "max_batch_size is 8, not 0" in result.stderr


def test_the_result_is_json_for_machines(folder: Path, tmp_path: Path) -> None:
    arguments = ["--name", "digits", "--max-batch", "0", "--serve-versions", "all", "--json"]
    result = trtq("package", folder, "--triton", tmp_path / "models", *arguments)
    assert json.loads(result.stdout) == {
        "repository": str(tmp_path / "models"),
        "models": [{"name": "digits", "version": 1, "is_new": True, "keeps_config": False}],
        "notes": ["requests are not joined to batches: --max-batch 0"],
    }
    result = trtq("package", folder, "--triton", tmp_path / "models", *arguments[:-1], "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    result = trtq("package", folder, "--triton", tmp_path / "other", "--name", "digits", "--max-batch", "0")
    assert "note: requests are not joined to batches" in result.stdout


@pytest.mark.parametrize("text", ["-1", "two"])
def test_a_number_of_versions_is_a_number(text: str, folder: Path, tmp_path: Path) -> None:
    result = trtq("package", folder, "--triton", tmp_path / "models", "--serve-versions", text)
    assert result.exit_code == 2
    assert f"--serve-versions is a number or all, got '{text}'" in result.stderr


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    result = trtq("package", tmp_path, "--triton", tmp_path / "models")
    assert result.exit_code == 2
    assert "is not a build folder" in result.stderr
