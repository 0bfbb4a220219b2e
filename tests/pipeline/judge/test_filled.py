"""What is behind a constant that fills an output in part is judged by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import trtq
from trtq.pipeline.judge.filled import Filled, find_filled, see_filled

_CONSTANTS: dict[str, Any] = {
    "w": np.eye(4, dtype=np.float32),
    "far": np.array(1e9, np.float32),
    "row": np.full(4, -100, np.float32),
    "mixed": np.arange(4, dtype=np.float32),
    "none": np.array(0, np.float32),
    "low": np.array(-np.inf, np.float32),
    "whole": np.array([0, 4]),
}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = Where (m, a, far)", Filled(1e9, "a")),
        ("y = Where (m, row, a)", Filled(-100, "a")),
        ("s = Where (m, a, far) y = Reshape (s, whole)", Filled(1e9, "a")),
        (
            "s = Shape (a) f = ConstantOfShape <value = float[1] {7}> (s) y = ScatterND (f, i, a)",
            Filled(7, "a"),
        ),
        ("s = Shape (a) f = Expand (far, s) y = Where (m, a, f)", Filled(1e9, "a")),
        ("y = Where (m, a, mixed)", None),
        ("y = Where (m, a, none)", None),
        ("y = Where (m, a, low)", None),
        ("y = Where (m, a, x)", None),
        ("y = Where (m, x, far)", None),
        ("y = Add (a, far)", None),
    ],
)
def test_what_fills_an_output_is_found(
    body: str, found: Filled | None, model_of: Callable[..., ir.Model]
) -> None:
    used = {name: value for name, value in _CONSTANTS.items() if name in body or name == "w"}
    text = f"g (float[N,4] x, bool[N,4] m, int64[N,1] i) => (float[N,4] y) {{ a = MatMul (x, w) {body} }}"
    assert find_filled(model_of(text, **used)) == ({} if found is None else {"y": found})


def test_the_constant_becomes_zero_in_any_width() -> None:
    output = np.array([[1, 1000.1, 2], [1000.1, 3, -4000]], np.float32)
    for dtype in (np.float32, np.float16):
        seen = see_filled({"y": Filled(1000.1, "a")}, {"y": output.astype(dtype)})["y", "a"]
        np.testing.assert_allclose(seen, np.array([[1, 0, 2], [0, 3, -4000]]), rtol=0.004)
        assert seen.dtype == dtype
    assert see_filled({"y": Filled(7, "a"), "z": Filled(7, "a")}, {"y": np.array([7])}) == {}


@pytest.mark.parametrize("number", [1.0, -1.0, 6.0])
def test_values_that_one_model_rounds_to_the_constant_stay_near_each_other(number: float) -> None:
    values = np.linspace(-abs(number), abs(number), 4001)
    rounded = np.round(values, 2)
    seen, other = (Filled(number, "a").separate(item) for item in (values, rounded))
    assert np.abs(seen - other).max() <= 3.1 * np.abs(values - rounded).max()


def test_shares_beside_a_one_lose_no_more_than_the_output(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    weight = (rng.standard_normal((32, 32)) * 2).astype(np.float32)  # many shares are nearly one
    text = """g (float[N,32] x, bool[N,1] m) => (float[N,32] y) {
        l = MatMul (x, w) s = Sigmoid (l) y = Where (m, one, s) }"""
    model = path_of(text, w=weight, one=np.array(1, np.float32))
    x = rng.standard_normal((64, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, m=rng.random((64, 1)) > 0.7)
    report = trtq.build(model, str(tmp_path / "x.npz"), output=tmp_path / "o", fp16=True)
    (part,) = (item for item in report.comparison if item.part == "s")
    assert part.sqnr_db > 45


@pytest.mark.parametrize("number", [1e9, -300.0])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (3000.0, "fail")])
def test_dead_scores_beside_a_constant_fail(
    factor: float, verdict: str, number: float, path_of: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    w0, w1 = (rng.standard_normal((32, 32)).astype(np.float32) / 6 for _ in range(2))
    w0[:, 3] *= factor  # a loud channel that nothing reads leaves the others no codes
    w1[3] = 0
    text = """g (float[N,32] x, bool[N,32] m) => (float[N,32] y) {
        [fc0] a = MatMul (x, w0) b = Relu (a) [fc1] l = MatMul (b, w1) y = Where (m, l, far) }"""
    model = path_of(text, w0=w0, w1=w1, far=np.array(number, np.float32))
    x = rng.standard_normal((32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, m=rng.random((32, 32)) > 0.3)
    report = trtq.build(
        model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime", calib_method="minmax",
        repair=("none",),
    )  # fmt: skip
    assert report.verdict == verdict
    assert {item.part for item in report.comparison} == {"", "l"}
