"""A channel whose weights are all zero, or nearly so, keeps its bias in ONNX Runtime's integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest

import trtq

_NET = """net (float[N,8,12,12] x) => (float[N,16,12,12] y) {
    [first] a = Conv <pads = [1,1,1,1]> (x, w1, b) r = Relu (a)
    [second] y = Conv <pads = [1,1,1,1]> (r, w2) }"""


@pytest.mark.parametrize("size", [0.0, 1e-4])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_the_bias_of_a_dead_channel_counts(
    path_of: Callable[..., Path],
    tmp_path: Path,
    size: float,
    granularity: Literal["per-channel", "per-tensor"],
) -> None:
    rng = np.random.default_rng(7)
    w1 = rng.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8
    w1[3:6] *= np.float32(size)
    w2 = rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    b = np.abs(rng.standard_normal(16)).astype(np.float32) * 50
    model = path_of(_NET, w1=w1, w2=w2, b=b)
    x = rng.standard_normal((32, 8, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz"), method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",), weight_granularity=granularity),
    )
    target = trtq.Target(backend="onnxruntime")
    trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    ours, theirs = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for path in (tmp_path / "out/model.int8.onnx", model)
    )
    assert np.square(ours - theirs).sum() < 1e-4 * np.square(theirs).sum()
