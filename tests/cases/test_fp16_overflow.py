"""A tensor that leaves the range of FP16 in any one sample stays FP32, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
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


@pytest.mark.parametrize("repair", ["none", "bias", "shift"])
@pytest.mark.parametrize(
    ("data", "weight"),
    [(300, 300), (1e-3, 1e-4), (1e-7, 1e4), (1e4, 1e-7)],
    ids=["large product", "small product", "small input", "small weight"],
)
def test_what_repairs_add_reaches_as_far(
    path_of: Callable[..., Path], tmp_path: Path, repair: str, data: float, weight: float
) -> None:
    """The product in front of a new bias overflowed, and scales below FP16's least number were raised."""
    text = """net (float[N, 64] x) => (float[N, 64] y) {
        [fc0] a = MatMul (x, w0) r = Relu (a) s = Mul (r, back) [fc1] y = MatMul (s, w1) }"""
    rng = np.random.default_rng(7)
    w0, w1 = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    back = np.float32(1 / data / weight)
    model = path_of(text, w0=w0 * np.float32(weight), w1=w1, back=back)
    x = (data * rng.standard_normal((64, 64))).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz"), method="minmax"),
        quantization=trtq.QuantizationSpec(repair=(repair,)),
    )
    target = trtq.Target(backend="onnxruntime", high_precision="fp16")
    report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    assert report.verdict == "pass"
    assert report.comparison is not None
    assert min(item.sqnr_db for item in report.comparison if item.candidate == "int8") > 30


@pytest.mark.parametrize("activations", ["symmetric", "per-token"])
@pytest.mark.parametrize("size", [1e5, 1e-7])
def test_an_input_that_fp16_does_not_hold_is_read_in_fp32(
    path_of: Callable[..., Path], tmp_path: Path, size: float, activations: Literal["symmetric", "per-token"]
) -> None:
    text = """net (float[N, 64] x) => (float[N, 64] y) {
        [unit] s = Mul (x, unit) [fc0] a = MatMul (s, w0) r = Relu (a) [fc1] y = MatMul (r, w1) }"""
    rng = np.random.default_rng(7)
    w0, w1 = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    model = path_of(text, w0=w0, w1=w1, unit=np.float32(1 / size))
    np.savez(tmp_path / "x.npz", x=(size * rng.standard_normal((64, 64))).astype(np.float32))
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz"), method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",), activations=activations),
    )
    target = trtq.Target(backend="onnxruntime", high_precision="fp16")
    report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
    assert report.verdict == "pass"
    assert [node.name for node in report.kept_fp32] == ["unit"]


def test_a_product_of_rows_that_overflows_stays_fp32(path_of: Callable[..., Path], tmp_path: Path) -> None:
    text = """net (float[N, 64] x) => (float[N, 64] y) {
        [fc0] a = MatMul (x, w0) s = Mul (a, back) [fc1] y = MatMul (s, w1) }"""
    rng = np.random.default_rng(7)
    w0, w1 = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    model = path_of(text, w0=w0 * np.float32(1e5), w1=w1, back=np.float32(1e-5))
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 64)).astype(np.float32))
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")),
        quantization=trtq.QuantizationSpec(activations="per-token"),
    )
    target = trtq.Target(backend="onnxruntime", high_precision="fp16")
    assert trtq.build(model, spec=spec, target=target, output=tmp_path / "out").verdict == "pass"


def test_ranges_of_an_fp32_build_are_not_those_of_an_fp16_one(tmp_path: Path) -> None:
    """Where no tensor needs a range, an FP32 build looks at none; its ranges would let the overflow pass."""
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        g (float[N,64] x) => (float[N,64] y) {
            [one] a = MatMul(x, w) [big] b = Mul(a, up) [small] c = Mul(b, down)
            r = Relu(c) [two] y = MatMul(r, v)
        }""")
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for name in ("w", "v")}
    for name, values in {**weights, "up": np.float32(12000), "down": np.float32(1 / 12000)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((32, 64)).astype(np.float32))
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")),
        quantization=trtq.QuantizationSpec(activations="per-token"),
        layers=trtq.LayerSpec(force=(".",)),
    )
    for rest in ("fp32", "fp16"):
        target = trtq.Target(backend="onnxruntime", high_precision=rest)
        report = trtq.build(tmp_path / "m.onnx", spec=spec, target=target, output=tmp_path / "o")
        assert "ranges" not in report.reused
    assert {"big", "small"} <= {node.name for node in report.kept_fp32}
