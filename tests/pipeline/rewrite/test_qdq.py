"""Tests of explicit Q/DQ: the graph by hand, by the checker and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checked_qdq import quantized, ranges_to
from int8_encodings import int8_along
from made_up import random_array
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.errors import ModelError, UsageError
from trtq.models.spec import Activations
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.qparams import choose_activation_qparams, choose_weight_qparams, quantize_array

DTYPES = ("float32", "float16", "bfloat16")


def _constant(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def _reader(value: ir.Value | None) -> ir.Node:
    """Returns the node that the value comes from."""
    assert value is not None
    producer = value.producer()
    assert producer is not None
    return producer


CONV = "g (float[N,4,8,8] x) => (float[N,6,6,6] y) { [conv] y = Conv(x, w, b) }"


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_the_pair_at_an_activation_and_the_weight(
    model_of: Callable[..., ir.Model], scale_dtype: str
) -> None:
    weight = random_array(6, 4, 3, 3)
    model = quantized(model_of(CONV, w=weight, b=random_array(6)), scale_dtype)
    (conv,) = _nodes(model, "Conv")
    activation, dequantized, bias = (value for value in conv.inputs)
    pair = _reader(activation)
    quantizer = _reader(pair.inputs[0])
    assert (quantizer.op_type, pair.op_type) == ("QuantizeLinear", "DequantizeLinear")
    assert quantizer.inputs[0] is model.graph.inputs[0]
    assert quantizer.inputs[1:] == pair.inputs[1:]
    scale, zero_point = _constant(pair.inputs[1]), _constant(pair.inputs[2])
    assert scale.dtype == np.float32
    assert scale.shape == ()  # with (1,) TensorRT runs the Conv in float
    assert zero_point.dtype == np.int8
    assert zero_point.shape == ()
    assert zero_point == 0
    assert float(scale) == float(choose_activation_qparams(4.0, scale_dtype).scale)

    reader = _reader(dequantized)
    assert reader.op_type == "DequantizeLinear"
    assert reader.attributes["axis"].as_int() == 0
    codes, scales, zeros = (_constant(value) for value in reader.inputs)
    assert codes.dtype == zeros.dtype == np.int8
    assert scales.dtype == np.float32
    assert (codes.shape, scales.shape, zeros.shape) == (weight.shape, (6,), (6,))
    expected = choose_weight_qparams(weight, int8_along(0), scale_dtype)
    np.testing.assert_array_equal(scales, expected.scale.astype(np.float32))
    np.testing.assert_array_equal(codes, quantize_array(weight, expected))
    assert not zeros.any()
    assert _constant(bias).dtype == np.float32


def test_the_input_model_is_not_changed(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CONV, w=random_array(6, 4, 3, 3), b=random_array(6))
    before = ir.to_proto(model).SerializeToString()
    quantized(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_float_weights_are_dropped(model_of: Callable[..., ir.Model]) -> None:
    model = quantized(model_of(CONV, w=random_array(6, 4, 3, 3), b=random_array(6)))
    assert set(model.graph.initializers) == {
        "b", "x_scale", "x_zero_point", "w_quantized", "w_scale", "w_zero_point",
    }  # fmt: skip


def test_a_float_weight_with_another_reader_stays(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[4,4] z) { y = MatMul(x, w) z = Relu(w) }"
    model = quantized(model_of(text, w=random_array(4, 4)))
    assert {"w", "w_quantized"} <= set(model.graph.initializers)
    assert _nodes(model, "Relu")[0].inputs[0] is model.graph.initializers["w"]


def test_a_weight_that_is_an_output_stays(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=random_array(4, 4))
    model.graph.outputs.append(model.graph.initializers["w"])
    result = quantize(model, place(model), ranges_to({"x": 1.0}))
    assert "w" in result.graph.initializers
    assert [value.name for value in result.graph.outputs] == ["y", "w"]


def test_a_tensor_with_many_readers_has_one_pair_and_floats_stay_float(
    model_of: Callable[..., ir.Model],
) -> None:
    model = model_of(
        """g (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z, float[N,4,8,8] r, float[N,4,8,8] t) {
            r = Relu(x)
            y = Conv(r, w)
            z = Conv(r, v)
            s = Sigmoid(r)
            t = Mul(s, r)
        }""",
        w=random_array(4, 4, 1, 1),
        v=random_array(4, 4, 1, 1),
    )
    result = quantized(model)
    assert [node.name for node in _nodes(result, "QuantizeLinear")] == ["r_QuantizeLinear"]
    assert [node.name for node in _nodes(result, "DequantizeLinear") if "r_" in str(node.name)] == [
        "r_DequantizeLinear"
    ]
    first, second = _nodes(result, "Conv")
    assert first.inputs[0] is second.inputs[0]
    (relu,) = _nodes(result, "Relu")
    assert _nodes(result, "Sigmoid")[0].inputs[0] is relu.outputs[0]
    assert _nodes(result, "Mul")[0].inputs[1] is relu.outputs[0]
    assert result.graph.outputs[2] is relu.outputs[0]


def test_asymmetric_activations_are_finer_after_a_relu(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { r = Relu(x) y = Conv(r, w) }"
    model = model_of(text, w=np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1))  # which has exact codes
    placement = place(model)
    ranges = Ranges({"r": Range(5.0, 0.0, 5.0)}, "minmax()", "0" * 64, "made up", 1)
    want, errors = outputs_of(model)[0], {}
    kinds: tuple[Activations, ...] = ("symmetric", "asymmetric")
    for kind in kinds:
        result = quantize(model, placement, replace(ranges, activations=kind))
        onnx.checker.check_model(ir.to_proto(result), full_check=True)
        errors[kind] = float(np.square(outputs_of(result)[0] - want).mean())
    zero = _constant(_reader(_nodes(result, "Conv")[0].inputs[0]).inputs[2])
    assert (int(zero), zero.dtype) == (0, np.dtype(np.uint8))
    assert errors["asymmetric"] < errors["symmetric"] / 3  # a step half as wide has a quarter of the error


def test_a_weight_of_two_layers_is_quantized_once(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) y = Conv(a, w) }"
    result = quantized(model_of(text, w=random_array(4, 4, 1, 1)))
    first, second = _nodes(result, "Conv")
    assert first.inputs[1] is second.inputs[1]
    assert len(_nodes(result, "DequantizeLinear")) == 3


def test_a_weight_that_two_layers_read_along_different_axes_is_quantized_for_each(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        "g (float[N,4] x) => (float[N,4] y) { a = Gemm(x, w) y = Gemm<transB = 1>(a, w) }",
        w=random_array(4, 4),
    )
    result = quantized(model, amax=10.0)
    first, second = (_reader(node.inputs[1]) for node in _nodes(result, "Gemm"))
    assert (first.attributes["axis"].as_int(), second.attributes["axis"].as_int()) == (1, 0)
    assert first.name != second.name
    want, have = outputs_of(model)[0], outputs_of(result)[0]
    assert np.linalg.norm(have - want) < 0.05 * np.linalg.norm(want)


def test_names_that_are_taken_are_not_taken_again(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        """g (float[N,4] x) => (float[N,4] y) {
            x_quantized = Relu(x)
            x_dequantized = Neg(x_quantized)
            x_scale = Abs(x_dequantized)
            w_dequantized = Mul(x_scale, x_zero_point)
            m = MatMul(x, w)
            y = Add(m, w_dequantized)
        }""",
        w=random_array(4, 4),
        x_zero_point=random_array(4),
    )
    result = quantized(model)
    np.testing.assert_allclose(outputs_of(result)[0], outputs_of(model)[0], atol=0.2)


@pytest.mark.parametrize(
    ("call", "w", "axis"),
    [
        ("Gemm(x, w)", (4, 6), 1),
        ("Gemm<transB = 1>(x, w)", (6, 4), 0),
        ("MatMul(x, w)", (4, 6), 1),
        ("MatMul(w, x)", (6, 4), 0),
    ],
)
def test_the_axis_of_the_output_channels_stands_in_the_graph(
    model_of: Callable[..., ir.Model], call: str, w: tuple[int, ...], axis: int
) -> None:
    weight = random_array(*w)
    model = quantized(model_of(f"g (float[4,4] x) => (float[A,B] y) {{ y = {call} }}", w=weight))
    (node,) = (node for node in _nodes(model, "DequantizeLinear") if "axis" in node.attributes)
    assert node.attributes["axis"].as_int() == axis
    wanted = quantize_array(weight, choose_weight_qparams(weight, int8_along(axis), "float32"))
    np.testing.assert_array_equal(_constant(node.inputs[0]), wanted)


def test_many_weights_in_one_tensor_have_one_scale(model_of: Callable[..., ir.Model]) -> None:
    model = quantized(
        model_of("g (float[3,5,4] x) => (float[3,5,6] y) { y = MatMul(x, w) }", w=random_array(3, 4, 6))
    )
    node = _reader(_nodes(model, "MatMul")[0].inputs[1])
    assert not node.attributes
    assert _constant(node.inputs[1]).shape == ()


def test_the_shortcut_of_an_addition_is_quantized(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { r = Relu(x) c = Conv(r, w) y = Add(c, r) }",
        w=random_array(4, 4, 1, 1),
    )
    result = quantized(model)
    (conv,), (add,) = _nodes(result, "Conv"), _nodes(result, "Add")
    assert add.inputs[0] is conv.outputs[0]
    assert add.inputs[1] is conv.inputs[0]


def test_a_dead_tensor_and_dead_channels_have_usable_scales(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    weight = random_array(6, 4, 3, 3)
    weight[2] = 0
    model = model_of(CONV, w=weight, b=random_array(6))
    result = quantized(model, amax=0.0)
    scales = [_constant(node.inputs[1]) for node in _nodes(result, "DequantizeLinear")]
    assert all((scale > 0).all() and np.isfinite(scale).all() for scale in scales)
    feed = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    np.testing.assert_allclose(outputs_of(result, feed=feed)[0], outputs_of(model, feed=feed)[0], atol=1e-6)


def test_a_range_that_is_missing(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CONV, w=random_array(6, 4, 3, 3), b=random_array(6))
    with pytest.raises(UsageError, match="the ranges hold nothing for tensor 'x'"):
        quantize(model, place(model), ranges_to({"z": 1.0}))


@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize(("element", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_scales_have_the_dtype_of_their_tensor(
    model_of: Callable[..., ir.Model], element: str, dtype: type, scale_dtype: str
) -> None:
    weight = random_array(4, 6)
    weight[:, 1] *= 1e-6  # whose scale is 0 in FP16 if it is rounded to the nearest
    text = f"g ({element}[N,4] x) => ({element}[N,6] y) {{ y = MatMul(x, w) }}"
    model = model_of(text, w=weight.astype(dtype))
    result = quantized(model, scale_dtype, amax=0.1)
    for node in (*_nodes(result, "QuantizeLinear"), *_nodes(result, "DequantizeLinear")):
        scale = _constant(node.inputs[1])
        assert scale.dtype == np.dtype(dtype)
        assert (scale.astype(np.float64) > 0).all()
    (quantizer,) = _nodes(result, "QuantizeLinear")
    assert float(_constant(quantizer.inputs[1])) * 127 >= 0.1
    codes = _constant(_reader(_nodes(result, "MatMul")[0].inputs[1]).inputs[0])
    assert np.abs(codes.astype(int)).max(axis=0).min() > 0


def test_a_weight_that_is_not_finite_is_refused(model_of: Callable[..., ir.Model]) -> None:
    w = np.full((64, 64), np.nan, np.float32)
    model = model_of("g (float[2,64] x) => (float[2,64] y) { y = MatMul (x, w) }", w=w)
    with pytest.raises(ModelError, match="weight 'w' has 4096 values that are infinite or not a number"):
        quantized(model)
