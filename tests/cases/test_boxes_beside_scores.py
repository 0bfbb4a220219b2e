"""Boxes of hundreds of pixels and scores below 1 in one output: dead scores fail the gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq

_DETECTOR = """
    net (float[N, 3, 16, 16] x) => (float[N, 24, M] y)
    <float pixels = {300}, int64[3] flat = {0, 24, -1}> {
        [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0)
        b = Relu (a)
        [box] offsets = Conv (b, w1)
        boxes = Mul (offsets, pixels)
        [class] logits = Conv (b, w2)
        scores = Sigmoid (logits)
        both = Concat <axis = 1> (boxes, scores)
        y = Reshape (both, flat)
    }
"""


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (3000.0, "fail")])
def test_scores_that_int8_kills_fail(
    path_of: Callable[..., Path], tmp_path: Path, factor: float, verdict: str
) -> None:
    rng = np.random.default_rng(0)
    w0, w1, w2 = (
        (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for shape in ((16, 3, 3, 3), (4, 16, 1, 1), (20, 16, 1, 1))
    )
    w2[:, 3] *= factor  # what the scores are made of is lost beside channels that are as loud in all
    w0[3] /= factor
    model = path_of(_DETECTOR, w0=w0, w1=w1, w2=w2)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((32, 3, 16, 16)).astype(np.float32))
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(method="minmax", data=str(tmp_path / "x.npz")),
        quantization=trtq.QuantizationSpec(repair=("none",)),
        layers=trtq.LayerSpec(force=(".",)),
    )
    target = trtq.Target(backend="onnxruntime")
    report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    assert report.verdict == verdict
    found = {item.name: item for item in report.comparison if item.candidate == "engine"}
    assert found["y"].cosine > 0.999
    assert found["y, part boxes"].cosine > 0.999
    assert (found["y, part scores"].cosine > 0.99) == (verdict == "pass")
    if verdict == "fail":
        words = "part 'scores' of output 'y' has cosine 0."
        assert any(reason.startswith(words) for reason in report.reasons)
