"""How large products can get: never below what ONNX Runtime computes, and reached by the worst input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.bounds import compile_bounds
from trtq.models.session import open_session

_RNG = np.random.default_rng(7)


def model_of(body: str, shape: str, opset: int = 23, **weights: Any) -> ir.Model:
    """Returns a model that computes y of x."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> net (float[{shape}] x) => (float y) {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def weight(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32)


def bound_of(model: ir.Model, x: float) -> float:
    return compile_bounds(model).find({"x": x}, math.inf).magnitudes["y"]


def run(model: ir.Model, x: NDArray[Any]) -> NDArray[Any]:
    (y,) = open_session(model, optimize=False).run(["y"], {"x": x.astype(np.float32)})
    return y


_NORM = "n = LayerNormalization (x, g, b)"
_TURNED = f"{_NORM} t = Transpose <perm = [0, 2, 1]> (n)"
_SQUARES = """
    m = ReduceMean <axes = [{axis}]> (x) c = Sub (x, m) s = Pow (c, two) v = ReduceMean <axes = [{axis}]> (s)
    e = Add (v, eps) r = Sqrt (e) z = Div (c, r) k = Mul (z, g) n = Add (k, b)
"""
_CONSTANTS: dict[str, Any] = {"two": np.float32(2), "eps": np.float32(1e-5)}
AFTER_NORMS = {
    "MatMul": (f"{_NORM} y = MatMul (n, w)", 23, {"w": weight(8, 5)}),
    "MatMul from the left": (f"{_TURNED} y = MatMul (w, t)", 23, {"w": weight(5, 8)}),
    "Gemm": (
        f"{_NORM} f = Reshape (n, to) y = Gemm <transB = 1, alpha = -2.0> (f, w, c)", 23,
        {"w": weight(5, 8), "c": weight(5), "to": np.array([-1, 8])},
    ),
    "Conv": (
        f"{_TURNED} y = Conv <pads = [1, 1]> (t, w)", 23, {"w": weight(5, 8, 3)},
    ),
    "ConvTranspose": (
        f"{_TURNED} r = Reshape (t, to) y = ConvTranspose <strides = [2, 2]> (r, w)", 23,
        {"w": weight(8, 5, 3, 3), "to": np.array([2, 8, 2, 3])},
    ),
    "a part of the tokens": (
        f"{_NORM} t = Slice (n, one, three, one) y = MatMul (t, w)", 23,
        {"w": weight(8, 5), "one": np.array([1]), "three": np.array([3])},
    ),
    "more that is linear": (
        f"{_NORM} p = Sub (n, b) q = Div (p, g) u = Mul (g, q) y = MatMul (u, w)", 23, {"w": weight(8, 5)},
    ),
    "RMSNormalization": ("n = RMSNormalization (x, g) y = MatMul (n, w)", 23, {"w": weight(8, 5)}),
    "a norm of many nodes": (
        _SQUARES.format(axis=-1) + "y = MatMul (n, w)", 17, {"w": weight(8, 5), **_CONSTANTS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER_NORMS)
def test_what_comes_after_a_norm_is_bounded_whatever_the_data_is(name: str) -> None:
    body, opset, constants = AFTER_NORMS[name]
    constants = {"g": 3 * weight(8), "b": weight(8), **constants}
    constants = {key: value for key, value in constants.items() if key in body.replace("(", " ")}
    model = model_of(body, "2,6,8", opset, **constants)
    bound = bound_of(model, math.inf)
    largest = 0.0
    for seed, scale in itertools.product(range(20), (0.1, 1e3)):
        x = np.random.default_rng(seed).standard_normal((2, 6, 8)) * scale
        largest = max(largest, float(np.abs(run(model, x)).max()))
    assert largest <= bound <= 8 * largest


def test_the_worst_input_of_a_norm_reaches_the_bound() -> None:
    g, b = np.array([1, 2, -3, 0.5], np.float32), np.array([0.1, 0, 0.2, 0], np.float32)
    w = np.array([[1], [-1], [2], [-2]], np.float32)
    centred = (g[:, None] * w)[:, 0]
    model = model_of(
        "n = RMSNormalization <epsilon = 0.0> (x, g) m = Add (n, b) y = MatMul (m, w)", "1,4", g=g, b=b, w=w
    )
    worst = centred * np.sign(b @ w)
    assert abs(run(model, worst[None])[0, 0]) == pytest.approx(bound_of(model, 1e9), rel=1e-5)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("n = LayerNormalization <axis = 1> (x, g8) y = MatMul (n, w)", 23),
        ("n = LayerNormalization (x, u) t = Transpose <perm = [0, 2, 1]> (n) y = MatMul (t, v2)", 23),
        (_SQUARES.format(axis=1) + "y = MatMul (n, w)", 17),
        ("n = LayerNormalization (x, u) t = Add (n, x) y = MatMul (t, w)", 23),
        ("n = LayerNormalization (x, u) t = Slice (n, one, three, two2) y = MatMul (t, w2)", 23),
        ("n = LayerNormalization (x, u) t = Sub (g, n) y = MatMul (t, w)", 23),
        ("n = LayerNormalization (x, u) t = Mul (n, tokens) y = MatMul (t, w)", 23),
        ("n = LayerNormalization (x, u) t = Reshape (n, to) y = MatMul (t, v2)", 23),
        ("t = Identity (x) y = MatMul (t, w)", 23),
    ],
)
def test_what_is_on_no_sphere_along_the_axis_is_bounded_by_its_largest_value(body: str, opset: int) -> None:
    constants: dict[str, Any] = {
        "u": np.ones(8, np.float32), "g": np.ones(8, np.float32), "b": np.zeros(8, np.float32),
        "g8": np.ones((6, 8), np.float32), "w": weight(8, 5), "v2": weight(6, 5), "w2": weight(2, 5),
        "tokens": weight(6, 1), "one": np.array([1]), "three": np.array([3]), "two2": np.array([2]),
        "to": np.array([2, 8, 6]), **_CONSTANTS,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if f"{key})" in body or f"{key}," in body}
    bounds = compile_bounds(model_of(body, "2,6,8", opset, **constants)).find({"x": 1.0}, math.inf).magnitudes
    inner = bounds["t" if "t = " in body else "n"]
    used = next(constants[name] for name in ("w", "w2", "v2") if name in constants)
    assert bounds["y"] == pytest.approx(inner * np.abs(used).sum(axis=0).max(), rel=1e-6)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("stride", "dilation", "kernel"), [(1, 1, 3), (2, 1, 4), (2, 1, 3), (3, 2, 4), (2, 2, 3), (4, 1, 2)]
)
def test_only_weights_a_stride_apart_meet_in_an_output(
    group: int, stride: int, dilation: int, kernel: int
) -> None:
    w = weight(4, 3, kernel, kernel)
    attributes = f"group = {group}, strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]"
    model = model_of(f"y = ConvTranspose <{attributes}> (x, w)", "1,4,7,7", w=w)
    bound, reached = bound_of(model, 1.0), 0.0
    session = open_session(
        model_of(f"y = ConvTranspose <{attributes}> (x, w)", "1,4,7,7", w=np.abs(w)), optimize=False
    )
    reached = float(session.run(["y"], {"x": np.ones((1, 4, 7, 7), np.float32)})[0].max())
    assert bound == pytest.approx(reached, rel=1e-5)  # weights of one sign add up


def test_weights_of_different_signs_do_not_add_up_where_the_input_is_positive() -> None:
    w = np.array([[1, 2], [-4, 1], [0.5, -1]], np.float32)
    model = model_of("r = Relu (x) y = MatMul (r, w)", "1,3", w=w)
    assert bound_of(model, 2.0) == 2 * 4
    assert np.abs(run(model, np.array([[-1, 2, -1]]))).max() == 8
    assert bound_of(model_of("y = MatMul (x, w)", "1,3", w=w), 2.0) == 2 * 5.5


def test_each_channel_behind_a_norm_has_a_bound_of_its_own() -> None:
    body = """
        n = RMSNormalization (x, g) t = Transpose <perm = [0, 2, 1]> (n) c = Conv (t, w, b) r = Relu (c)
        s = Mul (r, k) y = Conv (s, v)
    """
    w, v = np.zeros((2, 4, 1), np.float32), np.zeros((3, 2, 1), np.float32)
    w[0, 0], w[1, 1] = 100, 1
    v[0, 0], v[1, 1], v[2, :, 0] = 0.01, 1, (0.01, -1)
    constants: dict[str, Any] = {
        "g": np.ones(4, np.float32),
        "w": w,
        "v": v,
        "b": np.array([0, 0.5], np.float32),
    }
    model = model_of(body, "1,3,4", k=np.array([[1], [2]], np.float32), **constants)
    bound = bound_of(model, 1e9)
    assert bound == pytest.approx(2 * (math.sqrt(4) * 1 + 0.5), rel=1e-5)  # not 100 times as much
    x = np.random.default_rng(0).standard_normal((1, 3, 4))
    assert np.abs(run(model, x)).max() <= bound


def test_a_batch_norm_scales_the_bounds_of_its_channels_one_by_one() -> None:
    constants: dict[str, Any] = {
        "w": np.array([[[4]], [[1]]], np.float32), "s": np.array([1, 8], np.float32),
        "b": np.array([0, 1], np.float32), "m": np.array([0, -1], np.float32), "q": np.ones(2, np.float32),
        "v": np.ones((1, 2, 1), np.float32),
    }  # fmt: skip
    norm = "n = BatchNormalization <epsilon = 0.0> (c, s, b, m, q)"
    model = model_of(f"c = Conv (x, w) {norm} y = Conv (n, v)", "1,1,5", **constants)
    for x in (1.0, 10.0):
        assert bound_of(model, x) == pytest.approx(4 * x + 8 * (x + 1) + 1)
        largest = max(float(np.abs(run(model, np.full((1, 1, 5), sign * x))).max()) for sign in (-1, 1))
        assert largest == pytest.approx(bound_of(model, x))


def test_bounds_of_channels_that_no_float_holds_are_warned_of_by_nobody() -> None:
    layers = " ".join(f"m{index + 1} = MatMul (m{index}, w)" for index in range(20))
    model = model_of(f"m0 = Relu (x) {layers} y = Relu (m20)", "N, 8", w=np.full((8, 8), 1e3, np.float32))
    assert bound_of(model, 1.0) > 1e39


def test_what_reads_nothing_has_no_bound() -> None:
    model = model_of(
        "r = RandomNormal <shape = [4, 8], seed = 1.0> () y = MatMul (r, w)", "4", w=weight(8, 3)
    )
    assert bound_of(model, 1.0) == math.inf
