"""Every rule by which an operator is brought to another opset, and every reason why it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.graph.opset import convert_opset, read_opset
from trtq.pipeline.graph.opset.refit import CannotConvertError, find_schema, refit

_X = np.random.default_rng(5).standard_normal((2, 3, 4, 4)).astype(np.float32)
_MIX = "(float[2,3,4,4] x) => (float[A,B,C,D] y)"


@pytest.fixture
def raised(path_of: Callable[..., Path]) -> Callable[..., ir.Model]:
    def convert(text: str, opset: int, version: int = 19, **weights: Any) -> ir.Model:
        ir_version = 11 if opset > 22 else 9
        return convert_opset(
            ir.load(path_of(f"g {text}", opset=opset, ir_version=ir_version, **weights)), version
        )

    return convert


def _run(model: ir.Model, **feed: NDArray[Any]) -> NDArray[Any]:
    return run(open_session(model, optimize=False), ["y"], {"x": _X, **feed})[0]


@pytest.mark.parametrize(
    ("text", "opset", "weights", "wanted"),
    [
        (_MIX + ' { y = Cast<to = "FLOAT">(x) }', 1, {}, _X),
        (
            _MIX + " { y = Tile(x, n, a) }",
            1,
            {"n": np.float32(2), "a": np.float32(1)},
            np.tile(_X, (1, 2, 1, 1)),
        ),
        (
            _MIX + " { y = GlobalLpPool<p = 1.0>(x) }",
            1,
            {},
            np.abs(_X).sum((2, 3), keepdims=True),
        ),
        (
            _MIX + " { y, z = Split<axis = 1>(x, n) }",
            1,
            {"n": np.array([1, 2], np.float32)},
            _X[:, :1],
        ),
        (
            _MIX + " { y = Pad<paddings = [0,0,1,0,0,0,0,1]>(x) }",
            1,
            {},
            np.pad(_X, ((0, 0), (0, 0), (1, 0), (0, 1))),
        ),
        (
            _MIX + " { y = Upsample<height_scale = 2.0, width_scale = 1.0>(x) }",
            1,
            {},
            np.repeat(_X, 2, 2),
        ),
        (_MIX + " { y, z = Split<axis = 3, split = [1, 3]>(x) }", 11, {}, _X[..., :1]),
        (_MIX + " { y, z = Split<axis = 3>(x) }", 13, {}, _X[..., :2]),
        (_MIX + " { y, m = Dropout(x) }", 7, {}, _X),
        (
            _MIX + " { y = PRelu(x, s) }",
            6,
            {"s": np.array([0.1, 0.2, 0.3], np.float32)},
            np.where(_X < 0, _X * np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1), _X),
        ),
        (_MIX + " { y = ReduceMax<axes = [2, -1]>(x) }", 11, {}, _X.max((2, 3), keepdims=True)),
    ],
)
def test_a_rule_keeps_what_is_computed(
    raised: Callable[..., ir.Model],
    text: str,
    opset: int,
    weights: dict[str, NDArray[Any]],
    wanted: NDArray[Any],
) -> None:
    model = raised(text, opset, **weights)
    assert read_opset(model) == 19
    np.testing.assert_allclose(_run(model), wanted, rtol=1e-6)


def test_the_axis_of_a_fourier_transform_stays(raised: Callable[..., ir.Model]) -> None:
    model = raised("(float[2,3,4,1] x) => (float[A,B,C,D] y) { y = DFT<axis = 2>(x) }", 17, 20)
    found = _run(model, x=_X[..., :1])
    np.testing.assert_allclose(
        found[..., 0] + 1j * found[..., 1], np.fft.fft(_X[..., 0], axis=2), rtol=1e-4, atol=1e-5
    )


def test_a_gru_of_opset_1_runs_forward(raised: Callable[..., ir.Model]) -> None:
    """Its schema has a default direction with a spelling error."""
    text = """(float[5,2,3] x, float[1,12,3] w, float[1,12,4] r) => (float[A,B,C,D] y, float[E,F,G] h) {
        y, h = GRU<hidden_size = 4, output_sequence = 1>(x, w, r) }"""
    (node,) = raised(text, 1).graph
    assert node.attributes["direction"].value == "forward"
    assert "output_sequence" not in node.attributes


def test_a_dequantize_without_a_dtype_of_its_own_is_lowered(raised: Callable[..., ir.Model]) -> None:
    text = "(int8[4] x) => (float[4] y) { y = DequantizeLinear<output_dtype = 1>(x, s) }"
    (node,) = raised(text, 23, 21, s=np.float32(0.5)).graph
    assert "output_dtype" not in node.attributes


@pytest.mark.parametrize(
    ("text", "opsets", "weights", "words"),
    [
        (_MIX + ' { y = Cast<to = "WORD">(x) }', (1, 19), {}, "there is no element type 'WORD'"),
        (
            "(float[2,3] x, float n, float a) => (float[A,B] y) { y = Tile(x, n, a) }",
            (1, 19),
            {},
            "what it repeats is computed",
        ),
        (
            _MIX + " { y = GlobalLpPool<p = 1.5>(x) }",
            (1, 19),
            {},
            "its p is 1.5, which must be an integer from then on",
        ),
        (
            "(float[2,4] x, float[2] n) => (float[A,B] y, float[A,B] z) { y, z = Split<axis = 1>(x, n) }",
            (1, 19),
            {},
            "the sizes of its parts are computed",
        ),
        (
            "(float[2] x) => (float[2] y, float[2] m) { y, m = Dropout(x) }",
            (7, 19),
            {},
            "its mask is read, which becomes a bool",
        ),
        (
            "(float[2] x, float[2] z) => (float[2] y) { y = Mod(x, z) }",
            (28, 25),
            {},
            "with fmod=0 it takes integers only there",
        ),
        (
            '(int8[2] x) => (int8[2] y) { y = BitShift<direction = "LEFT">(x, x) }',
            (28, 25),
            {},
            "takes no int8",
        ),
        (
            "(float16[2] x) => (float16[2] y) { y = Celu(x) }",
            (28, 25),
            {},
            "it takes no float16 there",
        ),
        (
            "(float[2,3,4] x, float[2,3] z) => (float[2,3,4] y) { y = Add<broadcast = 1, axis = 2>(x, z) }",
            (6, 19),
            {},
            "an operand of rank 2 does not lie along axis 2 of rank 3",
        ),
        (
            """(float[2,3,4] x, int64[R] s, float[3] z) => (float y) {
                r = Reshape(x, s) y = Add<broadcast = 1, axis = 1>(r, z) }""",
            (6, 19),
            {},
            "its operands lie along axis 1, and their ranks are unknown",
        ),
    ],
)
def test_why_a_node_cannot_be_brought_to_another_opset(
    raised: Callable[..., ir.Model],
    text: str,
    opsets: tuple[int, int],
    weights: dict[str, NDArray[Any]],
    words: str,
) -> None:
    with pytest.raises(ModelError, match=f"cannot be brought from opset .*{words}.*; export the model with"):
        raised(text, *opsets, **weights)


@pytest.mark.parametrize(
    ("op_type", "count", "words"),
    [("Relu", 2, "it has more inputs or outputs than the operator"), ("Add", 1, "an input is missing")],
)
def test_a_node_has_the_inputs_of_its_operator(op_type: str, count: int, words: str) -> None:
    node = ir.node(op_type, [ir.Value(name=f"x{index}") for index in range(count)])
    with pytest.raises(CannotConvertError, match=words):
        refit(node, find_schema(op_type, 13), find_schema(op_type, 14))
