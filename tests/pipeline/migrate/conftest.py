"""The demo, built from data, and the cache of what the data gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtq.calibrators.cache import format_cache, to_cache
from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.pipeline.build import build
from trtq.pipeline.calibrate.data import find_spec
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target


@pytest.fixture(scope="session")
def demo(quick_demo: Path) -> Path:
    return quick_demo / "model.onnx"


@pytest.fixture(scope="session")
def built(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The demo, built from data without repairs and zero points, which a cache cannot hold."""
    spec = find_spec(demo)
    spec = replace(spec, quantization=replace(spec.quantization, activations="symmetric"))
    target = Target(backend="onnxruntime", shapes=GivenShapes(opt={"image": (8, 1, 8, 8)}))
    return build(demo, spec=spec, target=target, output=tmp_path_factory.mktemp("built") / "out")


@pytest.fixture(scope="session")
def ranges(built: Report) -> Ranges:
    return read_ranges(Path(built.output) / "ranges.json")


@pytest.fixture(scope="session")
def cache(ranges: Ranges, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the ranges that the data gave."""
    path = tmp_path_factory.mktemp("cache") / "old.cache"
    path.write_bytes(format_cache(to_cache(ranges, 8601)))
    return path
