"""`trtq export` as a user runs it: in a process of its own, in the folder of the user's modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trtq.cli import main

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")


def export(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from trtq.cli import main; main()", "export", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_modules_called_like_ours_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pipeline.py").write_text(
        "from torch import nn\ndef net(): return nn.Linear(3, 2)\n"
    )
    done = export(tmp_path, "models.pipeline:net", "--input", "x:Nx3", "-o", "net.onnx", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["path"], told["settings"], told["compared"], told["nodes"]) == ("net.onnx", "net.toml", 4, 1)
    assert told["difference"] <= 1e-4
    assert (tmp_path / "net.onnx").exists()


def test_what_was_written_and_how_near_it_is_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown_nets.py").write_text("from torch import nn\ndef net(): return nn.Linear(3, 2)\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["export", "shown_nets:net", "--input", "x:Nx3", "-o", "net.onnx"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    first, second, third = result.stdout.splitlines()
    assert first.startswith("written to net.onnx  ")
    assert first.endswith(" bytes  1 node")
    assert second == "settings in net.toml"
    assert third.startswith("PyTorch and ONNX differ by at most ")
    quiet = CliRunner().invoke(main, [*arguments, "-q"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["export", "nets:net", "--input", "x:Nx3", "-o", "net.onnx"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: 'nets:net' does not import: ModuleNotFoundError: No module named 'nets'"
    )
    assert len(done.stderr.splitlines()) == 1
