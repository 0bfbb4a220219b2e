"""Tests of what repairs do to a Q/DQ model: clipped weight scales, corrected biases, channels alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from int8_encodings import int8_along
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.qparams import choose_weight_qparams, choose_weight_qparams_mse


def _ranges(name: str, amax: float) -> Ranges:
    return Ranges({name: Range(amax, -amax, amax)}, "minmax()", "0" * 64, "made up", 1)


def _slow_mse_scale(row: NDArray[np.float64]) -> float:
    """Returns the best of the clips for one channel, value by value."""
    best, least = 0.0, math.inf
    for share in np.linspace(1.0, 0.5, 26):
        scale = np.abs(row).max() / 127 * share
        error = sum((max(-127, min(127, round(value / scale))) * scale - value) ** 2 for value in row)
        if error < least:
            best, least = float(scale), error
    return best


@pytest.mark.parametrize("axis", [0, 1, None])
def test_clipped_scales_have_the_least_error_of_each_channel(axis: int | None) -> None:
    weight = np.random.default_rng(0).laplace(size=(4, 300))
    weight[0, 0] = 9.0
    ours = choose_weight_qparams_mse(weight.astype(np.float32), int8_along(axis), "float32")
    rows = [weight.ravel()] if axis is None else list(np.moveaxis(weight, axis, 0))
    np.testing.assert_allclose(np.atleast_1d(ours.scale), [_slow_mse_scale(row) for row in rows], rtol=1e-5)
    assert ours.encoding == int8_along(axis)
    assert (
        ours.scale <= choose_weight_qparams(weight.astype(np.float32), int8_along(axis), "float32").scale
    ).all()


def test_clipped_scales_of_nothing_and_of_zeros_are_those_that_hold_all() -> None:
    for weight in (np.zeros((2, 3), np.float32), np.zeros((2, 0), np.float32)):
        ours, theirs = (
            find(weight, int8_along(0), "float32")
            for find in (choose_weight_qparams_mse, choose_weight_qparams)
        )
        np.testing.assert_array_equal(ours.scale, theirs.scale)


def test_the_ranges_say_how_weights_are_scaled(graph_of: Callable[..., Graph]) -> None:
    text = "net (float[N, 300] x) => (float[N, 4] y) { [p] y = Gemm <transB = 1> (x, w) }"
    weight = np.random.default_rng(0).laplace(size=(4, 300)).astype(np.float32)
    model = graph_of(text, w=weight).model
    placement = place(model, force=["."])
    ranges = replace(_ranges("x", 4.0), weight_scales="mse")
    scale = quantize(model, placement, ranges).graph.initializers["w_scale"].const_value
    assert scale is not None
    np.testing.assert_array_equal(
        scale.numpy(), choose_weight_qparams_mse(weight, int8_along(0), "float32").scale
    )


@pytest.mark.parametrize(
    "node", ["Gemm <transB = 1> (x, w, b)", "Gemm <transB = 1> (x, w)", "MatMul (x, v)", "Conv (i, k)"]
)
def test_a_planted_shift_of_the_mean_is_undone(
    node: str, graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    """Every weight is rounded down by 0.4 codes, and the inputs have a mean: so the outputs are shifted."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-100, 100, (4, 8)) + 0.4
    codes[:, 0] = 127
    weight = (codes / 127).astype(np.float32)
    arrays = {"w": weight, "v": weight.T.copy(), "b": rng.standard_normal(4).astype(np.float32)}
    arrays["k"] = weight[..., None]
    used = {name: array for name, array in arrays.items() if f", {name}" in node}
    text = f"net (float[64, 8] x) => (float[64, 4] y) {{ [p] y = {node} }}"
    if "Conv" in node:
        text = "net (float[64, 8, 1] i) => (float[64, 4, 1] y) { [p] y = Conv (i, k) }"
    model = graph_of(text, **used).model
    placement = place(model, force=["."])
    (name,) = placement.activations
    feed = {name: (rng.standard_normal((64, 8)) * 0.1 + 3).astype(np.float32)}
    feed = {name: feed[name][..., None]} if "Conv" in node else feed
    plain = _ranges(name, 4.0)
    means = tuple(feed[name].mean(axis=0).ravel().tolist())
    corrected = replace(plain, channels={name: Channels(mean=means)})
    (wanted,) = outputs_of(model, feed=feed)
    shifts = []
    for ranges in (plain, corrected):
        made = quantize(model, placement, ranges)
        onnx.checker.check_model(ir.to_proto(made), full_check=True)
        (found,) = outputs_of(made, feed=feed)
        shifts.append(np.abs((found - wanted).mean(axis=0)).max())
    assert shifts[0] > 0.05
    assert shifts[1] < shifts[0] / 10


def test_repaired_models_compute_what_they_did_but_better(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    text = "net (float[64, 8] x) => (float[64, 4] y) { [p] y = Gemm (x, w) }"
    spread = np.geomspace(1, 100, 8)
    weight = (np.random.default_rng(0).standard_normal((8, 4)) / spread[:, None]).astype(np.float32)
    model = graph_of(text, w=weight).model
    placement = place(model, force=["."])
    feed = {"x": (np.random.default_rng(1).standard_normal((64, 8)) * spread).astype(np.float32)}
    plain = _ranges("x", 400.0)
    item = Channels(scale=tuple((spread / 100).tolist()), amax=400.0)
    (wanted,) = outputs_of(model, feed=feed)
    errors = []
    for ranges in (plain, replace(plain, channels={"x": item})):
        made = quantize(model, placement, ranges, scale_dtype="float16")
        (found,) = outputs_of(made, feed=feed)
        errors.append(float(np.square(found - wanted).sum()))
    assert errors[1] < errors[0] / 100
