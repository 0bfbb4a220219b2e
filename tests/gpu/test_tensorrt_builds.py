"""Builds of the demo model with the real TensorRT on a real GPU, judged by running the engines."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.calibrators.cache import read_cache
from trtq.calibrators.ranges import read_ranges
from trtq.calibrators.settings import read_spec
from trtq.models.spec import LayerSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.target import Target
from trtq.pipeline.load import load

_REASON = BACKENDS["tensorrt"].why_not()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(_REASON), reason=f"TensorRT does not work here: {_REASON}"),
]
needs_calibrators = pytest.mark.skipif(
    "implicit" in BACKENDS["tensorrt"].lacks, reason="this TensorRT has no INT8 calibrators"
)
needs_pycuda = pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None,
    reason="pycuda is not installed: pip install 'trtq[tensorrt]'",
)
EXPLICIT = Target(backend="tensorrt")
IMPLICIT = Target(backend="tensorrt", quantization="implicit")
NUM_LAYERS = 11
LARGEST_DROP = 0.01


def _spec(demo: Path, method: str = "entropy", **layers: Any) -> ModelSpec:
    spec = read_spec(demo.parent / "model.toml")
    calibration = replace(spec.calibration, method=method)
    return replace(spec, calibration=calibration, layers=LayerSpec(**layers))


def _check_accuracy(report: Report) -> None:
    """Checks the verdict, which is on the engine itself, and what it loses to FP32 and FP16."""
    pairs = {(item.candidate, item.reference) for item in report.comparison}
    assert {("engine", "fp32"), ("engine", "fp16")} <= pairs
    assert (report.verdict, report.reasons) == ("pass", ())
    for reference in ("fp32", "fp16"):
        assert report.accuracy[reference] - report.accuracy["engine"] <= LARGEST_DROP


def test_an_explicit_engine_keeps_its_accuracy_and_runs_in_int8(demo: Path, tmp_path: Path) -> None:
    report = build(demo, spec=_spec(demo), target=EXPLICIT, output=tmp_path / "out")
    _check_accuracy(report)
    assert report.engine.layers_quantized == NUM_LAYERS
    assert report.engine.num_realized > 0
    assert set(read_manifest(tmp_path / "out").layers) <= _weighted(demo)


def _weighted(demo: Path) -> set[str]:
    onnx = importlib.import_module("onnx")
    return {node.name for node in onnx.load(demo).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}


@needs_calibrators
@needs_pycuda
@pytest.mark.parametrize(
    ("method", "algorithm"), [("entropy", "EntropyCalibration2"), ("minmax", "MinMaxCalibration")]
)
def test_tensorrts_own_calibrator_keeps_the_accuracy(
    method: str, algorithm: str, demo: Path, tmp_path: Path
) -> None:
    report = build(demo, spec=_spec(demo, method), target=IMPLICIT, output=tmp_path / "out")
    _check_accuracy(report)
    assert report.engine.num_realized > 0
    assert report.calibration is not None
    assert report.calibration.method == f"TensorRT's own {algorithm}"
    cache = read_cache(tmp_path / "out" / "calibration.cache")
    assert cache.algorithm == algorithm
    assert "image" in cache.scales


@needs_calibrators
def test_percentile_ranges_are_taken_as_a_cache(demo: Path, tmp_path: Path) -> None:
    report = build(demo, spec=_spec(demo, "percentile"), target=IMPLICIT, output=tmp_path / "out")
    _check_accuracy(report)  # had TensorRT not taken the cache, the build would have failed
    assert report.engine.num_realized > 0
    ranges = read_ranges(tmp_path / "out" / "ranges.json")
    assert list(read_cache(tmp_path / "out" / "calibration.cache").scales) == list(ranges.tensors)


@needs_calibrators
def test_skipped_layers_do_not_run_in_int8(demo: Path, tmp_path: Path) -> None:
    spec = _spec(demo, "percentile", skip=("^block1", "head"))
    report = build(demo, spec=spec, target=IMPLICIT, output=tmp_path / "out")
    layers = read_manifest(tmp_path / "out").layers
    skipped = {name: dtype for name, dtype in layers.items() if name.startswith(("block1", "head"))}
    assert skipped
    assert "Int8" not in skipped.values()
    assert report.verdict == "pass"


def test_a_timing_cache_is_written_and_read(demo: Path, tmp_path: Path) -> None:
    target = replace(EXPLICIT, options=BuilderOptions(timing_cache=tmp_path / "timing.cache"))
    build(demo, spec=_spec(demo), target=target, output=tmp_path / "first")
    written = (tmp_path / "timing.cache").stat().st_size
    assert written > 0
    report = build(demo, spec=_spec(demo), target=target, output=tmp_path / "second")
    assert not [line for line in report.engine.warnings if "timing cache" in line.lower()]
    assert (tmp_path / "timing.cache").stat().st_size >= written


def test_a_version_compatible_engine_loads_and_runs(demo: Path, tmp_path: Path) -> None:
    target = replace(EXPLICIT, options=BuilderOptions(version_compatible=True))
    report = build(demo, spec=_spec(demo), target=target, output=tmp_path / "out")
    _check_accuracy(report)
    with load(tmp_path / "out").runner("engine") as runner:
        (scores,) = runner.infer({"image": np.zeros((8, 1, 8, 8), np.float32)}).values()
    assert np.isfinite(np.asarray(scores)).all()
