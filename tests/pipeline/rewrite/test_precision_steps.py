"""Tests of what stays FP32 because of the steps in which TensorRT computes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_fp16 import cast
from numpy.typing import NDArray

import trtq
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16

_LSTM = "t = Unsqueeze(x, one) [lstm] s, h, c = LSTM <hidden_size = 3> (t, w, r, b, , , , p)"
_STEPS = "TensorRT computes {} in steps, and {} cannot hold what is between them"


@pytest.mark.parametrize(
    ("text", "op_type"),
    [
        ("[steps] y = LogSoftmax(x)", "LogSoftmax"),
        ("[steps] y = ReduceSumSquare(x, one)", "ReduceSumSquare"),
        ("[steps] y = Mean(x, x)", "Mean"),
        ("[steps] y = Mod <fmod = 1> (x, x)", "Mod"),
    ],
)
def test_what_tensorrt_computes_in_steps_stays_fp32(
    model_of: Callable[..., ir.Model], text: str, op_type: str
) -> None:
    used = {"one": np.array([1])} if "one" in text else {}
    model = model_of(f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}", opset=18, **used)
    assert cast(model)[1] == {"steps": _STEPS.format(op_type, "FP16")}
    in_bf16 = [_STEPS.format(op_type, "BF16")] if op_type == "Mod" else []
    assert [item.reason for item in to_bf16(model)[1]] == in_bf16


def test_a_logarithm_of_shares_is_finite(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    nodes = """[scale] s = Mul(x, two) [p] p = Softmax(s) [shape] t = Transpose <perm = [1,0]> (p)
        [cut] c = Clip(t, low) [log] y = Log(c)"""
    constants = {"two": np.array(2, np.float32), "low": np.array(2.0**-24, np.float32)}
    model = model_of(f"g (float[N,3] x) => (float[3,N] y) {{ {nodes} }}", **constants)
    feed = {"x": np.array([[0, -8, 0.5]], np.float32)}
    result, reasons = cast(model)
    assert list(reasons) == ["p", "shape", "cut", "log"]
    assert reasons["p"] == "tensor 'c' has a logarithm, and FP16 rounds small shares to zero"
    emulated = emulate_halves(result)
    assert emulated is not None
    ours, theirs = outputs_of(emulated, feed=feed), outputs_of(model, feed=feed)
    np.testing.assert_allclose(ours[0], theirs[0], atol=0.01)


@pytest.mark.parametrize("half", ["FP16", "BF16"])
@pytest.mark.parametrize(
    ("text", "op_type"),
    [
        ("[norm] y = MeanVarianceNormalization <axes = [1]> (x)", "MeanVarianceNormalization"),
        (f"{_LSTM} y = Squeeze(h, one)", "LSTM"),
    ],
)
def test_what_tensorrt_does_not_take_in_16_bits_stays_fp32(
    graph_of: Callable[..., Graph], text: str, op_type: str, half: str
) -> None:
    shapes = {"w": (1, 12, 3), "r": (1, 12, 3), "b": (1, 24), "p": (1, 9)} if op_type == "LSTM" else {}
    floats: dict[str, Any] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    more = {"one": np.array([0])} if shapes else {}
    model = graph_of(f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}", **floats, **more).model
    convert = to_fp16 if half == "FP16" else to_bf16
    reasons = {item.reason for item in convert(model)[1]}
    assert f"TensorRT does not take this {op_type} in {half}" in reasons


@pytest.mark.parametrize(
    "node",
    ["HardSwish(x)", "Mish(x)", "LpNormalization(x)", "GlobalLpPool(x)", "LpPool<kernel_shape=[1,1]>(x)"],
)
def test_what_tensorrt_does_not_take_in_bf16_stays_fp32(model_of: Callable[..., ir.Model], node: str) -> None:
    model = model_of(f"g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ [node] y = {node} }}", opset=22)
    op_type = model.graph[0].op_type
    assert {item.reason for item in to_bf16(model)[1]} == {f"TensorRT does not take this {op_type} in BF16"}
    assert to_fp16(model)[1] == ()


def test_an_lstm_without_peepholes_is_taken_in_fp16(graph_of: Callable[..., Graph]) -> None:
    text = "t = Unsqueeze(x, one) s, h, c = LSTM <hidden_size = 3> (t, w, w, b) y = Squeeze(h, one)"
    constants = {
        "w": np.ones((1, 12, 3), np.float32),
        "b": np.ones((1, 24), np.float32),
        "one": np.array([0]),
    }
    assert to_fp16(graph_of(f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}", **constants).model)[1] == ()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
def test_tensorrt_takes_a_model_that_normalizes_its_mean_and_variance(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[N,8,64] x) => (float[N,8,64] y) {
        [fc] a = MatMul(x, w) [norm] y = MeanVarianceNormalization <axes = [1,2]> (a) }"""
    rng = np.random.default_rng(0)
    model = path_of(text, w=rng.standard_normal((64, 64)).astype(np.float32))
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((16, 8, 64)).astype(np.float32))
    calibration = trtq.CalibrationSpec(data=str(tmp_path / "x.npz"), method="minmax")
    target = trtq.Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    report = trtq.build(
        model, spec=trtq.ModelSpec(calibration=calibration), target=target, output=tmp_path / "o"
    )
    assert report.verdict == "pass"
