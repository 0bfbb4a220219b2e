"""What is known of the sign of tensors, and the means that it bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.calibrators.bounds import compile_bounds
from trtq.calibrators.signs import list_deciding
from trtq.calibrators.survey import measure_inputs
from trtq.models.session import open_session


def model_of(body: str, mask: str = "int64[N,5]", **weights: Any) -> ir.Model:
    """Returns a model that computes y of x and of a mask."""
    ports = f"(float[N,5,4] x, {mask} mask) => (float[N,4] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> net {ports} {{ {body} }}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


@pytest.mark.parametrize(
    ("body", "deciding"),
    [
        ("y = Relu (x)", set()),
        ("a = Sigmoid (x) y = Transpose (a)", set()),
        ("a = Exp (x) b = Abs (x) y = Mul (a, b)", set()),
        ("a = Exp (x) y = Add (a, two)", set()),
        ("y = Clip (x, two)", set()),
        ("y = Cast <to = 1> (mask)", {"mask"}),
        ("a = Cast <to = 1> (mask) y = ReduceSum (a)", {"mask"}),
        ("p = Equal (mask, zero) y = Cast <to = 1> (p)", set()),
        ("a = Cast <to = 1> (mask) y = Add (a, x)", {"mask", "x"}),
        ("y = Add (x, minus)", None),
        ("y = Sub (x, x)", None),
        ("y = Clip (x, minus)", None),
        ("y = Neg (x)", None),
        ("y = ReduceSum (x)", {"x"}),
        ("a = Cast <to = 6> (x) b = Mul (a, a) y = Cast <to = 1> (b)", None),
        ("y = MaxPool <kernel_shape = [2], dilations = [3], pads = [3, 3]> (x)", None),
    ],
)
def test_what_is_never_negative(body: str, deciding: set[str] | None) -> None:
    constants: dict[str, Any] = {"two": np.float32(2), "minus": np.float32(-1), "zero": np.int64(0)}
    constants = {name: value for name, value in constants.items() if f"{name})" in body}
    assert list_deciding(model_of(body, **constants).graph.outputs[0]) == deciding


_POOL = """
    u = Unsqueeze (mask, last) e = Expand (u, {shape}) w = Cast <to = 1> (e) p = Mul (x, w)
    s = ReduceSum <keepdims = 0> (p, one) n = ReduceSum <keepdims = {keeps}> ({weights}, one)
    c = Clip (n, {least}) y = Div (s, c)
"""
_CONSTANTS: dict[str, Any] = {
    "last": np.array([-1]), "one": np.array([1]), "whole": np.array([1, 1, 4]), "least": np.float32(1e-9),
    "negative": np.float32(-1),
}  # fmt: skip


def _pool(shape: str = "whole", keeps: int = 0, weights: str = "w", least: str = "least") -> ir.Model:
    body = _POOL.format(shape=shape, keeps=keeps, weights=weights, least=least)
    constants = {name: value for name, value in _CONSTANTS.items() if f"{name})" in body}
    return model_of(body, **constants)


def _bound(model: ir.Model, x: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> float:
    return compile_bounds(model).find(measure_inputs({"x": x, "mask": mask}), math.inf).magnitudes["y"]


def test_a_mean_of_masked_tokens_is_no_larger_than_they_are() -> None:
    model, rng = _pool(), np.random.default_rng(0)
    session = open_session(model, optimize=False)
    for mask in (rng.integers(0, 2, (3, 5)), np.zeros((3, 5), np.int64), rng.integers(0, 9, (3, 5))):
        x = rng.standard_normal((3, 5, 4)).astype(np.float32)
        (y,) = session.run(["y"], {"x": x, "mask": mask})
        assert np.abs(y).max() <= _bound(model, x, mask) == np.abs(x).max()


def test_weights_below_zero_bound_no_mean() -> None:
    model = _pool()
    x, mask = np.ones((1, 5, 4), np.float32), np.array([[3, -2, 0, 0, 0]])
    x[0, 1] = -1
    (y,) = open_session(model, optimize=False).run(["y"], {"x": x, "mask": mask})
    assert np.abs(y).max() > 1
    assert _bound(model, x, mask) == math.inf


@pytest.mark.parametrize("other", [{"weights": "p"}, {"keeps": 1}, {"least": "negative"}])
def test_what_is_no_mean_is_not_bounded_as_one(other: dict[str, Any]) -> None:
    assert _bound(_pool(**other), np.ones((1, 5, 4), np.float32), np.ones((1, 5), np.int64)) == math.inf


def test_weights_that_are_spread_over_the_sum_are_no_mean() -> None:
    body = """
        w = Cast <to = 1> (mask) p = Mul (x, w) s = ReduceSum <keepdims = 0> (p, one)
        n = ReduceSum <keepdims = 0> (w, one) c = Clip (n, least) y = Div (s, c)
    """
    model = model_of(body, "int64[N,1,4]", one=np.array([1]), least=np.float32(1e-9))
    x, mask = np.ones((1, 5, 4), np.float32), np.ones((1, 1, 4), np.int64)
    (y,) = open_session(model, optimize=False).run(["y"], {"x": x, "mask": mask})
    assert y.max() == 5
    assert _bound(model, x, mask) == math.inf
