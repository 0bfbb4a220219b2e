"""Tests of what a candidate's process answers, called here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.pipeline.bench import child, session
from trtq.pipeline.bench.child import serve
from trtq.pipeline.engine.cuda import Cuda

PLAN = json.dumps({"inputs": {"x": [2, 4]}, "outputs": {"y": [2, 4]}}).encode()
X = np.ones((2, 4), np.float32)


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    return path_of("g (float[N, 4] x) => (float[N, 4] y) { y = Add (x, x) }")


def ask(place: Path, request: dict[str, Any], *lines: str, **feed: Any) -> list[dict[str, Any]]:
    place.mkdir(exist_ok=True)
    defaults = {
        "device": "cpu",
        "num_threads": 1,
        "modules": [],
        "graph": False,
        "sha256": "",
        "profile": False,
    }
    (place / "request.json").write_text(json.dumps({**defaults, **request, "inputs": list(feed) or None}))
    np.savez(place / "feed.npz", *feed.values())
    answers = io.StringIO()
    serve(place, lines, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_model_is_loaded_run_and_counted(model: Path, tmp_path: Path) -> None:
    request = {"kind": "onnx", "path": str(model)}
    ready, first, second, end = ask(tmp_path / "p", request, "0\n", "0.01\n", x=X)
    assert ready["runtime"].startswith("ONNX Runtime ")
    assert (ready["ready"], ready["shapes"], ready["graph"]) == (True, {"x": [2, 4]}, "")
    assert len(first["times_ms"]) == 1
    assert second["wall_s"] * 1000 == pytest.approx(sum(second["times_ms"]))
    assert end["gpu_bytes"] is None
    assert end["peak_rss_bytes"] >= ready["base_rss_bytes"] > 1_000_000


def test_a_model_that_does_not_take_the_feed_is_told(model: Path, tmp_path: Path) -> None:
    request = {"kind": "onnx", "path": str(model)}
    (answer,) = ask(tmp_path / "p", request, "0\n", x=np.ones((2, 5), np.float32))
    assert answer["error"] == "ModelError"
    assert answer["text"].startswith("ONNX Runtime cannot run the model: ")


def test_a_plan_is_run_by_the_first_module_that_loads_it(
    driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(driver_file, monkeypatch)
    (tmp_path / "model.engine").write_bytes(PLAN)
    request = {
        "kind": "plan", "path": str(tmp_path / "model.engine"), "graph": True,
        "modules": ["no_tensorrt", "running_tensorrt"], "sha256": hashlib.sha256(PLAN).hexdigest(),
    }  # fmt: skip
    ready, turn, end = ask(tmp_path / "p", request, "0\n", x=X)
    assert (ready["runtime"], ready["graph"]) == ("running_tensorrt 10.3.0", "yes")
    assert len(turn["times_ms"]) == 1
    assert end["gpu_bytes"] >= 0
    monkeypatch.setitem(sys.modules, "running_tensorrt", None)
    (answer,) = ask(tmp_path / "p", request, x=X)
    assert answer["error"] == "MissingDependency"
    assert "model.engine does not run here: no_tensorrt cannot be imported (" in answer["text"]


LAYERS = {
    "Reformatting CopyNode for Input Tensor 0 to conv + relu": 0.25,
    "conv + relu": 1.5,
    "__myl_Fused": 0.5,
}
INSPECTOR = [
    {"Name": "__myl_Fused", "LayerType": "kgen", "Metadata": "[ONNX Layer: soft]\x1e[ONNX Layer: mul]"}
]


def test_the_layers_of_a_plan_are_timed_by_the_profiler(
    driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(driver_file, monkeypatch)
    plan = {**json.loads(PLAN), "layers": LAYERS, "inspector": INSPECTOR}
    (tmp_path / "model.engine").write_text(json.dumps(plan))
    path, modules = str(tmp_path / "model.engine"), ["running_tensorrt"]
    request = {"kind": "plan", "path": path, "modules": modules, "profile": True}
    ready, turn, end = ask(tmp_path / "p", request, "0\n", x=X)
    assert ready["graph"] == "no: its layers are timed one by one"
    assert len(turn["times_ms"]) == 1
    assert end["kernels"] == [
        {
            "name": "Reformatting CopyNode for Input Tensor 0 to conv + relu", "op_type": "Reformat",
            "nodes": ["conv", "relu"], "ms": 0.25, "converts": True,
        },
        {"name": "conv + relu", "op_type": "", "nodes": ["conv", "relu"], "ms": 1.5, "converts": False},
        {"name": "__myl_Fused", "op_type": "kgen", "nodes": ["soft", "mul"], "ms": 0.5, "converts": False},
    ]  # fmt: skip


def test_a_plan_that_no_module_loads_is_told(
    driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(driver_file, monkeypatch)
    (tmp_path / "model.engine").write_bytes(b"{")
    request = {"kind": "plan", "path": str(tmp_path / "model.engine"), "modules": ["running_tensorrt"]}
    (answer,) = ask(tmp_path / "p", request)
    assert answer["error"] == "ArtifactError"
    assert answer["text"].endswith("does not run here: running_tensorrt 10.3.0 does not load it: not a plan")
    (answer,) = ask(tmp_path / "p", {**request, "sha256": "aa"})
    assert answer["text"].endswith("model.engine was changed while it was loaded")


def test_a_model_on_the_gpu_tells_what_it_took_there(
    model: Path, driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "Cuda", lambda: Cuda(str(driver_file)))
    monkeypatch.setattr("trtq.models.session.list_providers", lambda device: ["CPUExecutionProvider"])
    request = {"kind": "onnx", "path": str(model), "device": "cuda"}
    assert ask(tmp_path / "p", request, x=X)[-1]["gpu_bytes"] >= 0


def test_main_keeps_what_libraries_print_out_of_the_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    duplicated: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "dup2", lambda source, target: duplicated.append((source, target)))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ask(tmp_path / "p", {"kind": "onnx", "path": str(model)}, x=X)
    child.main(str(tmp_path / "p"))
    assert duplicated == [(2, 1)]
    ready, end = capfd.readouterr().out.splitlines()
    assert json.loads(ready)["ready"]
    assert "peak_rss_bytes" in json.loads(end)


def _use(driver_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "Cuda", lambda: Cuda(str(driver_file)))
