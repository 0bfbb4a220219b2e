"""With --json, stdout is one JSON document, whatever the code of the user's prints and however it does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from trtq.cli import main
from trtq.cli.console import keep_stdout, print_answer

_FEEDS = """
import os, subprocess, sys
import numpy as np
print("at import")
def feeds():
    for i in range(4):
        print("by print", i)
        sys.stdout.write("by write")
        os.write(1, b"by descriptor")
        subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
        yield {"x": np.random.default_rng(i).standard_normal((8, 4)).astype("f")}
def score(outputs, labels):
    print("by a metric")
    return 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Callable[[Path], None]) -> Path:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path)
    (tmp_path / "feeds.py").write_text(_FEEDS)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "build",
            "m.onnx",
            "--int8",
            "--backend",
            "onnxruntime",
            "--repair",
            "none",
            "--metric",
            "feeds.py:score",
        ),
        ("calibrate", "m.onnx", "--output", "r.json"),
        ("sensitivity", "m.onnx"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_script_that_prints_leaves_stdout_alone(folder: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "trtq", *arguments, "--calib-method", "minmax", "--json"]
    run = subprocess.run(
        [*command, "--calib-data", "feeds.py:feeds"], capture_output=True, text=True, check=False
    )
    assert run.returncode in (0, 3), run.stderr
    assert isinstance(json.loads(run.stdout), dict)
    for text in ("at import", "by print 3", "by write", "by descriptor", "by a child"):
        assert text in run.stderr


def test_without_json_a_script_prints_where_it_likes(folder: Path) -> None:
    arguments = ("calibrate", "m.onnx", "--output", "r.json", "--calib-data", "feeds.py:feeds")
    assert "by print 3" in CliRunner().invoke(main, arguments).stdout


def test_in_this_process_too(folder: Path) -> None:
    arguments = ("calibrate", "m.onnx", "--output", "r.json", "--calib-data", "feeds.py:feeds", "--json")
    for _ in range(2):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert isinstance(json.loads(result.stdout), dict)


def test_an_error_goes_to_stderr_and_stdout_stays_empty(folder: Path) -> None:
    result = CliRunner().invoke(main, ("inspect", "gone.onnx", "--json"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


def test_stdout_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with keep_stdout():
        print("said")
        print_answer("answer\n")
    print("after")
    out, err = capfd.readouterr()
    assert (out, err) == ("answer\nafter\n", "said\n")


def test_a_closed_stderr_is_no_obstacle(folder: Path) -> None:
    line = f"{sys.executable} -m trtq inspect m.onnx --json 2>&-"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert isinstance(json.loads(run.stdout), dict)
