"""Tests of the emulation of FP16 and BF16, against numpy's numbers of 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16

_X = np.array([[70000, 300, -1, 1e-9], [0.1, -2, 1e-6, 65504]], np.float32)


def _emulated(half: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    emulated = emulate_halves(half)
    assert emulated is not None
    (y,) = run(open_session(emulated, optimize=False), ["y"], {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize(("convert", "dtype"), [(to_fp16, np.float16), (to_bf16, ml_dtypes.bfloat16)])
@pytest.mark.parametrize(
    ("text", "compute"),
    [
        ("y = Mul (x, x)", lambda x: x * x),
        ("a = Mul (x, x) y = Sqrt (a)", lambda x: np.sqrt(x * x)),
        ("a = Sqrt (x) y = Neg (a)", lambda x: -np.sqrt(x)),
        ("a = Add (x, x) b = Transpose <perm = [0, 1]> (a) y = Mul (b, a)", lambda x: (x + x) * (x + x)),
    ],
)
def test_every_tensor_is_rounded_as_numpy_rounds_it(
    graph_of: Callable[..., Graph],
    text: str,
    compute: Callable[[NDArray[Any]], NDArray[Any]],
    convert: Callable[[ir.Model], tuple[ir.Model, Any]],
    dtype: Any,
) -> None:
    x = np.abs(_X)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = compute(x.astype(dtype)).astype(np.float32)
    model = graph_of(f"net (float[N, 4] x) => (float[N, 4] y) {{ {text} }}").model
    np.testing.assert_array_equal(_emulated(convert(model)[0], x), wanted)


@pytest.mark.parametrize(
    "text",
    [
        "b = Relu (a)",
        "b = Concat <axis = 0> (a, a)",
        "c = Neg (a) d = Max (a, c) b = Clip (d, low)",
        "b = Where (yes, a, a)",
    ],
)
def test_what_only_picks_values_is_not_rounded_again(graph_of: Callable[..., Graph], text: str) -> None:
    model = graph_of(
        f"net (float[N, 4] x) => (float[M, 4] y) {{ a = Mul (x, x) {text} y = Mul (b, b) }}",
        low=np.float32(0.5), yes=np.array([[True, False, True, False]]),
    ).model  # fmt: skip
    half, _ = to_fp16(model)
    emulated = emulate_halves(half)
    assert emulated is not None
    rounded = {node.name for node in emulated.graph if str(node.name).endswith("_round")}
    assert "a_round" in rounded
    assert not rounded & {"b_round", "c_round", "d_round"}


def test_a_model_that_is_fp16_from_end_to_end_keeps_its_inputs_and_outputs(
    graph_of: Callable[..., Graph],
) -> None:
    text = """net (float16[N, 4] x) => (float16[N, 4] y, float16[N, 4] z) {
      two = Constant <value = float16 {16384}> ()
      y = Mul (x, two)
      z = Identity (y)
    }"""
    model = emulate_halves(graph_of(text).model)
    assert model is not None
    x = np.array([[1, 2, 40000, -3]], np.float16)
    for output in run(open_session(model, optimize=False), ["y", "z"], {"x": x}):
        assert output.dtype == np.float16
        assert output.tolist() == [[2, 4, np.inf, -6]]


def test_a_float_model_is_left_as_it_is(graph_of: Callable[..., Graph]) -> None:
    assert emulate_halves(graph_of("net (float[2] x) => (float[2] y) { y = Neg (x) }").model) is None


def test_halves_in_bodies_are_rounded_too(graph_of: Callable[..., Graph]) -> None:
    text = """net (bool c, float16[2] x) => (float16[2] y) {
      a = Mul (x, x)
      y = If (c) <then_branch = a () => (float16[2] t) {
                    two = Constant <value = float16 {16384}> () s = Mul (a, two) t = Sqrt (s) },
                  else_branch = b () => (float16[2] e) { e = Neg (a) }>
    }"""
    model = emulate_halves(graph_of(text).model)
    assert model is not None
    session = open_session(model, optimize=False)
    x = np.array([200, 3], np.float16)  # 2 * 200 * 200 overflows
    for given, wanted in [(True, [np.inf, np.sqrt(np.float16(18))]), (False, [-40000, -9])]:
        (y,) = run(session, ["y"], {"c": np.array(given), "x": x})
        assert y.dtype == np.float16
        assert y.tolist() == np.array(wanted, np.float16).tolist()
