"""Migrating an old cache with the backend `tensorrt`, over the double that records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from host_memory import HostMemory

from trtq.calibrators.cache import CalibrationCache, format_cache
from trtq.errors import UsageError
from trtq.models.spec import ModelSpec
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.engine.tensorrt import TensorRt
from trtq.pipeline.migrate import migrate

SHAPES = GivenShapes(opt={"x": (8, 3, 8, 8)})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    scales = {"x": 0.03125, "h": 0.125, "r": 0.125, "y": 0.5}
    path = tmp_path / "old.cache"
    path.write_bytes(format_cache(CalibrationCache(scales, 8601, "EntropyCalibration2")))
    return path


@pytest.fixture
def install(
    tensorrt_module: Callable[[str], str], one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    def take(version: str) -> None:
        backend = TensorRt(tensorrt_module(version), HostMemory)
        monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": backend})
        monkeypatch.setattr(TensorRt, "runner", lambda *_: None)

    return take


@pytest.mark.parametrize(
    ("version", "high", "flags"),
    [
        ("8.6.1", "auto", ["INT8"]),
        ("8.6.1", "fp16", ["INT8", "FP16"]),
        ("10.16.1.11", "auto", []),
        ("11.4.0.106", "fp16", []),
    ],
)
def test_an_old_cache_becomes_an_engine_of_any_version(
    version: str, high: Any, flags: list[str], small: Path, cache: Path, install: Callable[[str], None]
) -> None:
    install(version)
    target = Target(backend="tensorrt", shapes=SHAPES, high_precision=high)
    report = migrate(small, cache, spec=ModelSpec(), target=target).report
    folder = Path(report.output)
    plan = json.loads((folder / "model.engine").read_bytes())
    assert (plan["flags"], plan["calibration"]) == (flags, None)
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    assert (report.engine.quantization, report.engine.quantization_reason) == (
        "explicit",
        "the cache becomes Q/DQ",
    )
    assert "model.int8.onnx" in read_manifest(folder).commands["engine"]
    has_fp16_graph = high == "fp16" and version != "8.6.1"
    kinds = {tensor.data_type for tensor in onnx.load(folder / "model.int8.onnx").graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in kinds) == has_fp16_graph
    assert (folder / "calibration.cache").read_bytes() == cache.read_bytes()


def test_a_timing_cache_in_the_output_folder_is_refused(
    small: Path, cache: Path, install: Callable[[str], None], tmp_path: Path
) -> None:
    install("10.16.1.11")
    (tmp_path / "out").mkdir()
    options = BuilderOptions(timing_cache=tmp_path / "out" / "timing.cache")
    target = Target(backend="tensorrt", shapes=SHAPES, options=options)
    with pytest.raises(UsageError, match=r"timing\.cache is inside the output folder .*/out, which is"):
        migrate(small, cache, spec=ModelSpec(), target=target, output=tmp_path / "out")
