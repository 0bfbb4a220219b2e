"""Tests of explicit Q/DQ: the arithmetic by hand, the graph by the checker, ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.errors import ModelError, UsageError
from trtq.models.session import open_session, run
from trtq.models.spec import Activations
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, QUANTIZABLE, place
from trtq.pipeline.quantize.precision import to_fp16
from trtq.pipeline.quantize.qdq import (
    QParams,
    activation_qparams,
    asymmetric_qparams,
    quantize,
    quantize_array,
    weight_qparams,
)
from trtq.pipeline.verify.exact import with_exact_quantize

DTYPES = ("float32", "float16", "bfloat16")


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _ranges(amax: Mapping[str, float]) -> Ranges:
    tensors = {name: Range(value, -value, value) for name, value in amax.items()}
    return Ranges(tensors, "minmax()", "0" * 64, "made up", 1)


def _quantized(
    model: ir.Model, scale_dtype: str = "float32", amax: float = 4.0, **arguments: Any
) -> ir.Model:
    """Returns the model with Q/DQ, which passes the checker; every activation has the same amax."""
    placement = place(model, **arguments)
    ranges = _ranges(dict.fromkeys(placement.activations, amax))
    result = quantize(model, placement, ranges, scale_dtype=scale_dtype)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result


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


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.0, 0), (0.24, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (1.25, 2), (1.75, 4), (-0.25, 0),
        (-0.75, -2), (-1.25, -2), (63.2, 126), (63.5, 127), (64.0, 127), (1e30, 127), (-63.5, -127),
        (-64.0, -127), (-1e30, -127),
    ],
)  # fmt: skip
def test_codes_by_hand_with_the_scale_one_half(value: float, code: int) -> None:
    found = quantize_array(np.array([value], np.float32), QParams(np.array(0.5, np.float32)))
    assert found.dtype == np.int8
    assert found.tolist() == [code]


def test_codes_of_channels_by_hand() -> None:
    weight = np.array([[1.1, -2.0, 0.5], [127.0, 63.5, -0.5], [0.0, 0.0, 0.0]], np.float32)
    qparams = weight_qparams(weight, 0, "float32")
    assert qparams.axis == 0
    assert qparams.scale[1] == 1.0
    assert quantize_array(weight, qparams).tolist() == [[70, -127, 32], [127, 64, 0], [0, 0, 0]]
    assert quantize_array(weight.T, QParams(qparams.scale, 1)).T.tolist() == [
        [70, -127, 32],
        [127, 64, 0],
        [0, 0, 0],
    ]


def _slow(values: NDArray[Any], scale: float) -> list[int]:
    """The definition, number by number: Python's round is half to even."""
    return [max(-127, min(127, round(float(value) / scale))) for value in values.reshape(-1)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), axis=st.sampled_from([None, 0, 1, 2]), size=st.integers(-6, 6))
def test_codes_are_those_of_a_slow_reference(seed: int, axis: int | None, size: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((3, 4, 5)) * 10.0**size).astype(np.float32)
    qparams = weight_qparams(weight, axis, "float32")
    codes = quantize_array(weight, qparams)
    assert qparams.scale.shape == (() if axis is None else (weight.shape[axis],))
    if axis is None:
        assert codes.reshape(-1).tolist() == _slow(weight, float(qparams.scale))
        return
    for channel in range(weight.shape[axis]):
        found = codes.take(channel, axis).reshape(-1).tolist()
        assert found == _slow(np.asarray(weight.take(channel, axis)), float(qparams.scale[channel]))
        assert max(map(abs, found)) == 127


@pytest.mark.parametrize(
    ("ends", "scale", "zero"),
    [
        ((0.0, 25.5), 0.1, -128),
        ((-25.5, 0.0), 0.1, 127),
        ((-12.8, 12.7), 0.1, 0),
        ((-0.375, 5.0), 5.375 / 255, -110),  # -128 + 17.79: HardSwish
    ],
)
def test_zero_points_by_hand(ends: tuple[float, float], scale: float, zero: int) -> None:
    found = asymmetric_qparams(ends, "float32")
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert (found.zero, found.axis) == (zero, None)
    assert found.zero_point.dtype == np.int8
    assert (found.zero_point.shape, int(found.zero_point)) == ((), zero)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e8), st.floats(0, 1e8), st.sampled_from(DTYPES))
def test_asymmetric_codes_reach_both_ends(below: float, above: float, dtype: str) -> None:
    found = asymmetric_qparams((-below, above), dtype)
    scale = float(found.scale)
    assert 0 < scale < math.inf
    assert -128 <= found.zero <= 127
    assert (-128 - found.zero - 0.5) * scale <= -below * (1 - 1e-9)
    assert (127 - found.zero + 0.5) * scale >= above * (1 - 1e-9)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e8), st.sampled_from(DTYPES))
def test_scales_are_positive_finite_and_never_clip(amax: float, dtype: str) -> None:
    scale = activation_qparams(amax, dtype).scale
    assert scale.shape == ()
    assert 0 < float(scale) < math.inf
    assert float(scale) * 127 >= amax * (1 - 1e-15)
    if float(scale) > 2.0**-14:  # where FP16 has all its digits: no larger than it has to be
        assert float(scale) * 127 <= amax * (1 + 2.0**-7)


@pytest.mark.parametrize(
    ("amax", "dtype", "wanted"),
    [
        (127.0, "float32", 1.0),
        (1.0, "float32", float(np.nextafter(np.float32(1 / 127), np.float32(1)))),
        (127.0, "float16", 1.0),
        (127.01, "float16", 1 + 2.0**-10),
        (1e-30, "float16", 2.0**-24),
        (127.0 * 2.0**-24 * 1.5, "float16", 2.0**-23),
        (127.01, "bfloat16", 1 + 2.0**-7),
        (1e-44, "float32", 2.0**-126),
        (0.0, "bfloat16", 2.0**-126),
        (127.0 * 65504, "float16", 65504.0),
    ],
)
def test_scales_by_hand(amax: float, dtype: str, wanted: float) -> None:
    scale = activation_qparams(amax, dtype).scale
    assert scale.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert float(scale) == wanted


def test_a_scale_beyond_fp16_stays_fp32() -> None:
    scale = activation_qparams(1.27e8, "float16").scale
    assert scale.dtype == np.float32
    assert float(scale) == 1e6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_channels_of_zeros_have_positive_scales(dtype: str, axis: int | None) -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[0, 1] = 2.0
    qparams = weight_qparams(weight, axis, dtype)
    assert (qparams.scale.astype(np.float64) > 0).all()
    assert np.isfinite(qparams.scale.astype(np.float64)).all()
    codes = quantize_array(weight, qparams)
    assert codes[0, 1] == (127 if dtype == "float32" else codes[0, 1])
    assert np.count_nonzero(codes) == 1


def test_an_empty_weight_has_a_scale() -> None:
    assert float(weight_qparams(np.zeros((0, 4), np.float32), None, "float32").scale) > 0


def test_zero_points_have_the_shape_of_the_scales() -> None:
    qparams = QParams(np.ones(5, np.float32), 0)
    assert qparams.zero_point.dtype == np.int8
    assert qparams.zero_point.shape == (5,)
    assert not qparams.zero_point.any()


CONV = "g (float[N,4,8,8] x) => (float[N,6,6,6] y) { [conv] y = Conv(x, w, b) }"


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_the_pair_at_an_activation_and_the_weight(
    model_of: Callable[..., ir.Model], scale_dtype: str
) -> None:
    weight = _random(6, 4, 3, 3)
    model = _quantized(model_of(CONV, w=weight, b=_random(6)), scale_dtype)
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
    assert float(scale) == float(activation_qparams(4.0, scale_dtype).scale)

    reader = _reader(dequantized)
    assert reader.op_type == "DequantizeLinear"
    assert reader.attributes["axis"].as_int() == 0
    codes, scales, zeros = (_constant(value) for value in reader.inputs)
    assert codes.dtype == zeros.dtype == np.int8
    assert scales.dtype == np.float32
    assert (codes.shape, scales.shape, zeros.shape) == (weight.shape, (6,), (6,))
    expected = weight_qparams(weight, 0, scale_dtype)
    np.testing.assert_array_equal(scales, expected.scale.astype(np.float32))
    np.testing.assert_array_equal(codes, quantize_array(weight, expected))
    assert not zeros.any()
    assert _constant(bias).dtype == np.float32


def test_the_input_model_is_not_changed(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CONV, w=_random(6, 4, 3, 3), b=_random(6))
    before = ir.to_proto(model).SerializeToString()
    _quantized(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_float_weights_are_dropped(model_of: Callable[..., ir.Model]) -> None:
    model = _quantized(model_of(CONV, w=_random(6, 4, 3, 3), b=_random(6)))
    assert set(model.graph.initializers) == {
        "b", "x_scale", "x_zero_point", "w_quantized", "w_scale", "w_zero_point",
    }  # fmt: skip


def test_a_float_weight_with_another_reader_stays(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4] x) => (float[N,4] y, float[4,4] z) { y = MatMul(x, w) z = Relu(w) }"
    model = _quantized(model_of(text, w=_random(4, 4)))
    assert {"w", "w_quantized"} <= set(model.graph.initializers)
    assert _nodes(model, "Relu")[0].inputs[0] is model.graph.initializers["w"]


def test_a_weight_that_is_an_output_stays(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=_random(4, 4))
    model.graph.outputs.append(model.graph.initializers["w"])
    result = quantize(model, place(model), _ranges({"x": 1.0}))
    assert "w" in result.graph.initializers
    assert [value.name for value in result.graph.outputs] == ["y", "w"]


def test_a_tensor_with_many_readers_has_one_pair_and_floats_stay_float(
    model_of: Callable[..., ir.Model],
) -> None:
    model = model_of(
        """g (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z, float[N,4,8,8] r) {
            r = Relu(x)
            y = Conv(r, w)
            z = Conv(r, v)
            s = Sigmoid(r)
            t = Mul(s, r)
        }""",
        w=_random(4, 4, 1, 1),
        v=_random(4, 4, 1, 1),
    )
    result = _quantized(model)
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
    for kind in get_args(Activations):
        result = quantize(model, placement, replace(ranges, activations=kind))
        onnx.checker.check_model(ir.to_proto(result), full_check=True)
        errors[kind] = float(np.square(outputs_of(result)[0] - want).mean())
    zero = _constant(_reader(_nodes(result, "Conv")[0].inputs[0]).inputs[2])
    assert int(zero) == -128
    assert errors["asymmetric"] < errors["symmetric"] / 3  # a step half as wide has a quarter of the error


def test_a_weight_of_two_layers_is_quantized_once(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) y = Conv(a, w) }"
    result = _quantized(model_of(text, w=_random(4, 4, 1, 1)))
    first, second = _nodes(result, "Conv")
    assert first.inputs[1] is second.inputs[1]
    assert len(_nodes(result, "DequantizeLinear")) == 3


def test_a_weight_that_two_layers_read_along_different_axes_is_quantized_for_each(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        "g (float[N,4] x) => (float[N,4] y) { a = Gemm(x, w) y = Gemm<transB = 1>(a, w) }", w=_random(4, 4)
    )
    result = _quantized(model, amax=10.0)
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
        w=_random(4, 4),
        x_zero_point=_random(4),
    )
    result = _quantized(model)
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
    weight = _random(*w)
    model = _quantized(model_of(f"g (float[4,4] x) => (float[A,B] y) {{ y = {call} }}", w=weight))
    (node,) = (node for node in _nodes(model, "DequantizeLinear") if "axis" in node.attributes)
    assert node.attributes["axis"].as_int() == axis
    wanted = quantize_array(weight, weight_qparams(weight, axis, "float32"))
    np.testing.assert_array_equal(_constant(node.inputs[0]), wanted)


def test_many_weights_in_one_tensor_have_one_scale(model_of: Callable[..., ir.Model]) -> None:
    model = _quantized(
        model_of("g (float[3,5,4] x) => (float[3,5,6] y) { y = MatMul(x, w) }", w=_random(3, 4, 6))
    )
    node = _reader(_nodes(model, "MatMul")[0].inputs[1])
    assert not node.attributes
    assert _constant(node.inputs[1]).shape == ()


def test_the_shortcut_of_an_addition_is_quantized(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { r = Relu(x) c = Conv(r, w) y = Add(c, r) }",
        w=_random(4, 4, 1, 1),
    )
    result = _quantized(model)
    (conv,), (add,) = _nodes(result, "Conv"), _nodes(result, "Add")
    assert add.inputs[0] is conv.outputs[0]
    assert add.inputs[1] is conv.inputs[0]


def test_a_dead_tensor_and_dead_channels_have_usable_scales(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    weight = _random(6, 4, 3, 3)
    weight[2] = 0
    model = model_of(CONV, w=weight, b=_random(6))
    result = _quantized(model, amax=0.0)
    scales = [_constant(node.inputs[1]) for node in _nodes(result, "DequantizeLinear")]
    assert all((scale > 0).all() and np.isfinite(scale).all() for scale in scales)
    feed = {"x": np.zeros((1, 4, 8, 8), np.float32)}
    np.testing.assert_allclose(outputs_of(result, feed=feed)[0], outputs_of(model, feed=feed)[0], atol=1e-6)


def test_a_range_that_is_missing(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CONV, w=_random(6, 4, 3, 3), b=_random(6))
    with pytest.raises(UsageError, match="the ranges hold nothing for tensor 'x'"):
        quantize(model, place(model), _ranges({"z": 1.0}))


@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize(("element", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_scales_have_the_dtype_of_their_tensor(
    model_of: Callable[..., ir.Model], element: str, dtype: type, scale_dtype: str
) -> None:
    weight = _random(4, 6)
    weight[:, 1] *= 1e-6  # whose scale is 0 in FP16 if it is rounded to the nearest
    text = f"g ({element}[N,4] x) => ({element}[N,6] y) {{ y = MatMul(x, w) }}"
    model = model_of(text, w=weight.astype(dtype))
    result = _quantized(model, scale_dtype, amax=0.1)
    for node in (*_nodes(result, "QuantizeLinear"), *_nodes(result, "DequantizeLinear")):
        scale = _constant(node.inputs[1])
        assert scale.dtype == np.dtype(dtype)
        assert (scale.astype(np.float64) > 0).all()
    (quantizer,) = _nodes(result, "QuantizeLinear")
    assert float(_constant(quantizer.inputs[1])) * 127 >= 0.1
    codes = _constant(_reader(_nodes(result, "MatMul")[0].inputs[1]).inputs[0])
    assert np.abs(codes.astype(int)).max(axis=0).min() > 0


KINDS = {
    "conv": ("Conv<pads = [1, 1, 1, 1]>(x, w)", (2, 3, 5, 5), (4, 3, 3, 3)),
    "depthwise conv": ("Conv<group = 3>(x, w)", (2, 3, 5, 5), (6, 1, 3, 3)),
    "transposed conv": ("ConvTranspose(x, w)", (2, 3, 5, 5), (3, 4, 3, 3)),
    "gemm": ("Gemm(x, w)", (5, 8), (8, 4)),
    "gemm with transB": ("Gemm<transB = 1>(x, w)", (5, 8), (4, 8)),
    "matmul right": ("MatMul(x, w)", (3, 5, 8), (8, 4)),
    "matmul left": ("MatMul(w, x)", (3, 8, 5), (4, 8)),
    "matmul of many": ("MatMul(x, w)", (3, 5, 8), (3, 8, 4)),
}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    x_size=st.integers(-3, 3),
    w_size=st.integers(-3, 3),
    part=st.floats(0.2, 3),
    scale_dtype=st.sampled_from(["float32", "float16"]),
)
def test_a_quantized_layer_is_as_near_as_its_scales_promise(
    kind: str, seed: int, x_size: int, w_size: int, part: float, scale_dtype: str
) -> None:
    """The bound: sum |w| * (half a step of x + what is clipped) + sum |x| * half a step of w, by channel."""
    call, x_shape, w_shape = KINDS[kind]
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal(x_shape) * 10.0**x_size).astype(np.float32)
    w = (generator.standard_normal(w_shape) * 10.0**w_size).astype(np.float32)
    model = _layer(call, x_shape, w)
    amax = float(np.abs(x).max()) * part
    placement = place(model, op_types=QUANTIZABLE)
    result = quantize(model, placement, _ranges({"x": amax}), scale_dtype=scale_dtype)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)

    scale = float(activation_qparams(amax, scale_dtype).scale)
    of_x = scale / 2 + max(0.0, float(np.abs(x).max()) - 127 * scale)
    assert placement.layers[0].weight is not None
    qparams = weight_qparams(w, placement.layers[0].weight[1].axis, scale_dtype)
    by_axis = [-1 if i == qparams.axis else 1 for i in range(w.ndim)]
    steps = np.broadcast_to(qparams.scale.astype(np.float64).reshape(by_axis), w.shape)
    weights = _layer(call, x_shape, (np.abs(w) + steps / 2).astype(np.float32))
    halves = _layer(call, x_shape, (steps / 2).astype(np.float32))
    bound = _run(weights, np.full(x_shape, of_x, np.float32)) + _run(halves, np.abs(x))
    magnitude = _run(weights, np.abs(x))
    error = np.abs(_run(result, x) - _run(model, x))
    assert (error <= bound * (1 + 1e-3) + magnitude * 1e-5).all()


def _layer(call: str, x_shape: tuple[int, ...], w: NDArray[np.float32]) -> ir.Model:
    sizes, symbols = ",".join(map(str, x_shape)), ",".join("ABCD"[: len(x_shape)])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[{sizes}] x) => (float[{symbols}] y) {{ [layer] y = {call} }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def _run(model: ir.Model, x: NDArray[np.float32]) -> NDArray[Any]:
    return run(open_session(with_exact_quantize(model) or model, optimize=False), ["y"], {"x": x})[0].astype(
        np.float64
    )


RESIDUAL = """g (float[N,8,16,16] x) => (float[N,5] y, float[N,8,16,16] skip) {
    [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    skip = Relu(a)
    [depthwise] d = Conv<pads = [1, 1, 1, 1], group = 8>(skip, dw)
    c = Clip(d, zero, six)
    [project] p = Conv(c, pw)
    s = Add(p, skip)
    r = Relu(s)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    [fc] y = Gemm<transB = 1>(f, v, k)
}"""
RESIDUAL_WEIGHTS: dict[str, NDArray[Any]] = {
    "w": _random(8, 8, 3, 3),
    "b": _random(8),
    "dw": _random(8, 1, 3, 3),
    "pw": _random(8, 8, 1, 1),
    "v": _random(5, 8),
    "k": _random(5),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}
TOKENS = """g (float[N,6,16] x) => (float[N,6,16] y) {
    [q] q = MatMul(x, wq)
    [k] k0 = MatMul(x, wk)
    k = Transpose<perm = [0, 2, 1]>(k0)
    [scores] s = MatMul(q, k)
    p = Softmax<axis = -1>(s)
    [values] v = MatMul(p, x)
    n = LayerNormalization(v, gamma)
    [up] u = MatMul(n, wu)
    g = Relu(u)
    [down] y = MatMul(g, wd)
}"""
TOKENS_WEIGHTS: dict[str, NDArray[Any]] = {
    "wq": _random(16, 16) / 4,
    "wk": _random(16, 16) / 4,
    "gamma": np.ones(16, np.float32),
    "wu": _random(16, 32),
    "wd": _random(32, 16),
}


def _calibrated(graph: Graph, scale_dtype: str, outputs: Callable[..., list[NDArray[Any]]]) -> ir.Model:
    """Returns the quantized model, with the ranges that its activations really have."""
    placement = place(graph.model)
    tapped = graph.model.clone()
    values = [*tapped.graph.inputs, *(value for node in tapped.graph for value in node.outputs)]
    by_name = {value.name: value for value in values}
    tapped.graph.outputs[:] = [by_name[name] for name in placement.activations]
    arrays = zip(placement.activations, outputs(tapped), strict=True)
    amax = {name: float(np.abs(array).max()) for name, array in arrays}
    return quantize(graph.model, placement, _ranges(amax), scale_dtype=scale_dtype)


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize(
    ("text", "weights", "int8"),
    [
        (RESIDUAL, RESIDUAL_WEIGHTS, ["stem", "depthwise", "project", "fc"]),
        (TOKENS, TOKENS_WEIGHTS, ["q", "up", "down"]),
    ],
    ids=["residual", "tokens"],
)
def test_a_quantized_model_is_near_the_float_one_and_tensorrt_runs_its_layers_in_int8(
    graph_of: Callable[..., Graph],
    outputs_of: Callable[..., list[NDArray[Any]]],
    build_rtx: Callable[..., dict[str, set[str]]],
    text: str,
    weights: dict[str, NDArray[Any]],
    int8: list[str],
    rest: str,
) -> None:
    graph = graph_of(text, **weights)
    result = _calibrated(graph, rest, outputs_of)
    if rest == "float16":
        result, kept = to_fp16(result)
        assert kept == ()
    for want, have in zip(outputs_of(graph.model), outputs_of(result), strict=True):
        assert have.dtype == want.dtype
        assert np.linalg.norm(have - want) < 0.05 * np.linalg.norm(want)
    kernels = build_rtx(result)
    for layer in int8:
        found = [types for name, types in kernels.items() if layer in name.replace("+", "_").split("_")]
        assert any("Int8" in types for types in found), (layer, kernels)
    assert not any("scores" in name and "Int8" in types for name, types in kernels.items())


@pytest.mark.parametrize("call", ["Gemm(x, w)", "Gemm<transB = 1>(x, w)", "MatMul(x, w)", "MatMul(w, x)"])
def test_tensorrt_runs_a_product_in_int8_along_its_axis(
    graph_of: Callable[..., Graph], build_rtx: Callable[..., dict[str, set[str]]], call: str
) -> None:
    graph = graph_of(f"g (float[32,32] x) => (float[32,32] y) {{ [layer] y = {call} }}", w=_random(32, 32))
    kernels = build_rtx(_quantized(graph.model))
    assert any("layer" in name and "Int8" in types for name, types in kernels.items()), kernels


def test_tensorrt_takes_transposed_convolutions_and_dead_channels(
    graph_of: Callable[..., Graph], build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    weight = _random(8, 8, 2, 2)
    weight[:, 3] = 0
    text = "g (float[N,8,8,8] x) => (float[N,8,16,16] y) { [up] y = ConvTranspose<strides = [2, 2]>(x, w) }"
    graph = graph_of(text, w=weight)
    assert build_rtx(_quantized(graph.model, op_types=(*DEFAULT_OP_TYPES, "ConvTranspose")))
    assert build_rtx(to_fp16(_quantized(graph.model, "float16", op_types=QUANTIZABLE))[0])


def test_a_weight_that_is_not_finite_is_refused(model_of: Callable[..., ir.Model]) -> None:
    w = np.full((64, 64), np.nan, np.float32)
    model = model_of("g (float[2,64] x) => (float[2,64] y) { y = MatMul (x, w) }", w=w)
    with pytest.raises(ModelError, match="weight 'w' has 4096 values that are infinite or not a number"):
        _quantized(model)
