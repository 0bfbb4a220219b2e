"""Tests of models that came with Q/DQ: what is quantized in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.pipeline.graph.quantized import (
    QuantizedLayer,
    find_quantized_layers,
    is_quantized,
    name_formats,
)

ModelOf = Callable[..., ir.Model]
_SCALE, _ZERO = np.asarray(0.05, np.float32), np.asarray(0, np.int8)
_SYMMETRIC: dict[str, NDArray[Any]] = {"s": _SCALE, "z": _ZERO}
_FP8_ZERO = np.asarray(0, ml_dtypes.float8_e4m3fn)
_PAIR = "[q] q = QuantizeLinear (x, s, z) [dq] y = DequantizeLinear (q, s, z)"


def _per_channel(count: int) -> dict[str, NDArray[Any]]:
    return {"sw": np.full(count, 0.01, np.float32), "zw": np.zeros(count, np.int8)}


def _layers(model_of: ModelOf, interface: str, body: str, **weights: NDArray[Any]) -> list[QuantizedLayer]:
    activation = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
    text = f"g ({interface.split(' => ')[0]}) => ({interface.split(' => ')[1]}) {{ {activation} {body} }}"
    return list(find_quantized_layers(model_of(text, **{**_SYMMETRIC, **weights})))


_CONV = "float[1, 4, 8, 8] x => float[1, 8, 6, 6] y"
_MATMUL = "float[2, 4] x => float[2, 8] y"
_CODES = np.ones((8, 4, 3, 3), np.int8)
_MATRIX = np.ones((4, 8), np.int8)


def test_a_float_model_is_not_quantized(model_of: ModelOf) -> None:
    model = model_of(
        "g (float[2, 4] x) => (float[2, 8] y) { y = MatMul (x, w) }", w=np.ones((4, 8), np.float32)
    )
    assert not is_quantized(model)
    assert find_quantized_layers(model) == ()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("g (float[4] x) => (int8[4] y) { y = QuantizeLinear (x, s, z) }", _SYMMETRIC),
        ("g (int8[4] x) => (float[4] y) { y = DequantizeLinear (x, s, z) }", _SYMMETRIC),
        ("g (float[4] x) => (uint8[4] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear (x) }", {}),
        ("g (int8[2, 4] x) => (int32[2, 8] y) { y = MatMulInteger (x, w) }", {"w": _MATRIX}),
    ],
)
def test_any_quantized_operator_makes_a_quantized_model(
    text: str, weights: dict[str, NDArray[Any]], model_of: ModelOf
) -> None:
    assert is_quantized(model_of(text, **weights))


def test_a_convolution_with_both_operands_behind_qdq_is_a_layer(model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        _CONV,
        "dw = DequantizeLinear <axis = 0> (w, sw, zw) [conv] y = Conv (d, dw)",
        w=_CODES,
        **_per_channel(8),
    )
    assert found == [QuantizedLayer("conv", "Conv", (), 0, 0)]


def test_a_weight_with_a_pair_of_its_own_is_a_weight(model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        _CONV,
        "qw = QuantizeLinear <axis = 0> (w, sw, zw) dw = DequantizeLinear <axis = 0> (qw, sw, zw) "
        "[conv] y = Conv (d, dw)",
        w=_CODES.astype(np.float32),
        **_per_channel(8),
    )
    assert found == [QuantizedLayer("conv", "Conv", (), 0, 0)]


@pytest.mark.parametrize(
    ("axis", "wanted"), [("", 1), ("<axis = 1>", 1), ("<axis = -1>", 1), ("<axis = 0>", 0)]
)
def test_the_axis_of_the_scales_is_counted_from_the_front(axis: str, wanted: int, model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        _MATMUL,
        f"dw = DequantizeLinear {axis} (w, sw, zw) [mm] y = MatMul (d, dw)",
        w=_MATRIX,
        **_per_channel(_MATRIX.shape[wanted]),
    )
    assert found == [QuantizedLayer("mm", "MatMul", (), wanted, 1)]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_for_the_whole_weight_has_no_axis(shape: tuple[int, ...], model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        _MATMUL,
        "dw = DequantizeLinear (w, sw, zw) [mm] y = MatMul (d, dw)",
        w=_MATRIX,
        sw=np.full(shape, 0.01, np.float32),
        zw=np.zeros(shape, np.int8),
    )
    assert found == [QuantizedLayer("mm", "MatMul", (), None, 1)]


def test_the_shape_of_the_activations_scale_is_told(model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        _MATMUL,
        "dw = DequantizeLinear <axis = 1> (w, sw, zw) [mm] y = MatMul (d, dw)",
        s=np.full(1, 0.05, np.float32),
        z=np.zeros(1, np.int8),
        w=_MATRIX,
        **_per_channel(8),
    )
    assert found == [QuantizedLayer("mm", "MatMul", (1,), 1, 1)]


def test_a_computed_scale_has_no_known_shape_and_no_axis(model_of: ModelOf) -> None:
    model = model_of(
        """g (float[2, 4] x, float s, float[8] sw) => (float[2, 8] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            dw = DequantizeLinear <axis = 1> (w, sw, zw)
            [mm] y = MatMul (d, dw)
        }""",
        z=_ZERO,
        w=_MATRIX,
        zw=np.zeros(8, np.int8),
    )
    assert find_quantized_layers(model) == (QuantizedLayer("mm", "MatMul", None, None, 1),)


@pytest.mark.parametrize(
    ("body", "weight", "layer"),
    [
        (
            "dw = DequantizeLinear <axis = 0> (w, sw, zw) [fc] y = Gemm <transB = 1> (d, dw)",
            _MATRIX.T,
            QuantizedLayer("fc", "Gemm", (), 0, 0),
        ),
        (
            "dw = DequantizeLinear <axis = 1> (w, sw, zw) [fc] y = Gemm (d, dw, b)",
            _MATRIX,
            QuantizedLayer("fc", "Gemm", (), 1, 1),
        ),
        (
            "dw = DequantizeLinear <axis = 0> (w, sw, zw) t = Transpose <perm = [1, 0]> (dw) "
            "[mm] y = MatMul (d, t)",
            _MATRIX.T,
            QuantizedLayer("mm", "MatMul", (), None, 1),
        ),
        (
            "dw = DequantizeLinear <axis = 0> (w, sw, zw) i = Identity (dw) r = Reshape (i, shape) "
            "[mm] y = MatMul (d, r)",
            _MATRIX.T,
            QuantizedLayer("mm", "MatMul", (), None, 1),
        ),
    ],
)
def test_layers_by_their_pattern(
    body: str, weight: NDArray[np.int8], layer: QuantizedLayer, model_of: ModelOf
) -> None:
    others = {"b": np.zeros(8, np.float32), "shape": np.array([4, 8]), **_per_channel(8)}
    assert _layers(model_of, _MATMUL, body, w=weight, **others) == [layer]


def test_casts_are_looked_through(model_of: ModelOf) -> None:
    model = model_of(
        """g (float[2, 4] x) => (float16[2, 8] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            h = Cast <to = 10> (d)
            dw = DequantizeLinear <axis = 1> (w, sw, zw)
            i = Identity (dw)
            hw = Cast <to = 10> (i)
            [mm] y = MatMul (h, hw)
        }""",
        w=_MATRIX,
        **_SYMMETRIC,
        **_per_channel(8),
    )
    assert find_quantized_layers(model) == (QuantizedLayer("mm", "MatMul", (), 1, 1),)


def test_a_transposed_convolution_and_a_constant_on_the_left(model_of: ModelOf) -> None:
    found = _layers(
        model_of,
        "float[1, 4, 8, 8] x => float[1, 8, 16, 16] y, float[1, 4, 3, 8] m",
        "dw = DequantizeLinear <axis = 1> (w, sw, zw) [up] y = ConvTranspose <strides = [2, 2]> (d, dw) "
        "dm = DequantizeLinear (left, s, z) [left] m = MatMul (dm, d)",
        w=np.ones((4, 8, 2, 2), np.int8),
        left=np.ones((3, 8), np.int8),
        **_per_channel(8),
    )
    assert found == [
        QuantizedLayer("up", "ConvTranspose", (), 1, 1),
        QuantizedLayer("left", "MatMul", (), None, 0),
    ]


def test_two_activations_make_a_layer_without_axes(model_of: ModelOf) -> None:
    model = model_of(
        """g (float[3, 2, 4] a, int8[3, 4, 8] b) => (float[3, 2, 8] y) {
            q = QuantizeLinear (a, s, z)
            d = DequantizeLinear (q, s, z)
            e = DequantizeLinear (b, s, z)
            [scores] y = MatMul (d, e)
        }""",
        **_SYMMETRIC,
    )
    assert find_quantized_layers(model) == (QuantizedLayer("scores", "MatMul", (), None, None),)


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (d, wf)",  # only the activation
        "dw = DequantizeLinear (w, s, z) m = Add (dw, one) y = MatMul (d, m)",
    ],
)
def test_a_layer_with_a_float_weight_is_none(body: str, model_of: ModelOf) -> None:
    weights: dict[str, NDArray[Any]] = {
        "w": _MATRIX,
        "wf": np.ones((4, 8), np.float32),
        "one": np.ones(1, np.float32),
    }
    assert _layers(model_of, _MATMUL, body, **weights) == []


@pytest.mark.parametrize(
    "layer",
    ["MatMul (d, dw)", "Conv (e, ew)"],
)
def test_a_weight_of_four_bits_beside_int8_is_told_as_that_mixture(layer: str, model_of: ModelOf) -> None:
    model = model_of(
        f"""g (float[2, 4] x) => (float[M, N] y) {{
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            e = Unsqueeze (d, last)
            w = Cast <to = 22> (wi)
            dw = DequantizeLinear (w, s)
            ew = Unsqueeze (dw, last)
            [layer] v = {layer}
            y = Flatten (v)
        }}""",
        opset=21,
        ir_version=10,
        wi=_MATRIX if layer.startswith("MatMul") else _MATRIX.T.copy(),
        last=np.array([2]),
        **_SYMMETRIC,
    )
    assert [(layer.name, layer.asked) for layer in find_quantized_layers(model)] == [("layer", "int8 x int4")]


@pytest.mark.parametrize(
    ("factor", "asked"), [(np.float32(0.5), "int8"), (np.full(4, 0.5, np.float32), "int8-weights")]
)
def test_factors_one_behind_another_are_followed_once_each(
    model_of: ModelOf, factor: NDArray[Any], asked: str
) -> None:
    factors = " ".join(f"d{i + 1} = Mul (d{i}, f)" for i in range(40))
    body = f"d0 = DequantizeLinear (q, s, z) {factors} v = DequantizeLinear <axis = 1> (w, sw, zw)"
    weights = {"w": _MATRIX, "f": np.asarray(factor), **_per_channel(8)}
    text = (
        f"g (float[2, 4] x) => (float[2, 8] y) {{ q = QuantizeLinear (x, s, z) {body} y = MatMul (d40, v) }}"
    )
    (layer,) = find_quantized_layers(model_of(text, **_SYMMETRIC, **weights))
    assert layer.asked == asked


@pytest.mark.parametrize(
    "body",
    [
        "dw = DequantizeLinear (w, s, z) [mm] y = MatMul (x, dw)",
        "r = Relu (d) dw = DequantizeLinear (w, s, z) [mm] y = MatMul (r, dw)",  # float arithmetic between
    ],
)
def test_a_weight_alone_is_asked_for_beside_floats(body: str, model_of: ModelOf) -> None:
    (layer,) = _layers(model_of, _MATMUL, body, w=_MATRIX)
    assert (layer.activation, layer.weight, layer.asked) == ("", "int8", "int8-weights")


@pytest.mark.parametrize(
    ("activation", "weight", "asked"),
    [("fp8", "fp8", "fp8"), ("", "int4", "int4-weights"), ("int8", "int4", "int8 x int4")],
)
def test_a_layer_is_asked_for_in_the_formats_of_its_operands(
    activation: str, weight: str, asked: str
) -> None:
    layer = QuantizedLayer("mm", "MatMul", (), 1, 1, activation, weight)
    assert layer.asked == asked


@pytest.mark.parametrize(("zero", "asked"), [(np.int8(0), "int8 x int4"), (_FP8_ZERO, "fp8 x int4")])
def test_a_weight_that_is_quantized_a_second_time_is_stored_in_its_first_format(
    zero: NDArray[Any], asked: str, model_of: ModelOf
) -> None:
    model = model_of(
        """g (float[2, 32] x) => (float[2, 8] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            four = DequantizeLinear <axis = 0, block_size = 16> (w, blocks)
            again = QuantizeLinear (four, s, z)
            dw = DequantizeLinear (again, s, z)
            [mm] y = MatMul (d, dw)
        }""",
        opset=21,
        ir_version=10,
        w=np.ones((32, 8), ml_dtypes.int4),
        blocks=np.full((2, 8), 0.1, np.float32),
        s=np.float32(0.05),
        z=zero,
    )
    (layer,) = find_quantized_layers(model)
    assert layer.asked == asked


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ((), "quantized"),
        (("fp8", "fp8"), "fp8"),
        (("int4-weights",), "int4-weights"),
        (("int8", "int8-weights"), "int8"),
        (("int8", "int4-weights"), "quantized"),
        (("fp8", "int8"), "quantized"),
        (("int8 x int4",), "quantized"),
    ],
)
def test_a_model_is_called_by_the_one_format_that_it_has(asked: tuple[str, ...], name: str) -> None:
    assert name_formats([], *asked) == name
