"""A build that is told to stop clears up behind itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trtq.models.demo import write_demo

_SLOW = """
import time
import numpy as np

def feeds():
    print("calibrating", flush=True)
    for _ in range(10_000):
        yield {"image": np.zeros((1, 1, 8, 8), np.float32)}
        time.sleep(0.01)
"""

_STOPPED_IN_A_FINALIZER = """
import os
import signal
import time
import numpy as np

is_stopped = False

def feeds():
    try:
        for _ in range(500):
            yield {"image": np.zeros((1, 1, 8, 8), np.float32)}
            time.sleep(0.01)
    finally:
        global is_stopped
        if not is_stopped:
            is_stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
"""


_STOPPED_IN_EXEC = """
import numpy as np

def feeds():
    yield {"image": np.zeros((1, 1, 8, 8), np.float32)}
    exec("raise KeyboardInterrupt")
"""


def _interruptible() -> None:
    """Lets SIGINT interrupt the child, though a shell that runs the tests in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_leaves_nothing_and_shows_no_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    write_demo(tmp_path)
    (tmp_path / "slow.py").write_text(_SLOW)
    before = sorted(path.name for path in tmp_path.iterdir())
    command = "from trtq.cli import main; main()"
    arguments = ["build", str(tmp_path / "model.onnx"), "--calib-data", f"{tmp_path / 'slow.py'}:feeds"]
    with subprocess.Popen(
        [sys.executable, "-B", "-c", command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "calibrating\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Aborted!" in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("code", [_STOPPED_IN_A_FINALIZER, _STOPPED_IN_EXEC])
def test_an_interruption_counts_wherever_it_comes(tmp_path: Path, code: str) -> None:
    """Python drops one within a generator that is cleared away, and ends by SIGINT after one in `exec`."""
    write_demo(tmp_path)
    (tmp_path / "stopped.py").write_text(code)
    data = f"{tmp_path / 'stopped.py'}:feeds"
    done = subprocess.run(
        [sys.executable, "-m", "trtq", "calibrate", str(tmp_path / "model.onnx"), "--calib-data", data],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("Aborted!\n")
    assert "KeyboardInterrupt" not in done.stderr
    assert "Traceback" not in done.stderr
