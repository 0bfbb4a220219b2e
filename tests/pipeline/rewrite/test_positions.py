"""Tests that angles of positions are computed in FP32: their sines are nothing like those of rounded ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_fp16 import cast
from numpy.typing import NDArray

from trtq.pipeline.rewrite.precision import to_bf16, to_fp16

ROTARY = """g (int64[N,S] ids, float[N,4,S] x) => (float[N,4,S] y) {
    [cast] f = Cast<to = 1>(ids)
    [unsqueeze] p = Unsqueeze(f, one)
    [angles] a = {}
    [cos] c = Cos(a)
    [sin] s = Sin(a)
    [mul] m = Mul(x, c)
    [add] y = Add(m, s)
}"""


@pytest.mark.parametrize("product", ["MatMul(w, p)", "Mul(w, p)"])
@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_angles_of_positions_stay_fp32(
    model_of: Callable[..., ir.Model],
    outputs_of: Callable[..., list[NDArray[Any]]],
    product: str,
    convert: Callable[..., Any],
) -> None:
    frequencies = np.array([[[1.0], [0.1], [0.01], [1e-3]]], np.float32)
    model = model_of(ROTARY.replace("{}", product), w=frequencies, one=np.array([1]))
    result, kept = convert(model)
    reason = (
        f"computes angles or indices from positions, which {'FP16' if convert is to_fp16 else 'BF16'} rounds"
    )
    reasons = dict.fromkeys(("cast", "unsqueeze", "angles"), reason)
    for node in ("cos", "sin"):
        reasons[node] = reason if convert is to_fp16 else f"{node.title()} has no BF16 version"
    assert {node.name: node.reason for node in kept} == reasons
    if convert is to_fp16:  # ONNX Runtime computes no BF16
        feed = {"ids": np.array([[4097, 100_001]]), "x": np.ones((1, 4, 2), np.float32)}
        ours, theirs = (outputs_of(item, feed=feed)[0] for item in (result, model))
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("[a] p = Mul(t, w) [b] y = Sin(p)", {"a", "b"}, id="a time"),
        pytest.param("[a] p = MatMul(t, v) [b] y = Sin(p)", set(), id="a layer"),
        pytest.param("[a] p = Sigmoid(t) [b] y = Sin(p)", set(), id="an activation"),
        pytest.param(
            "[a] p = Shape(t) [c] f = Cast<to = 1>(p) [d] g = ReduceMax(f) [b] y = Sin(g)", set(), id="else"
        ),
        pytest.param(
            "[a] p = Add(t, w) [c] i = Cast<to = 7>(p) [d] y = Gather(v, i)", {"a", "c"}, id="an index"
        ),
        pytest.param(
            "[a] p = MatMul(t, v) [c] i = Cast<to = 7>(p) [d] y = Gather(v, i)",
            set(),
            id="an index of a layer",
        ),
        pytest.param("[b] s = Sin(w) [a] y = Mul(t, s)", set(), id="a constant"),
        pytest.param("[c] e = Gather(v, ids) [a] p = MatMul(e, v) [b] y = Sin(p)", set(), id="an embedding"),
        pytest.param(
            "[c] f = Cast<to = 1>(ids) [d] g = Unsqueeze(f, one) [a] p = Add(g, t) [b] y = Sin(p)",
            {"a", "b", "c", "d"},
            id="both",
        ),
    ],
)
def test_other_angles_are_fp16(model_of: Callable[..., ir.Model], text: str, kept: set[str]) -> None:
    arrays: dict[str, Any] = {"w": np.ones((1, 4), np.float32), "v": np.ones((4, 4), np.float32)}
    arrays["one"] = np.array([1])
    weights = {name: array for name, array in arrays.items() if re.search(rf"[(, ]{name}[,)]", text)}
    model = model_of(f"g (float[N,4] t, int64[N] ids) => (float[N,4] y) {{ {text} }}", **weights)
    reasons = cast(model)[1]
    assert {name for name, reason in reasons.items() if "angles" in reason} == kept
