"""`trtq build-all` as a user runs it: exit code, table and summary."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command_line import trtq

from trtq.cli.build_summary import find_worst
from trtq.errors import ArtifactError
from trtq.pipeline.build_all import CommandJob, CommandOutcome, Limits
from trtq.pipeline.deliver.manifest import read_manifest

Ended = Callable[[int, CommandOutcome], None]
THREE = """
[defaults]
backend = "onnxruntime"
calib-samples = 16
eval-samples = 16
repair = ["none"]

[[build]]
model = "model.onnx"

[[build]]
model = "model.onnx"
output = "strict.trtq"
min-cosine = 1.0

[[build]]
model = "broken.onnx"
"""


@pytest.fixture(scope="module")
def folder(demo_folder: Path, torchless: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three builds, done: one good, one that fails its gate, one of a file that is no model."""
    folder = tmp_path_factory.mktemp("builds")
    shutil.copytree(demo_folder, folder, dirs_exist_ok=True)
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "trtq.toml").write_text(THREE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", torchless)
        files = ("--summary", folder / "ci.md", "--junit", folder / "ci.xml")
        result = trtq("build-all", folder / "trtq.toml", "--jobs", "2", *files)
    assert result.exit_code == 2
    (folder / "stdout.txt").write_text(result.stdout)
    (folder / "stderr.txt").write_text(result.stderr)
    return folder


def summary(folder: Path) -> list[dict[str, Any]]:
    document = json.loads((folder / "summary.json").read_bytes())
    assert (document["schema_version"], document["kind"]) == (2, "trtq build-all")
    builds: list[dict[str, Any]] = document["builds"]
    return builds


def test_a_failure_is_its_own_and_the_exit_code_the_worst(folder: Path) -> None:
    good, strict, broken = summary(folder)
    assert [(item["name"], item["state"], item["exit_code"]) for item in (good, strict, broken)] == [
        ("model", "pass", 0), ("strict", "gate failed", 3), ("broken", "bad input", 2),
    ]  # fmt: skip
    assert good["backend"].startswith("onnxruntime ")
    assert good["layers"][1] == 11
    assert good["min_cosine"] > 0.99
    assert "the accuracy gate failed: output 'logits' has cosine" in strict["error"]
    assert broken["error"].startswith(f"{folder / 'broken.onnx'} is not an ONNX model")
    assert (folder / "model.trtq" / "report.json").is_file()
    assert (folder / "strict.trtq" / "report.json").is_file()


def test_the_table_has_a_line_for_each(folder: Path) -> None:
    lines = [" ".join(line.split()) for line in (folder / "stdout.txt").read_text().splitlines()]
    assert any(line.startswith("model PASS int8 onnxruntime") for line in lines)
    assert any(line.startswith("strict GATE FAILED int8 onnxruntime") for line in lines)
    assert any(line.startswith("broken BAD INPUT") for line in lines)
    assert any(line.startswith("strict: the accuracy gate failed") for line in lines)
    assert lines[-1] == f"written to {folder / 'summary.json'} and {folder / 'index.json'}"
    told = (folder / "stderr.txt").read_text()
    assert "note: model has begun\n" in told
    assert "note: strict: gate failed after" in told


def test_a_job_of_ci_gets_the_table_and_a_test_case_for_each(folder: Path) -> None:
    lines = (folder / "ci.md").read_text().splitlines()
    assert lines[0] == f"### ERROR: trtq build-all {folder}/trtq.toml".replace("_", "\\_")
    assert [line.split(" | ")[:3] for line in lines[4:]][:2] == [
        ["| model", "PASS", "int8"], ["| strict", "GATE FAILED", "int8"]
    ]  # fmt: skip
    cases = list(ElementTree.parse(folder / "ci.xml").iter("testcase"))
    told = [(case.attrib["name"], case[0].tag) for case in cases]
    assert told == [("model", "system-out"), ("strict", "failure"), ("broken", "error")]
    assert "is not an ONNX model" in (cases[2][0].text or "")


def test_quiet_tells_failures_only_and_a_build_that_is_too_large_is_warned_of(folder: Path) -> None:
    (folder / "one.toml").write_text('[[build]]\nmodel = "broken.onnx"\n')
    arguments = ("--output", folder / "one.json", "--memory", "1M", "-q")
    result = trtq("build-all", folder / "one.toml", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "warning: broken may need 1.6 GB, more than the 1.0 MB available" in result.stderr
    assert "broken: bad input: " in result.stderr
    assert "note:" not in result.stderr


def test_a_wrong_file_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "trtq.toml").write_text('[[build]]\nmodel = "a.onnx"\nint9 = true\n')
    result = trtq("build-all", tmp_path / "trtq.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / 'trtq.toml'} cannot be built: "
        "build 1 (a.onnx): unknown key 'int9'; is it int8? | "
        f"build 1 (a.onnx): there is no model {tmp_path / 'a.onnx'}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["trtq.toml"]


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON"])
def test_a_summary_of_something_else_is_not_written_over(content: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    result = trtq("build-all", folder / "trtq.toml", "--output", tmp_path / "mine.json")
    assert result.exit_code == 2
    assert "mine.json is not a summary of trtq; choose another file with --output" in result.stderr
    assert (tmp_path / "mine.json").read_text() == content


def test_a_summary_that_cannot_be_written_stops_no_build(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise ArtifactError(f"cannot write {path}: No space left on device")

    def fail(
        jobs: Sequence[CommandJob], limits: Limits, started: Any, ended: Callable[[int, CommandOutcome], None]
    ) -> None:
        for number in range(len(jobs)):
            ended(number, CommandOutcome(2, "", "error: it is bad\n", 0.1))

    monkeypatch.setattr("trtq.cli.build_run.write_atomically", refuse)
    monkeypatch.setattr("trtq.cli.build_all.run_jobs", fail)
    (folder / "two.toml").write_text('[[build]]\nmodel = "broken.onnx"\n' * 2 + 'output = "second.trtq"\n')
    result = trtq("build-all", folder / "two.toml", "--output", folder / "two.json")
    assert result.exit_code == 2
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert [line[:16] for line in lines if "BAD INPUT" in line] == ["broken BAD INPUT", "second BAD INPUT"]
    assert "written to" not in result.stdout
    assert result.stderr.endswith(f"error: cannot write {folder / 'two.json'}: No space left on device\n")


def test_no_memory_is_no_budget(folder: Path) -> None:
    result = trtq("build-all", folder / "trtq.toml", "--memory", "0")
    assert result.exit_code == 2
    assert "--memory must be at least 1 byte, got 0" in result.stderr


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 5], 5), ([5, 4, 0], 4), ([4, -9, 0], 1)]
)
def test_the_worst_exit_code_wins(codes: list[int], code: int) -> None:
    assert find_worst(codes) == code


def test_a_crash_is_told_with_its_last_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = 'import os, sys; sys.stderr.write("last words"); sys.stderr.flush(); os.abort()'
    monkeypatch.setattr("trtq.pipeline.build_all._START", start)
    result = trtq("build-all", folder / "trtq.toml", "--output", folder / "crash.json", "--json")
    assert result.exit_code == 1
    assert [
        (item["state"], item["exit_code"], item["error"]) for item in json.loads(result.stdout)["builds"]
    ] == [("crashed", -signal.SIGABRT, "last words")] * 3


def _is_running(process: str) -> bool:
    """Returns whether a process is there, and not merely waited for by nobody."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_builds_of_a_killed_run_end_too_and_the_next_one_goes_on(
    demo_folder: Path, torchless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", torchless)
    shutil.copytree(demo_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "slow.py").write_text(
        "import time\nimport numpy as np\n\ndef feeds():\n    for _ in range(10_000):\n"
        '        yield {"image": np.zeros((1, 1, 8, 8), np.float32)}\n        time.sleep(0.02)\n'
    )
    two = """
        [defaults]
        backend = "onnxruntime"
        eval-samples = 16
        calib-method = "entropy"
        repair = ["none"]
        [[build]]
        model = "model.onnx"
        calib-samples = 16
        [[build]]
        model = "model.onnx"
        output = "b"
        """
    (tmp_path / "trtq.toml").write_text(f'{two}calib-data = "slow.py:feeds"\n')
    command = [sys.executable, "-m", "trtq", "build-all", str(tmp_path / "trtq.toml"), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "index.json").exists():  # the last that is written after a build
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    while _is_running(child):
        time.sleep(0.05)  # it ends by itself, and leaves nothing half
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert [item["state"] for item in summary(tmp_path)] == ["pass", "pending"]
    built = read_manifest(tmp_path / "model.trtq").keys
    (tmp_path / "trtq.toml").write_text(two)
    assert trtq("build-all", tmp_path / "trtq.toml").exit_code == 0
    assert [(item["state"], item["reused"]) for item in summary(tmp_path)] == [
        ("pass", ["everything"]), ("pass", []),
    ]  # fmt: skip
    assert read_manifest(tmp_path / "model.trtq").keys == built
