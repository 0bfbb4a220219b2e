"""What a person sees on a terminal, and that names are printed as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from command_line import trtq

from trtq.cli.console import ConsoleWatcher

ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose names look like rich's markup, and data for it."""
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        small (float[N,4,4,4] x) => (float[N,4,4,4] y) { y = Conv <kernel_shape = [1,1]> (x, w) }
    """)
    weight = np.eye(4, dtype=np.float32)[..., None, None]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    proto.graph.node[0].name = "conv[red]a[/]:bug:"
    proto.graph.node[0].input[0] = proto.graph.input[0].name = "in[bold]"
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "out[/nothing]"
    onnx.save(proto, tmp_path / "m.onnx")
    arrays: dict[str, Any] = {"in[bold]": np.linspace(0, 1, 576, dtype=np.float32).reshape(9, 4, 4, 4)}
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "m.onnx"


def test_names_are_printed_as_they_are(model: Path) -> None:
    output = model.parent / "[red]"
    result = trtq(
        "build", model, "--calib-data", model.parent / "d.npz", "--backend", "onnxruntime", "-o", output,
        "--skip", "a", "-v", "--opt-shapes", "in[bold]:1x4x4x4",
    )  # fmt: skip
    assert result.exit_code == 0
    for text in ("out[/nothing]", "conv[red]a[/]:bug:", "profile of in[bold]", f"written to {output}\n"):
        assert text in result.stdout
    assert "conv[red]a[/]:bug:" in trtq("inspect", model, "--placement").stdout
    ranges = model.parent / "[i]ranges.json"
    arguments = ("calibrate", model, "--calib-data", model.parent / "d.npz", "-o", ranges)
    assert f"written to {ranges}\n" in trtq(*arguments).stdout
    assert "in[bold]" in trtq("inspect", ranges).stdout
    shown = trtq("quantize", model, "--ranges", ranges, "-o", model.parent / "[b]q.onnx").stdout
    assert f"written to {model.parent / '[b]q.onnx'}  " in shown


def test_a_terminal_shows_progress_with_samples(model: Path) -> None:
    arguments = ("calibrate", model, "--calib-data", model.parent / "d.npz", "-o", model.parent / "r.json")
    plain = ("--calib-method", "minmax", "--repair", "none")
    shown = ESCAPES.sub("", trtq(*arguments, *plain, terminal=True).stderr)
    assert "Calibrating" in shown
    assert "9/9" in shown
    assert re.search(r"\d+/s", shown)


def test_no_progress_is_shown_in_a_pipe_or_when_quiet(model: Path) -> None:
    arguments = ("calibrate", model, "--calib-data", model.parent / "d.npz", "-o", model.parent / "r.json")
    assert re.fullmatch(r"note: no channels are rescaled: .*\n", trtq(*arguments).stderr)
    assert trtq(*arguments, "-q", terminal=True).stderr == ""


def test_notes_are_left_out_when_quiet_and_warnings_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a [warning] " + "of many words " * 20
    for quiet in (False, True):
        with ConsoleWatcher(quiet=quiet) as watcher:
            watcher.stage("Working", 2)
            watcher.advance(1)
            watcher.stage("Resting")
            watcher.note("a [note]")
            watcher.warn(long)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"note: a [note]\nwarning: {long}\nwarning: {long}\n"


def test_streams_that_the_caller_closed_lead_nowhere() -> None:
    code = (
        "import sys; from trtq.cli.console import open_closed_streams; assert sys.stdout is None; "
        "open_closed_streams(); print(sys.stdin.read()); "
        "sys.exit([sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()] != [0, 1, 2])"
    )
    shell = ("sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code)
    assert subprocess.run(shell, check=False).returncode == 0
