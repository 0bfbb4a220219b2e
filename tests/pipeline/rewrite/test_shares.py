"""Tests of what stays FP32 between a Softmax or Sigmoid and a logarithm of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_fp16 import cast
from numpy.typing import NDArray

from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.rewrite.precision import to_bf16

_X = np.array([[0, -18, 0.5, 9], [3, 1, -17, 11]], np.float32)
_NUMBERS = {
    "eps": np.float32(1e-12),
    "low": np.float32(1e-5),
    "high": np.float32(1 - 1e-5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "places": np.array([1, 3]),
    "axis": np.array([1]),
}
_INVERSE = "[cut] c = Clip(p, low, high) [rest] r = Sub(one, c) [odds] o = Div(c, r) [log] y = Log(o)"


def _model(model_of: Callable[..., ir.Model], nodes: str, maker: str = "Sigmoid") -> ir.Model:
    numbers = {name: np.asarray(value) for name, value in _NUMBERS.items() if name in nodes}
    return model_of(f"g (float[N,4] x) => (float[N,K] y) {{ [p] p = {maker}(x) {nodes} }}", **numbers)


@pytest.mark.parametrize("maker", ["Sigmoid", "Softmax"])
@pytest.mark.parametrize(
    "nodes",
    [
        "[add] c = Add(eps, p) [log] y = Log(c)",
        "[max] c = Max(eps, p) [log] y = Log(c)",
        "[is] g = Greater(p, eps) [where] c = Where(g, p, eps) [log] y = Log(c)",
        "[mul] c = Mul(half, p) [log] y = Log(c)",
        "[gather] c = Gather <axis = 1> (p, places) [log] y = Log(c)",
        "[sum] c = ReduceSum(p, axis) [gain] d = Mul(c, p) [log] y = Log(d)",
        "[root] c = Pow(p, half) [log] y = Log(c)",
        "[rest] r = Sub(one, p) [add] c = Add(r, low) [log] y = Log(c)",
        _INVERSE,
        "[cut] c = Clip(p, low, high) [rest] r = Sub(one, c) [odds] y = Div(c, r)",
    ],
)
def test_what_is_made_of_shares_stays_exact(
    model_of: Callable[..., ir.Model],
    outputs_of: Callable[..., list[NDArray[Any]]],
    nodes: str,
    maker: str,
) -> None:
    model = _model(model_of, nodes, maker)
    result, reasons = cast(model)
    assert [name for name in reasons if name != "is"] == [
        node.name for node in model.graph if node.name != "is"
    ]
    emulated = emulate_halves(result) or result
    ours, theirs = outputs_of(emulated, feed={"x": _X}), outputs_of(model, feed={"x": _X})
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("maker", ["Sigmoid", "Softmax"])
def test_shares_without_a_logarithm_are_fp16(model_of: Callable[..., ir.Model], maker: str) -> None:
    assert cast(_model(model_of, "[mul] y = Mul(p, x)", maker))[1] == {}
    assert cast(_model(model_of, "[sum] s = ReduceSum(p, axis) [share] y = Div(p, s)", maker))[1] == {}


def test_a_layer_ends_what_shares_are(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { p = Sigmoid(x) m = MatMul(p, w) y = Log(m) }"
    assert cast(model_of(text, w=np.eye(4, dtype=np.float32)))[1] == {}


def test_bf16_has_small_shares_and_none_near_one(model_of: Callable[..., ir.Model]) -> None:
    assert to_bf16(_model(model_of, "[add] c = Add(eps, p) [log] y = Log(c)"))[1] == ()
    kept = {item.name: item.reason for item in to_bf16(_model(model_of, _INVERSE))[1]}
    told = "tensor 'r' divides, and BF16 rounds shares near one to one"
    assert kept == dict.fromkeys(["p", "cut", "rest", "odds"], told) | {
        "log": "tensor 'o' has a logarithm, and BF16 rounds shares near one to one"
    }
