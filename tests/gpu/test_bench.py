"""Engines measured on a real GPU."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.pipeline.bench.benchmark import bench
from trtq.pipeline.bench.runnables import RunOptions
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.build import build
from trtq.pipeline.calibrate.data import find_spec
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
    assert result.layers == ()
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


def _check_layers(demo: Path, target: Target, out: Path) -> None:
    """Builds an INT8 engine with the speed gate, and puts its layers beside those of an FP16 engine."""
    spec = find_spec(demo, trust=True)
    asked = replace(spec, accuracy=replace(spec.accuracy, min_speedup=0.001))
    report = build(demo, spec=asked, target=target, output=out / "int8")
    assert report.speed is not None
    assert (report.speed.verdict, report.speed.against) == ("pass", "fp16 engine"), report.speed.reasons
    half = build(demo, target=replace(target, precision="fp16"), output=out / "fp16")
    options = RunOptions(device="cpu")
    result = bench(
        half.output, report.output, options=options, schedule=_QUICK, min_speedup=1000, layers=True
    )
    (table,), (verdict,) = result.layers, result.speed
    assert verdict.verdict == "fail"
    names = {name for row in table.rows for name in (row.name, *row.fused)}
    assert {"stem.conv/Conv", "head/Gemm"} <= names
    assert sum(row.float_ms for row in table.rows) > 0
    assert sum(row.quantized_ms for row in table.rows) > 0


@pytest.mark.skipif(bool(_NO_TENSORRT), reason=f"TensorRT does not work here: {_NO_TENSORRT}")
def test_the_layers_of_engines_of_tensorrt_are_timed(demo: Path, tmp_path: Path) -> None:
    _check_layers(demo, Target(backend="tensorrt"), tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
def test_the_layers_of_engines_of_tensorrt_rtx_are_timed(demo: Path, tmp_path: Path) -> None:
    target = Target(backend="tensorrt-rtx", compute_capabilities=(find_compute_capability(),))
    _check_layers(demo, target, tmp_path)
