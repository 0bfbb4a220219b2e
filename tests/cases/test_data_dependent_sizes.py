"""Outputs whose size depends on values, as behind NonMaxSuppression: rows of other objects prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import trtq
from trtq.cli import main

_DETECTOR = """
    net (float[N, 8] x) => (float[K, 16] boxes{more}) <float limit = {{20}}, int64[1] axis = {{1}}> {{
        h = MatMul (x, w)
        r = Relu (h)
        raw = MatMul (r, v)
        best = ReduceMax <keepdims = 0> (raw, axis)
        found = Greater (best, limit)
        boxes = Compress <axis = 0> (raw, found)
    }}
"""


@pytest.fixture
def detector(path_of: Callable[..., Path]) -> Callable[[str], Path]:
    """Returns a detector that says how many objects there are, and perhaps more; its data lies beside it."""

    def make(more: str) -> Path:
        rng = np.random.default_rng(0)
        w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 32), (32, 16)))
        model = path_of(_DETECTOR.format(more=more), w=w, v=v)
        x = rng.standard_normal((256, 8)).astype(np.float32)
        np.savez(model.with_name("x.npz"), x=x)
        return model

    return make


def build(model: Path, **options: Any) -> trtq.Report:
    return trtq.build(model, model.with_name("x.npz"), int8=True, backend="onnxruntime", **options)


@pytest.mark.parametrize("more", ["", ", float[N, 16] raw"])
def test_other_sizes_are_unverified_with_the_output(detector: Callable[[str], Path], more: str) -> None:
    report = build(detector(more))
    assert report.verdict == "unverified"
    assert report.reasons[0].startswith("output 'boxes' of engine differs in size from that of fp32 in ")


def test_labels_of_another_output_say_nothing_of_the_boxes(detector: Callable[[str], Path]) -> None:
    model = detector(", float[N, 16] raw")
    evaluation = model.with_name("evaluation.npz")
    with np.load(model.with_name("x.npz")) as data:
        np.savez(evaluation, x=data["x"], labels=np.arange(256) % 16)
    given = {"eval_data": str(evaluation), "labels": "labels", "eval_output": "raw", "max_drop": 100.0}
    assert build(model, **given).verdict == "unverified"


@pytest.mark.parametrize(("score", "verdict"), [("1.0", "pass"), ("1 - len(boxes) / 1000", "fail")])
def test_a_metric_of_the_users_own_decides(
    detector: Callable[[str], Path], tmp_path: Path, score: str, verdict: str
) -> None:
    (tmp_path / "metric.py").write_text(
        "def score(outputs, labels=None):\n    boxes = outputs['boxes']\n"
        f"    return {score} if boxes.any() else 0\n"
    )
    report = build(detector(""), metric=f"{tmp_path / 'metric.py'}:score", max_drop=0.0)
    assert report.verdict == verdict


def test_a_metric_that_does_not_read_the_boxes_says_nothing_of_them(
    detector: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "metric.py").write_text(
        "def score(outputs, labels=None):\n    return 1.0 if outputs['raw'].any() else 0\n"
    )
    report = build(detector(", float[N, 16] raw"), metric=f"{tmp_path / 'metric.py'}:score")
    assert report.verdict == "unverified"
    assert report.reasons[0].startswith("output 'boxes' of engine differs in size from that of fp32 in ")


def test_compare_says_that_nothing_was_compared(detector: Callable[[str], Path], tmp_path: Path) -> None:
    model = detector("")
    build(model, output=tmp_path / "built.trtq")
    quantized = next((tmp_path / "built.trtq").glob("*.int8.onnx"))
    arguments = ["compare", str(model), str(quantized), "--data", str(model.with_name("x.npz"))]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "UNVERIFIED: output 'boxes' of model.int8.onnx differs in size" in " ".join(result.stdout.split())
