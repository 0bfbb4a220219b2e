"""Tests of the cast to FP16 around Q/DQ pairs; ONNX Runtime and TensorRT-RTX judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from checked_fp16 import cast, casts_of, types_of
from made_up import random_array
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.qdq import quantize

F16 = ir.DataType.FLOAT16
Near = Callable[..., None]


def _quantized(model: ir.Model, amax: float, scale_dtype: str = "float16") -> ir.Model:
    placement = place(model)
    tensors = {name: Range(amax, -amax, amax) for name in placement.activations}
    ranges = Ranges(tensors, "minmax()", "0" * 64, "made up", 1)
    return quantize(model, placement, ranges, scale_dtype=scale_dtype)


QUANTIZED = "g (float[N,8,6,6] x) => (float[N,16,6,6] y) { [relu] r = Relu(x) [conv] y = Conv(r, w, b) }"


def test_pairs_and_scales_become_fp16(
    model_of: Callable[..., ir.Model], assert_near: Near, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    float_model = model_of(QUANTIZED, w=random_array(16, 8, 1, 1), b=random_array(16))
    model = _quantized(float_model, 4.0)
    result, reasons = cast(model)
    assert reasons == {}
    pair = [node for node in result.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pair) == 3
    for node in pair:
        assert node.inputs[1] is not None
        assert node.inputs[1].dtype is F16
    assert casts_of(result) == ["x_to_fp16", "y_to_fp32_output"]
    for name in ("r_scale", "w_scale"):
        before, after = (
            value.const_value.numpy().astype(np.float64)
            for graph in (model.graph.initializers, result.graph.initializers)
            for key, value in graph.items()
            if key.removesuffix("_fp16") == name and value.const_value is not None
        )
        np.testing.assert_array_equal(before, after)
    assert_near(model, result, tolerance=1e-2)
    assert any("conv" in name and "Int8" in types for name, types in build_rtx(result).items())


def test_what_a_pair_passes_on_beyond_fp16_is_read_in_fp32(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = _quantized(model_of(QUANTIZED, w=random_array(16, 8, 1, 1) * 1e-4, b=random_array(16)), 2e5)
    result, reasons = cast(model, beyond_fp16={"r": 2e5, "x": 2e5})
    assert reasons == {
        "relu": "tensor 'x' reaches 2e+05, FP16 ends at 65504",
        "r_QuantizeLinear": "tensor 'r' reaches 2e+05, FP16 ends at 65504",
        "r_DequantizeLinear": "scale 'r_scale' gives values up to 2e+05, FP16 ends at 65504",
        "conv": "tensor 'r_dequantized' reaches 2e+05, FP16 ends at 65504",
    }
    feed = {"x": np.abs(random_array(1, 8, 6, 6)) * 5e4}
    want, have = outputs_of(model, feed=feed)[0], outputs_of(result, feed=feed)[0]
    np.testing.assert_allclose(have, want, rtol=1e-2, atol=1e-2 * np.abs(want).max())


def test_scales_that_fp16_would_lose_stay_fp32(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    weight = random_array(16, 8, 1, 1)
    weight[3] *= 1e-8
    model = _quantized(model_of(QUANTIZED, w=weight, b=np.zeros(16, np.float32)), 4.0, "float32")
    result, reasons = cast(model)
    assert list(reasons) == ["w_dequantized_DequantizeLinear"]
    assert "too small for FP16" in reasons["w_dequantized_DequantizeLinear"]
    assert types_of(result)["conv"] is F16
    feed = {"x": random_array(1, 8, 6, 6)}
    want, have = outputs_of(model, feed=feed)[0], outputs_of(result, feed=feed)[0]
    np.testing.assert_allclose(have, want, rtol=2e-2, atol=1e-2)


def test_a_computed_scale_is_left_to_fp16(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        """g (float[N,4] x) => (float[N,4] y) {
            m = ReduceMax<keepdims = 0>(limits)
            q = QuantizeLinear(x, m, zero)
            d = DequantizeLinear(q, m, zero)
            y = Relu(d)
        }""",
        limits=np.array([0.125, 0.0625], np.float32),
        zero=np.array(0, np.int8),
    )
    result, reasons = cast(model)
    assert reasons == {}
    assert_near(model, result, tolerance=1e-2)
