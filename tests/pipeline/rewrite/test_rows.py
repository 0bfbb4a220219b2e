"""Tests of a scale for each row of an activation, against the same arithmetic in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_qdq import quantized
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerChannel
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qparams import choose_weight_qparams, quantize_array
from trtq.pipeline.rewrite.reach import spread

ModelOf = Callable[..., ir.Model]
OutputsOf = Callable[..., list[NDArray[Any]]]
MATMUL = "g (float[N,5,32] x) => (float[N,5,48] y) { [fc] y = MatMul(x, w) }"


def _quantize_rows(x: NDArray[np.float32], form: CodeFormat) -> NDArray[np.float64]:
    """Returns rows as they are once each is quantized by its own largest magnitude."""
    wide = x.astype(np.float64)
    largest = np.abs(wide).max(axis=-1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0) / form.largest
    return form.round_steps(wide / scale) * scale


def _quantize_weight(w: NDArray[np.float32], form: CodeFormat, axis: int) -> NDArray[np.float64]:
    qparams = choose_weight_qparams(w, Encoding(form, PerChannel(axis)), "float32")
    return qparams.decode(quantize_array(w, qparams))


@pytest.mark.parametrize("form", [INT8, FP8])
@pytest.mark.parametrize("opset", [17, 19])
def test_each_row_is_quantized_by_its_own_largest_magnitude(
    model_of: ModelOf, outputs_of: OutputsOf, form: CodeFormat, opset: int
) -> None:
    x = random_array(4, 5, 32) * np.geomspace(1e-6, 1e6, 20, dtype=np.float32).reshape(4, 5, 1)
    x[1, 2] = 0
    w = random_array(32, 48)
    model = quantized(model_of(MATMUL, opset=opset, w=w), form=form, per_token=True)
    (found,) = outputs_of(model, feed={"x": x})
    wanted = _quantize_rows(x, form) @ _quantize_weight(w, form, 1)
    assert not found[1, 2].any()
    sizes = np.abs(wanted).max(axis=-1, keepdims=True)
    # Next to a tie the quotient in float32 may round to the other code: one step of one value in 32.
    off = np.abs(found - wanted) / np.where(sizes > 0, sizes, 1)
    assert np.median(off) < 1e-6
    assert off.max() < 0.05


@pytest.mark.parametrize("attributes", ["", "<transB=1, alpha=0.5, beta=2.0>", "<beta=0.5>"])
def test_the_bias_of_a_gemm_is_added_behind_the_magnitudes(
    model_of: ModelOf, outputs_of: OutputsOf, attributes: str
) -> None:
    text = f"g (float[N,32] x) => (float[N,32] y) {{ [fc] y = Gemm {attributes} (x, w, b) }}"
    model = model_of(text, w=random_array(32, 32), b=random_array(32) * 100)
    x = random_array(6, 32) * np.geomspace(0.01, 1000, 6, dtype=np.float32)[:, None]
    (wanted,) = outputs_of(model, feed={"x": x})
    (found,) = outputs_of(quantized(model, per_token=True), feed={"x": x})
    product = np.abs(x).max(axis=-1, keepdims=True) * 32  # a bias that is multiplied too is further off
    assert (np.abs(found - wanted) < 0.02 * product).all()


def test_a_computed_bias_of_a_gemm_is_multiplied_by_beta(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    text = """g (float[N,32] x, float[N,32] c) => (float[N,32] y) {
        [r] r = Relu(c) [fc] y = Gemm <beta=0.25> (x, w, r) }"""
    model = model_of(text, w=random_array(32, 32) * 0)
    feed = {"x": random_array(3, 32), "c": random_array(3, 32)}
    (found,) = outputs_of(quantized(model, per_token=True), feed=feed)
    np.testing.assert_array_equal(found, np.maximum(feed["c"], 0) * np.float32(0.25))


def test_readers_of_a_tensor_share_what_finds_its_rows(model_of: ModelOf) -> None:
    text = """g (float[N,5,32] x) => (float[N,5,32] y) {
        [q] q = MatMul(x, w1) [k] k = MatMul(x, w2) [join] y = Add(q, k) }"""
    model = quantized(model_of(text, w1=random_array(32, 32), w2=random_array(32, 32)), per_token=True)
    kinds = [node.op_type for node in model.graph]
    assert [kinds.count(name) for name in ("Abs", "ReduceMax", "Max", "Div", "QuantizeLinear")] == [1] * 5
    assert kinds.count("Mul") == 2


def test_a_tensor_can_have_one_scale_for_one_reader_and_one_a_row_for_another(
    model_of: ModelOf, outputs_of: OutputsOf
) -> None:
    text = """g (float[N,8,8,32] x) => (float[N,16,8,32] c, float[N,8,8,32] y) {
        [conv] c = Conv <kernel_shape=[1,1]> (x, w1) [fc] y = MatMul(x, w2) }"""
    model = model_of(text, w1=random_array(16, 8, 1, 1), w2=random_array(32, 32))
    x = random_array(2, 8, 8, 32)
    found = outputs_of(quantized(model, per_token=True, amax=float(np.abs(x).max())), feed={"x": x})
    for ours, theirs in zip(found, outputs_of(model, feed={"x": x}), strict=True):
        assert np.square(ours - theirs).sum() < 1e-3 * np.square(theirs).sum()


def test_rows_in_fp16_need_no_number_that_it_lacks(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    made = quantized(model_of(MATMUL, w=random_array(32, 48)), "float16", per_token=True)
    half, kept = to_fp16(made)
    assert kept == ()
    x = random_array(4, 5, 32)
    x[0], x[1, 1:] = 0, x[1, 1:] * np.float32(2**-20)  # below the least divisor
    x[2] *= 60000 / np.abs(x[2]).max()
    (found,), (wanted,) = outputs_of(half, feed={"x": x}), outputs_of(made, feed={"x": x})
    assert np.isfinite(found).all()
    assert not found[0].any()
    np.testing.assert_allclose(found[3], wanted[3], atol=0.02 * np.abs(wanted[3]).max())


def test_rows_that_fp16_cannot_hold_are_found_in_fp32(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    made = quantized(model_of(MATMUL, w=random_array(32, 48)), "float16", per_token=True)
    half, kept = to_fp16(made, beyond_fp16=spread(made.graph, {"x": 1e6, "y": 1e7}, ("x", "w", "y")))
    assert {"Abs", "ReduceMax", "Max", "Div", "Mul"} <= {
        node.op_type for node in half.graph if node.name in {item.name for item in kept}
    }
    assert "fc" not in {item.name for item in kept}
    x = random_array(4, 5, 32) * np.float32(1e6)
    (found,), (wanted,) = outputs_of(half, feed={"x": x}), outputs_of(made, feed={"x": x})
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
