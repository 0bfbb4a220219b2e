"""What a model adds to its input is judged by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import trtq
from trtq.pipeline.judge.added import AddedParts, find_added

_WEIGHTS = {
    "w": np.ones((2, 2, 1, 1), np.float32),
    "v": np.ones((2, 2, 2, 2), np.float32),
    "two": np.array(2, np.float32),
    "table": np.ones(5000, np.float32),
    "twice": np.array([1, 1, 2, 2], np.float32),
}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("n = Conv (x, w) y = Add (x, n)", "n"),
        ("n = Conv (x, w) s = Sub (x, n) y = Clip (s)", "n"),
        (
            "h = Mul (x, two) b = Resize (h, , twice) c = Resize (x, , twice) n = Conv (c, w) y = Add (n, b)",
            "n",
        ),
        ("n = Conv (x, w) y = Sum (n, x)", "n"),
        ("n = Conv (x, w) s = Add (x, n) o = Conv (s, w) t = Add (s, o) y = Relu (t)", "o"),
        ("n = Conv (x, w) s = Add (x, n) t = Mul (two, s) u = Add (t, two) y = Tanh (u)", "n"),
        ("n = Conv (x, w) s = Add (x, n) t = Transpose <perm = [0, 2, 3, 1]> (s) y = Round (t)", "n"),
        ("m = ReduceMax (x) n = Conv (x, w) s = Add (m, n) y = Transpose (s)", ""),
        ("n = Conv (x, w) s = Add (x, n) t = Conv (s, w) y = Relu (t)", ""),
        ("n = Conv (x, w) s = Add (x, n) t = Add (x, s) y = Mul (s, t)", ""),
        ("a = Conv (x, w) n = Conv (a, w) y = Add (a, n)", ""),
        ("n = Conv (x, w) y = Add (two, n)", ""),
        ("s = Shape (x) r = ConstantOfShape (s) n = Conv (x, w) y = Add (r, n)", ""),
        ("i = Cast <to = 7> (x) e = Gather (table, i) n = Conv (x, w) y = Add (e, n)", ""),
        ("h = Mul (x, two) y = Add (x, h)", ""),
    ],
)
def test_sums_of_the_input_and_of_layers_are_found(
    body: str, part: str, model_of: Callable[..., ir.Model]
) -> None:
    model = model_of(f"g (float[1,2,4,4] x) => (float y) {{ {body} }}", **_WEIGHTS)
    assert [(item.output, item.part) for item in find_added(model)] == ([("y", part)] if part else [])


_LAYER = "n = Conv (x, w)"


@pytest.mark.parametrize(
    ("body", "part", "without"),
    [
        (f"{_LAYER} y = Sub (n, x)", "n", lambda x: -x),
        (f"{_LAYER} y = Mean (n, x)", "n", lambda x: x / 2),
        (f"{_LAYER} o = Conv (n, w) s = Sum (o, x, n) y = Mul (s, two)", "o", lambda x: 2 * x),
        (f"{_LAYER} s = Add (x, n) y = Tanh (s)", "n", np.tanh),
        (f"{_LAYER} s = Mul (x, n) o = Conv (n, w) y = Add (s, o)", "o", lambda x: x),
        (f"{_LAYER} s = Add (n, x) y = Transpose <perm = [3, 2, 1, 0]> (s)", "n", np.transpose),
    ],
)  # fmt: skip
def test_what_follows_the_sum_holds_for_the_input_too(
    body: str, part: str, without: Callable[..., NDArray[Any]], model_of: Callable[..., ir.Model]
) -> None:
    model = model_of(f"g (float[1,2,4,4] x) => (float y) {{ {body} }}", **_WEIGHTS)
    parts = pickle.loads(pickle.dumps(AddedParts(model, find_added(model))))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    found = parts.find({"y": without(x) + 0.25}, {"x": x}, 1)
    assert list(found) == [("y", part)]
    np.testing.assert_allclose(found["y", part], 0.25, atol=1e-6)


def test_what_is_added_is_the_output_without_the_input(model_of: Callable[..., ir.Model]) -> None:
    body = "b = Mul (x, two) n = Conv (x, w) y = Add (b, n)"
    model = model_of(f"g (float[1,2,4,4] x) => (float y) {{ {body} }}", **_WEIGHTS)
    parts = pickle.loads(pickle.dumps(AddedParts(model, find_added(model))))  # as workers get it
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    found = parts.find({"y": 2 * x + 0.25, "z": x}, {"x": x.astype(np.float64)}, 1)
    assert list(found) == [("y", "n")]
    np.testing.assert_allclose(found["y", "n"], 0.25, atol=1e-6)
    pixels = parts.find({"y": np.zeros(x.shape, np.uint8)}, {"x": x}, 1)["y", "n"]
    np.testing.assert_allclose(pixels, -2 * x, atol=1e-6)  # and no number that wraps around
    assert parts.find({"y": x[:, :1]}, {"x": x}, 1) == {}  # whoever compares says that sizes differ


def test_a_mean_of_the_input_may_be_added(model_of: Callable[..., ir.Model]) -> None:
    body = "b = ReduceMean <keepdims = 1> (x, axes) n = Conv (x, w) y = Add (n, b)"
    model = model_of(f"g (float[1,2,4,4] x) => (float y) {{ {body} }}", **_WEIGHTS, axes=np.array([2, 3]))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    found = AddedParts(model, find_added(model)).find({"y": x}, {"x": x}, 1)
    np.testing.assert_allclose(found["y", "n"], x - x.mean(axis=(2, 3), keepdims=True), atol=1e-6)


def test_a_mask_that_is_the_same_everywhere_leaves_nothing(model_of: Callable[..., ir.Model]) -> None:
    body = "n = Conv (x, w) m = Sigmoid (n) y = Mul (x, m)"
    model = model_of(f"g (float[2,2,4,4] x) => (float y) {{ {body} }}", **_WEIGHTS)
    parts = AddedParts(model, find_added(model))
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    gains = np.array([0.9, 0.7], np.float32).reshape(2, 1, 1, 1)
    same, other = (parts.find({"y": y}, {"x": x}, 2)["y", "m"] for y in (x * gains, np.maximum(x, 0)))
    np.testing.assert_allclose(same, 0, atol=1e-6)
    assert np.square(other).sum() == pytest.approx(np.square(x).sum() / 4, rel=0.2)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (3000.0, "fail")])
def test_a_denoiser_that_int8_kills_fails(
    factor: float, verdict: str, path_of: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    w0, w1 = (rng.standard_normal(shape).astype(np.float32) / 9 for shape in ((8, 3, 3, 3), (3, 8, 3, 3)))
    w0[3] *= factor  # a loud channel that nothing reads leaves the others no codes
    w1[:, 3] = 0
    text = """g (float[N,3,8,8] x) => (float[N,3,8,8] y) {
        [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0) b = Relu (a)
        [head] n = Conv <pads = [1, 1, 1, 1]> (b, w1) y = Sub (x, n)
    }"""
    model = path_of(text, w0=w0, w1=w1)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((16, 3, 8, 8)).astype(np.float32) * 4)
    report = trtq.build(
        model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime", calib_method="minmax",
        repair=("none",), force=(".",), min_cosine=0.9,
    )  # fmt: skip
    assert report.verdict == verdict
    found = {item.part: item for item in report.comparison if item.candidate == "engine"}
    assert found[""].judged_cosine > 0.9
    assert (found["n"].judged_cosine > 0.9) == (verdict == "pass")
    assert all(reason.startswith("part 'n' of output 'y' of engine is the same") for reason in report.reasons)


def test_a_gain_for_each_sample_leaves_no_mask_to_judge(path_of: Callable[..., Path], tmp_path: Path) -> None:
    text = (
        """g (float[N,32] x) => (float[N,32] y) { [gain] n = MatMul (x, w) m = Sigmoid (n) y = Mul (x, m) }"""
    )
    model = path_of(text, w=np.random.default_rng(1).standard_normal((32, 1)).astype(np.float32))
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32))
    report = trtq.build(
        model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime", calib_method="minmax",
        repair=("none",), force=(".",),
    )  # fmt: skip
    assert report.verdict == "pass"
    assert {item.part for item in report.comparison} == {""}
