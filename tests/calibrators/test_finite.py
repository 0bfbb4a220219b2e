"""Where NaN can arise, and where it cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.calibrators.finite import list_doubtful

_NORM = "c = ReduceMean <axes = [1]> (s) e = Add (c, eps) r = Sqrt (e) y = Div (x, r)"


def doubtful(
    body: str, magnitudes: Mapping[str, float] | None = None, finite: tuple[str, ...] = ()
) -> set[str]:
    constants: dict[str, Any] = {
        "eps": np.float32(1e-5), "two": np.float32(2), "half": np.float32(0.5), "zero": np.float32(0),
        "mask": np.array([0, -np.inf, 0, 0], np.float32), "w": np.ones((4, 4), np.float32),
        "g": np.ones(4, np.float32),
    }  # fmt: skip
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> net (float[N,4] x) => (float[N,4] y) {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
        if f"{name})" in body or f"{name}," in body
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return list_doubtful(model, finite, magnitudes or {})


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("a = MatMul (x, w) y = Relu (a)", set()),
        ("a = Sqrt (x) y = Relu (a)", {"a", "y"}),
        ("a = Relu (x) y = Sqrt (a)", set()),
        ("a = Log (x) y = Sigmoid (a)", {"a", "y"}),
        ("a = Pow (x, two) y = Neg (a)", set()),
        ("a = Pow (x, half) y = Neg (a)", {"a", "y"}),
        ("y = Div (x, two)", set()),
        ("y = Div (x, zero)", {"y"}),
        ("y = Div (x, x)", {"y"}),
        (f"s = Mul (x, x) {_NORM}", set()),
        (f"s = Pow (x, two) {_NORM}", set()),
        (f"s = Abs (x) {_NORM}", {"y"}),
        ("y = LayerNormalization (x, g)", set()),
        ("y = LayerNormalization <epsilon = 0.0> (x, g)", {"y"}),
        ("a = Add (x, mask) y = Softmax (a)", {"a", "y"}),
        ("y = Tan (x)", {"y"}),
    ],
)
def test_nan_comes_of_operators_and_infinities_alone(body: str, found: set[str]) -> None:
    assert doubtful(body) == found


def test_what_is_known_to_be_finite_ends_the_doubt() -> None:
    assert doubtful("a = Log (x) b = Relu (a) y = Relu (b)", finite=("b",)) == {"a"}


def test_what_overflows_on_the_way_may_end_as_nan() -> None:
    body = "a = Relu (x) b = Add (a, a) y = MatMul (b, w)"
    assert doubtful(body, {"x": math.inf}) == {"a", "b", "y"}
    assert doubtful(body, {"b": 1e30}) == {"y"}
    assert doubtful(body, {"b": 1e10}) == set()
