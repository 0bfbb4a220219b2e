"""A tensor that leaves the range of FP16 in any one sample stays FP32, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq

_NORM = """
    net (float[N, 32] x) => (float[N, 32] y)
    <float two = {2}, float epsilon = {0.00001}> {
        [fc0] a = MatMul (x, w0)
        [mean] m = ReduceMean <axes = [-1]> (a)
        [sub] c = Sub (a, m)
        [pow] p = Pow (c, two)
        [var] v = ReduceMean <axes = [-1]> (p)
        [eps] e = Add (v, epsilon)
        [sqrt] s = Sqrt (e)
        [div] n = Div (c, s)
        [fc1] y = MatMul (n, w1)
    }
"""


@pytest.mark.parametrize("loud", [0, 3, 199])
@pytest.mark.parametrize(
    "target",
    [
        trtq.Target(),
        trtq.Target(precision="fp16"),
        trtq.Target(precision="weights", weights=trtq.WeightScheme("int8")),
    ],
    ids=lambda target: target.precision,
)
def test_what_overflows_in_one_sample_stays_fp32(
    path_of: Callable[..., Path], tmp_path: Path, target: trtq.Target, loud: int
) -> None:
    rng = np.random.default_rng(7)
    w0, w1 = (rng.standard_normal(shape).astype(np.float32) / 6 for shape in ((32, 64), (64, 32)))
    model = path_of(_NORM, opset=17, ir_version=8, w0=w0, w1=w1)
    x = rng.standard_normal((200, 32)).astype(np.float32)
    x[loud] *= 700  # the comparison looks at the first 128 samples only
    np.savez(tmp_path / "x.npz", x=x)
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    assert {"pow", "var"} <= {node.name for node in report.kept_fp32}
