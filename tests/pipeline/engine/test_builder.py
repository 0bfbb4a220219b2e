"""Tests of the builder at work, run here: TensorRT-RTX with models that cannot crash it."""

from __future__ import annotations

import importlib.util
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.pipeline.engine import builder
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.process import Flavour, run_child, to_json

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
FLAVOUR = Flavour("tensorrt_rtx", "TensorRT-RTX", inspects=False)
FAILED = {"error": "BuildError", "text": "TensorRT-RTX could not build model0.onnx"}
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(path_of: Callable[..., Path], tmp_path: Path) -> Ask:
    """Returns the answer to a request for a small dynamic model."""

    def answer(model: Path | None = None, **request: Any) -> dict[str, Any]:
        path = model or path_of(
            "g (float[N, 4] x) => (float[N, 3] y) { [mm] y = MatMul (x, w) }", w=np.ones((4, 3), np.float32)
        )
        usual = to_json(FLAVOUR, BuildRequest(path))
        (tmp_path / "request.json").write_text(json.dumps(usual | request))
        builder.main(str(tmp_path))
        found: dict[str, Any] = json.loads((tmp_path / "answer.json").read_text())
        return found

    return answer


def _profile(smallest: int, usual: int, largest: int) -> dict[str, Any]:
    return {"x": {"min": [smallest, 4], "opt": [usual, 4], "max": [largest, 4]}}


def test_a_request_leaves_the_plan_and_the_kernels(ask: Ask, tmp_path: Path) -> None:
    answer = ask(profiles=[_profile(1, 2, 4)], compute_capabilities=["8.9", "8.9"], workspace_bytes=1 << 28)
    assert list(answer) == ["layers"]
    assert answer["layers"].lstrip().startswith("Layers:")
    assert "[ONNX Layer: mm]" in answer["layers"]
    assert (tmp_path / "plan").read_bytes().startswith(b"vtrt")
    assert (tmp_path / "build.log").is_file()


def test_a_profile_out_of_order_fails(ask: Ask, tmp_path: Path) -> None:
    assert ask(profiles=[_profile(4, 2, 1)]) == FAILED
    assert "Invalid optimization profiles" in (tmp_path / "build.log").read_text()
    assert not (tmp_path / "plan").exists()


def test_a_failed_build_leaves_its_words_and_no_plan(ask: Ask, tmp_path: Path) -> None:
    assert ask() == FAILED
    (line,) = [
        line
        for line in (tmp_path / "build.log").read_text().splitlines()
        if "no optimization profile" in line
    ]
    assert line.startswith("ERROR: ")
    assert not (tmp_path / "plan").exists()


_DYING = """
import os, pathlib, signal
import tensorrt_rtx as trt
from trtq.pipeline.engine.builder import _logger

def main(folder):
    with pathlib.Path(folder, "build.log").open("w") as log:
        logger, _ = _logger(trt, log)
        logger.log(trt.ILogger.Severity.ERROR, "the last\\n  words")
        logger.log(trt.ILogger.Severity.INFO, "and what nobody asked for")
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_the_words_before_a_crash_survive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trtq_test_dying.py").write_text(_DYING)
    monkeypatch.syspath_prepend(tmp_path)
    assert run_child("trtq_test_dying", tmp_path).returncode == -signal.SIGSEGV
    assert (tmp_path / "build.log").read_text() == "ERROR: the last words\n"


def test_a_shape_input_gets_values(ask: Ask, path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[2, 6] x, int64[2] shape) => (float[A, B] y) { y = Reshape (x, shape) }")
    profile = {"shape": {"min": [1, 3], "opt": [2, 6], "max": [4, 12]}}
    assert "layers" in ask(path, profiles=[profile])


def test_an_unknown_target_is_answered_with_the_known_ones(ask: Ask) -> None:
    answer = ask(profiles=[_profile(1, 1, 1)], compute_capabilities=["8.9", "9.0"])
    assert answer["error"] == "UsageError"
    assert answer["text"].startswith(
        "TensorRT-RTX cannot build for compute capability 9.0; it has 7.5, 8.0, "
    )


def test_what_the_parser_refuses_is_answered_node_by_node(ask: Ask, path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[8] x) => (float[N] y) { [distinct] y = Unique (x) }")
    assert ask(path) == {
        "error": "ModelError",
        "text": "TensorRT-RTX does not take this model: "
        "node 'distinct' (Unique): this operator is not supported",
    }


def test_a_file_without_a_network_is_answered(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"hello world")
    answer = ask(tmp_path / "text.onnx")
    assert answer["text"] == "TensorRT-RTX does not take this model: the network has no outputs"


@pytest.mark.parametrize("level", [0, 5])
def test_an_optimization_level_is_taken(level: int, ask: Ask) -> None:
    assert "layers" in ask(profiles=[_profile(1, 2, 4)], optimization_level=level)


def test_an_engine_that_cannot_be_loaded_here_tells_nothing(ask: Ask, tmp_path: Path) -> None:
    answer = ask(profiles=[_profile(1, 2, 4)], inspects=True)
    assert (tmp_path / "plan").read_bytes().startswith(b"vtrt")
    if answer["inspector"]:
        pytest.skip("there is a GPU that loads it")
    assert answer == {"inspector": ""}
