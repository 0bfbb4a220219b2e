"""Two models that are compared may take floats of other widths, and one of them batches of a fixed size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq
from trtq.pipeline.judge.gate import judge_pair

_TEXT = "g ({dtype}[{batch},8] x) => ({dtype}[{batch},8] y) {{ y = MatMul(x, w) }}"


def _write(path_of: Callable[..., Path], batch: str, dtype: str, name: str) -> Path:
    width = np.float16 if dtype == "float16" else np.float32
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(width)
    written = path_of(_TEXT.format(batch=batch, dtype=dtype), w=weight)
    return written.rename(written.with_name(f"{name}.onnx"))


@pytest.fixture
def spec(tmp_path: Path) -> trtq.ModelSpec:
    x = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return trtq.ModelSpec(evaluation=trtq.EvaluationSpec(data=str(tmp_path / "x.npz")))


@pytest.mark.parametrize(
    ("batch", "dtype", "num_samples"), [("N", "float16", 32), ("1", "float", 32), ("7", "float", 28)]
)
def test_each_model_is_fed_what_it_takes(
    path_of: Callable[..., Path], spec: trtq.ModelSpec, batch: str, dtype: str, num_samples: int
) -> None:
    reference = _write(path_of, "N", "float", "reference")
    found = trtq.compare(reference, _write(path_of, batch, dtype, "candidate"), spec=spec)
    assert found.num_samples == num_samples
    assert judge_pair(found, spec.accuracy).outcome == "pass"
    (output,) = found.outputs
    assert (output.sqnr_db == np.inf) == (dtype == "float")


@pytest.mark.parametrize(
    ("theirs", "ours", "num_samples"),
    [
        (("N", "float"), ("4", "float16"), 32),
        (("N", "float16"), ("7", "float"), 28),
        (("4", "float"), ("N", "float16"), 32),
        (("4", "float16"), ("4", "float"), 32),
    ],
)
def test_models_may_differ_in_width_and_batch(
    path_of: Callable[..., Path],
    spec: trtq.ModelSpec,
    theirs: tuple[str, str],
    ours: tuple[str, str],
    num_samples: int,
) -> None:
    files = [_write(path_of, *item, name) for item, name in ((theirs, "reference"), (ours, "candidate"))]
    found = trtq.compare(*files, spec=spec)
    assert found.num_samples == num_samples
    assert judge_pair(found, spec.accuracy).outcome == "pass"
