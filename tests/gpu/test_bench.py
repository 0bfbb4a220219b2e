"""Engines measured on a real GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trtq.pipeline.bench.benchmark import bench
from trtq.pipeline.bench.runnables import RunOptions
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.build import build
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.gpu import count_gpus, find_compute_capability
from trtq.pipeline.engine.target import Target

_QUICK = Schedule(rounds=3, seconds=0.3, warmup_s=0.1)
_NO_TENSORRT = BACKENDS["tensorrt"].why_not()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not count_gpus(), reason="there is no NVIDIA GPU to run engines on"),
]


def _check(folder: Path, module: str) -> None:
    result = bench(folder, options=RunOptions(device="cpu"), schedule=_QUICK)
    assert result.skipped == ()
    engine = next(item for item in result.measured if item.name == "int8 engine")
    assert engine.runtime.startswith(f"{module} ")
    assert engine.graph == "yes"
    assert 0 < engine.latency.min_ms <= engine.latency.p50_ms <= engine.latency.p99_ms
    assert engine.costs.gpu_bytes is not None
    assert result.machine.gpu
    plain = bench(folder / "model.engine", options=RunOptions(graph=False), schedule=_QUICK)
    assert [item.graph for item in plain.measured] == ["not asked for"]


@pytest.mark.skipif(bool(_NO_TENSORRT), reason=f"TensorRT does not work here: {_NO_TENSORRT}")
def test_an_engine_of_tensorrt_is_measured(demo: Path, tmp_path: Path) -> None:
    _check(Path(build(demo, target=Target(backend="tensorrt"), output=tmp_path / "out").output), "tensorrt")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
def test_an_engine_of_tensorrt_rtx_is_measured(demo: Path, tmp_path: Path) -> None:
    target = Target(backend="tensorrt-rtx", compute_capabilities=(find_compute_capability(),))
    _check(Path(build(demo, target=target, output=tmp_path / "out").output), "tensorrt_rtx")
