"""Tests of comparing models while the builder works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from small_builds import spec_of

from trtq.errors import BuildError
from trtq.kept import Fallback
from trtq.models.spec import InputSpec, ModelSpec
from trtq.pipeline.build import beside, build
from trtq.pipeline.build.beside import ComparisonBeside, may_compare_beside
from trtq.pipeline.build.comparison import compare_job
from trtq.pipeline.build.engine import EngineBuild
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.report import EngineReport
from trtq.pipeline.engine import process
from trtq.pipeline.engine.backend import BuildRequest, BuiltEngine
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.target import Target
from trtq.progress import Log, Silent

RTX = Target(backend="tensorrt-rtx", high_precision="fp32")
_TEXT = "net (float[N, 32] x) => (float[N, 32] y) { [first] h = MatMul (x, w) [last] y = MatMul (h, w) }"


@pytest.fixture
def small(path_of: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    path = path_of(_TEXT, w=(rng.standard_normal((32, 32)) / 6).astype(np.float32))
    np.savez(path.parent / "data.npz", x=rng.standard_normal((64, 32)).astype(np.float32))
    return path


def _spec(small: Path, **calibration: Any) -> ModelSpec:
    spec = spec_of(small)
    return replace(spec, calibration=replace(spec.calibration, batch_size=8, **calibration))


def _job(small: Path, target: Target = RTX, **calibration: Any) -> Job:
    return prepare(small, _spec(small, **calibration), target, None, False, Silent())


def test_models_are_compared_while_the_engine_is_built(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_compared, work, compare = Event(), TensorRtRtx.build, compare_job

    def build_later(self: TensorRtRtx, request: BuildRequest) -> BuiltEngine:
        assert is_compared.wait(timeout=120)
        return work(self, request)

    def compare_now(*args: Any, **others: Any) -> Any:
        found = compare(*args, **others)
        is_compared.set()
        return found

    monkeypatch.setattr(TensorRtRtx, "build", build_later)
    monkeypatch.setattr(beside, "compare_job", compare_now)
    report = build(small, spec=_spec(small), target=RTX)
    assert (report.evaluated_samples, report.engine.fallbacks) == (64, ())


def test_the_builder_is_ended_where_the_comparison_is_interrupted(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Event()
    (small.parent / "a_long_builder.py").write_text("import time\ndef main(folder): time.sleep(600)")
    monkeypatch.syspath_prepend(small.parent)
    monkeypatch.setattr(process, "_BUILDER", "a_long_builder")

    def build_slowly(self: TensorRtRtx, request: BuildRequest) -> BuiltEngine:
        def tell(child: subprocess.Popen[str]) -> None:
            assert request.started is not None
            request.started(child)
            started.set()

        return work(self, replace(request, started=tell))

    def interrupt(*args: Any, **others: Any) -> Any:
        assert started.wait(timeout=120)
        raise KeyboardInterrupt

    work = TensorRtRtx.build
    monkeypatch.setattr(TensorRtRtx, "build", build_slowly)
    monkeypatch.setattr(beside, "compare_job", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(small, spec=_spec(small), target=RTX)


def _engine(*fallbacks: Fallback) -> EngineBuild:
    realized = {"int8": 2 - len(fallbacks)}
    return EngineBuild(EngineReport(ENGINE, 1, 2, realized, fallbacks, {}, (), ()), {}, {})


_REJECTED = _engine(Fallback("last", "MatMul", "Float", "no kernel", "int8"))


@pytest.mark.parametrize(
    ("engine", "is_first", "num_batches"),
    [(None, True, 8), (_engine(), True, 8), (_REJECTED, True, 1), (_REJECTED, False, 8)],
    ids=["not yet built", "built as asked", "rejects a layer", "rejects one once more"],
)
def test_a_comparison_of_what_the_builder_rejects_ends_at_the_next_batch(
    small: Path, tmp_path: Path, engine: EngineBuild | None, is_first: bool, num_batches: int
) -> None:
    seen = list[int]()

    class Counting(Silent):
        def advance(self, num_samples: int) -> None:
            seen.append(num_samples)

    files = {"fp32": small, "int8": small}
    comparing = ComparisonBeside(_job(small), files, tmp_path, Log(Counting()), is_first)
    comparing({"x": InputSpec((1, 32), (8, 32), (8, 32))}, lambda: engine)
    assert len(seen) == num_batches
    assert comparing.is_done is (num_batches == 8)
    assert (comparing.comparison is not None) is comparing.is_done


def test_a_builder_that_fails_ends_the_comparison_with_its_error(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> BuiltEngine:
        raise BuildError("no engine today")

    monkeypatch.setattr(TensorRtRtx, "build", fail)
    with pytest.raises(BuildError, match="no engine today"):
        build(small, spec=_spec(small), target=RTX)


def test_what_is_run_itself_large_or_short_of_memory_is_compared_afterwards(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(small)
    assert may_compare_beside(job)
    assert not may_compare_beside(_job(small, memory_bytes=1 << 30))
    assert not may_compare_beside(_job(small, Target(backend="onnxruntime")))
    monkeypatch.setattr(beside, "count_weight_bytes", lambda _: 10**8)
    assert not may_compare_beside(job)
