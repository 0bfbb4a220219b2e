"""The examples run as their pages say, and show what they are there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import trtq

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_every_example_has_its_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "diffusion.py", "qat_digits.py", "quantize.ipynb",
    }  # fmt: skip


@pytest.mark.slow
def test_fine_tuning_brings_back_what_ptq_loses(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "qat_digits.py"), "--output", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    *models, summary = process.stdout.splitlines()
    percent = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in models}
    assert percent.keys() == {"float", "PTQ", "QAT"}
    lost, recovered = percent["float"] - percent["PTQ"], percent["QAT"] - percent["PTQ"]
    assert percent["float"] > 95
    assert lost > 10
    assert recovered > 0.8 * lost
    found = re.fullmatch(r"PTQ loses (\S+) points; QAT recovers (\d+)% of them in \d+ s", summary)
    assert found, summary
    assert float(found[1]) == pytest.approx(lost, abs=0.1)
    assert int(found[2]) == pytest.approx(100 * recovered / lost, abs=1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "calibration.npz", "float.onnx", "ptq.onnx", "qat.onnx",
    }  # fmt: skip


@pytest.mark.slow
def test_ranges_of_all_time_steps_beat_those_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "diffusion.py"), "--output", str(tmp_path), "--steps", "60"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    _, *lines = process.stdout.splitlines()
    text = r"(.*): (\w+); directions (\S+) dB, step by step ([\d ]+); pictures (\S+) dB"
    matches = [re.fullmatch(text, line) for line in lines]
    (every, _, *all_steps), (first, _, *first_step) = (found.groups() for found in matches if found)
    assert (every, first) == ("all steps", "first step")
    assert float(all_steps[0]) > float(first_step[0]) + 2
    assert float(all_steps[2]) > float(first_step[2]) + 2
    assert len(all_steps[1].split()) == 20
    skipped = trtq.read_report(tmp_path / "all-steps.trtq").kept_float
    assert {"norm_out/Gemm", "proj_out/MatMul"} <= {node.name for node in skipped}


class _Client(NotebookClient):
    """Runs the cells of a notebook in a kernel, and keeps what each drawing showed as text."""

    def process_message(self, msg: dict[str, Any], *place: Any) -> Any:
        """Keeps a drawing and passes it on."""
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.drawn = [*getattr(self, "drawn", []), msg["content"]["data"]["text/plain"]]
        return super().process_message(msg, *place)


@pytest.mark.slow
def test_the_notebook_runs_draws_a_bar_and_shows_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    library: Any = nbformat  # which has no types
    notebook = library.read(EXAMPLES / "quantize.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)  # none are kept in the file
    warn = "from trtq.progress import choose_watcher\nchoose_watcher(None).warn('a < b')"
    notebook.cells.append(library.v4.new_code_cell(warn))
    client = _Client(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert {"Loading", "Calibrating 512 of 512", "Comparing 128 of 128"} <= {*client.drawn}
    bar, report = cells[1].outputs
    assert (client.drawn[-3], bar.data["text/plain"], bar.data["text/html"]) == ("", "", "<div></div>")
    assert notebook.cells[-1].outputs[0].data["text/html"] == "<div></div><div>warning: a &lt; b</div>"
    assert report.data["text/html"].startswith("<p><b>PASS</b> demo/model.onnx in INT8 by onnxruntime ")
    assert "pass" in cells[2].outputs[0].data["text/plain"]
    assert "0.99" in cells[3].outputs[0].data["text/plain"]
    assert cells[4].outputs[0].data["text/plain"].count("'Conv'") >= 3
