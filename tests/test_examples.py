"""The examples run as their pages say, and show what they are there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_every_example_has_its_test() -> None:
    assert [path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"] == ["qat_digits.py"]


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
