"""Tests of candidates in processes of their own."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trtq.errors import ArtifactError, ModelError
from trtq.pipeline.bench import process as module
from trtq.pipeline.bench.process import Request, TimedProcess

X = np.ones((2, 4), np.float32)


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    return path_of("g (float[N, 4] x, float[N, 4] file) => (float[N, 4] y) { y = Add (x, file) }")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_candidate_runs_beside_us_and_ends_with_the_block(model: Path) -> None:
    with TimedProcess(Request("onnx", model, num_threads=1), {"x": X, "file": X}) as candidate:
        assert candidate.runtime.startswith("ONNX Runtime ")
        assert candidate.shapes == {"x": (2, 4), "file": (2, 4)}
        assert len(candidate.turn(0.0).times_ms) == 1
        assert len(candidate.turn(0.02).times_ms) > 1
        costs = candidate.finish()
    assert costs.peak_rss_bytes >= costs.base_rss_bytes > 1_000_000
    assert costs.gpu_bytes is None
    assert candidate.load_s > 0
    assert not _is_alive(candidate.pid)


def test_an_engine_runs_in_a_process_of_its_own(
    driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_file.parent))
    plan = {"inputs": {"x": [-1, 4]}, "outputs": {"y": [-1, 4]}, "profile": {"x": [[1, 4], [3, 4], [9, 4]]}}
    (tmp_path / "model.engine").write_text(json.dumps(plan))
    request = Request("plan", tmp_path / "model.engine", modules=("running_tensorrt",))
    with TimedProcess(request, None) as candidate:
        assert (candidate.runtime, candidate.graph) == ("running_tensorrt 10.3.0", "yes")
        assert candidate.shapes == {"x": (3, 4)}
        assert candidate.turn(0.0).times_ms
        assert candidate.finish().gpu_bytes is not None


def test_what_the_process_raises_is_raised_here(model: Path) -> None:
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: "):
        TimedProcess(Request("onnx", model), {"x": X, "file": np.ones((2, 5), np.float32)})


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("import sys; sys.exit('a last word')", "ended with status 1; its last output: a last word"),
    ],
)
def test_a_process_that_dies_is_told(
    fault: str, how: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trtq_test_dying.py").write_text(f"def main(folder):\n    {fault}\n")
    monkeypatch.setattr(module, "_CHILD", "trtq_test_dying")
    with pytest.raises(ArtifactError, match=rf"\.onnx cannot be measured, its process {how}"):
        TimedProcess(Request("onnx", model), {"x": X})


def test_no_room_for_temporary_files_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.savez", refuse)
    with pytest.raises(
        ArtifactError, match=r"^cannot write temporary files of bench: No space left .*; make"
    ):
        TimedProcess(Request("onnx", model), {"x": X})


def test_a_process_that_dies_between_its_turns_is_told(model: Path) -> None:
    with TimedProcess(Request("onnx", model), {"x": X, "file": X}) as candidate:
        candidate._process.kill()
        candidate._process.wait()
        with pytest.raises(ArtifactError, match=r"its process was killed by SIGKILL; its last output: none$"):
            candidate.turn(0.0)
