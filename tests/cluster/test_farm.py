"""`trtq build-all` on a real Ray cluster with two kinds of machines, of which one dies while it builds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # of Ray's own processes and sockets
FARM = """
[defaults]
calib-method = "minmax"
repair = ["none"]
memory = "1G"

[kind.ada]
compute-capability = ["8.9"]

[kind.blackwell]
resources = ["blackwell", "tensorrt-10.9"]
compute-capability = ["12.0"]

[[build]]
name = "classifier"
model = "model.onnx"
backend = "tensorrt-rtx"
on = ["ada", "blackwell"]
"""
DATA = """
import pathlib, time
import numpy as np

def batches():
    while pathlib.Path(__file__).with_name("hold").exists():
        time.sleep(0.05)
    rng = np.random.default_rng(7)
    for _ in range(4):
        yield {"image": rng.normal(size=(4, 1, 8, 8)).astype("float32")}
"""
"""Data that comes when nothing holds it back any more."""
SLOW = """
[[build]]
model = "model.onnx"
output = "slow.trtq"
backend = "onnxruntime"
calib-data = "held.py:batches"
on = "spare"
"""


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(demo_folder, tmp_path / "files"))
    (folder / "held.py").write_text(DATA)
    (folder / "hold").touch()
    return folder


def _start(folder: Path, nodes: Any) -> subprocess.Popen[str]:
    words = ["build-all", str(folder / "farm.toml"), "--workers", "ray"]
    command = [sys.executable, "-m", "trtq", *words]
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _list_hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def _is_building(folder: Path) -> bool:
    return any(name.startswith(".slow.trtq.") for name in _list_hidden(folder))


def test_an_engine_is_built_on_each_kind_and_a_machine_that_dies_costs_none(
    kinds: Any, folder: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    doomed = kinds.add(spare=1)
    (folder / "farm.toml").write_text(FARM + SLOW)
    run = _start(folder, kinds)
    wait_until(lambda: _is_building(folder))
    kinds.add(spare=1)
    kinds.kill(doomed)
    (folder / "hold").unlink()
    _, told = run.communicate()
    assert run.returncode == 0, told
    assert "note: slow on spare: its worker or machine is gone; it is started again elsewhere" in told
    index = json.loads((folder / "index.json").read_bytes())["engines"]
    assert [(item["kind"], item["compute_capabilities"], item["verdict"]) for item in index] == [
        ("ada", ["8.9"], "pass"), ("blackwell", ["12.0"], "pass"), ("spare", [], "pass"),
    ]  # fmt: skip
    models = {(folder / f"model.{kind}.trtq/model.int8.onnx").read_bytes() for kind in ("ada", "blackwell")}
    assert len(models) == 1
    assert index[0]["engine_sha256"] != index[1]["engine_sha256"]
    assert _list_hidden(folder) == []
    builds = json.loads((folder / "summary.json").read_bytes())["builds"]
    assert all(item["machine"] for item in builds)


def test_a_kind_that_the_cluster_has_not_is_refused(kinds: Any, folder: Path) -> None:
    (folder / "farm.toml").write_text(FARM.replace('["ada", "blackwell"]', '["ada", "hopper"]'))
    run = _start(folder, kinds)
    _, told = run.communicate()
    assert run.returncode == 2
    assert "error: classifier on hopper is for a machine with hopper, which no machine of the cluster" in told
    assert "there are: ada (1), blackwell (1), " in told


def test_an_interruption_ends_the_builds_and_leaves_nothing_half(
    kinds: Any, folder: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    (folder / "farm.toml").write_text(SLOW.replace("spare", "ada"))
    run = _start(folder, kinds)
    wait_until(lambda: _is_building(folder))
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert run.returncode == 1
    assert _list_hidden(folder) == []
    assert not (folder / "slow.trtq").exists()
