"""Tests of the scales and shifts of channels, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from trtq.calibrators.channels import ChannelStats
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.channels.scales import Strength, choose_scales, plan_scales


def _seen(minimum: list[float], maximum: list[float]) -> ChannelStats:
    low, high = np.array(minimum), np.array(maximum)
    return ChannelStats(low, high, (low + high) / 2)


def test_full_strength_brings_all_channels_to_one_range() -> None:
    made = choose_scales(_seen([0, 0, -2], [8, 4, 2]), 1.0, shifts=False)
    # with room for unseen data: an eighth of 8, 4 and 4 on the ends that are not zero
    assert made.scale == pytest.approx((1.0, 4.5 / 9, 2.5 / 9))
    assert made.amax == pytest.approx(9.0)
    assert made.shift == ()


def test_half_strength_takes_the_square_roots() -> None:
    made = choose_scales(_seen([0, 0], [16, 4]), 0.5, shifts=False)
    assert made.scale == pytest.approx((1.0, 0.5))
    assert made.amax == pytest.approx(18.0)


def test_without_headroom_the_widest_channel_fills_the_codes() -> None:
    made = choose_scales(_seen([0, -3], [16, 4]), 0.5, shifts=False, headroom=0.0)
    assert made.scale == pytest.approx((1.0, 0.5))
    assert made.amax == pytest.approx(16.0)


def test_a_channel_that_is_hardly_used_is_not_blown_up_to_the_others_range() -> None:
    made = choose_scales(_seen([0, 0], [16, 1e-6]), 1.0, shifts=False)
    assert made.scale == pytest.approx((1.0, 0.05))


def test_a_channel_of_a_matrix_product_that_never_fired_is_not_taken_to_be_narrow() -> None:
    """Behind a GELU some channels stay at its floor in the calibration data, and go far in other data."""
    seen = _seen([-0.17] * 8, [-0.1, -0.1, 0.1, 1, 2, 3, 4, 16])
    plain, made = (choose_scales(seen, 1.0, shifts=False, products=item) for item in (False, True))
    third = (0.75 * 7) % 1  # the quantile lies between the sixth and the seventh
    quartile = 1.125 * (3 + third) + 0.17 / 8
    widest = 1.125 * 16 + 0.17 / 8
    assert plain.scale[0] == pytest.approx(0.05)
    assert made.scale[:6] == pytest.approx((quartile / widest,) * 6)
    assert made.scale[6:] == plain.scale[6:]
    assert made.amax == plain.amax


def test_shifts_centre_channels_and_keep_a_code_for_zero() -> None:
    seen = _seen([-1, 90], [1, 110])
    made = choose_scales(seen, 1.0, shifts=True)
    step = made.amax / 127 * np.array(made.scale)
    assert made.shift == pytest.approx(
        (0.0, 101.25), abs=float(step[1])
    )  # 110 has room, 90 is no end of zeros
    np.testing.assert_allclose(np.rint(np.array(made.shift) / step), np.array(made.shift) / step, atol=0.02)
    assert made.amax < 20  # of 125 without shifts


def test_a_clip_leaves_no_room_beyond_its_ends() -> None:
    made = choose_scales(_seen([0, 0, -1], [6, 3, 1]), 1.0, shifts=False, ends=(0.0, 6.0))
    assert made.amax == pytest.approx(6.0)  # of 6.75 behind a ReLU
    assert made.scale == pytest.approx((1.0, 3.375 / 6, 1.25 / 6))


_NET = """
net (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
  [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
  r = Relu (a)
  [deep] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16> (r, w2)
  s = Sigmoid (b)
  [last] y = Conv <kernel_shape = [1, 1]> (s, w3)
}"""


@pytest.mark.parametrize(
    ("strength", "tensors"),
    [
        (Strength(), []),
        (Strength(fold=0.5), ["r"]),  # its producer takes the scales
        (Strength(insert=0.5), ["x", "s"]),
        (Strength(depthwise=0.5), ["r"]),
        (Strength(fold=0.5, insert=0.5, depthwise=0.5), ["x", "r", "s"]),
        (Strength(shift=True), ["x", "s"]),  # r needs no node, and is padded with zeros
        (Strength(shift=True, pad=True), ["x", "s"]),  # its producer would take the scales
    ],
)
def test_each_tensor_gets_the_strength_of_its_kind(
    graph_of: Callable[..., Graph], strength: Strength, tensors: list[str]
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 4, 1, 1), "w2": (16, 1, 3, 3), "w3": (4, 16, 1, 1)}
    model = graph_of(_NET, **{k: rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}).model
    seen = {
        "x": _seen([0] * 4, [1, 2, 3, 4]),
        "r": _seen([0] * 16, [1 + i for i in range(16)]),
        "s": _seen([0.5] * 16, [1 + i for i in range(16)]),
    }
    made = plan_scales(model, place(model, force=["."]), seen, strength)
    assert list(made) == tensors
    assert all(not item.scale or max(item.scale) == 1 for item in made.values())


def test_what_is_padded_is_centred_where_that_is_asked_for(graph_of: Callable[..., Graph]) -> None:
    attributes = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    text = f"net (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ y = Conv <{attributes}> (x, w) }}"
    model = graph_of(text, w=np.ones((4, 4, 3, 3), np.float32)).model
    placement, seen = place(model, force=["."]), {"x": _seen([0] * 4, [1, 2, 3, 4])}
    assert plan_scales(model, placement, seen, Strength(shift=True)) == {}
    made = plan_scales(model, placement, seen, Strength(shift=True, pad=True))["x"]
    assert made.amax == pytest.approx(2.25, abs=0.05)


def test_the_range_of_relu6_ends_at_its_bound_whatever_was_seen(graph_of: Callable[..., Graph]) -> None:
    text = """net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) {
      [one] a = Conv <kernel_shape = [1, 1]> (x, w1)  r = Clip (a, zero, six)
      [two] y = Conv <kernel_shape = [1, 1]> (r, w2)
    }"""
    ones = np.ones((4, 4, 1, 1), np.float32)
    model = graph_of(text, w1=ones, w2=ones + 1, zero=np.float32(0), six=np.float32(6)).model
    placement = place(model, force=["."])
    full = {"r": _seen([0] * 4, [6, 3, 2, 1])}
    assert plan_scales(model, placement, full, Strength(fold=1.0))["r"].amax == pytest.approx(6.0)
    shifted = plan_scales(model, placement, full, Strength(fold=1.0, shift=True))["r"]
    assert shifted.shift  # what a Clip bounds on both sides is worth a node
    assert shifted.amax == pytest.approx(3.0, abs=0.05)
    below = plan_scales(model, placement, {"r": _seen([0] * 4, [4, 3, 2, 1])}, Strength(fold=1.0))
    assert below["r"].amax == pytest.approx(4.5)


def test_dead_unseen_and_single_channels_are_left_alone(graph_of: Callable[..., Graph]) -> None:
    text = (
        "net (float[N, 2, 4, 4] x) => (float[N, 4, 4, 4] y) { [p] y = Conv <kernel_shape = [1, 1]> (x, w) }"
    )
    model = graph_of(text, w=np.ones((4, 2, 1, 1), np.float32)).model
    placement = place(model, force=["."])
    whole = Strength(1, 1, 1)
    assert plan_scales(model, placement, {"x": _seen([0, 0], [0, 0])}, whole) == {}
    assert plan_scales(model, placement, {}, whole) == {}
    assert plan_scales(model, placement, {"x": _seen([0], [1])}, whole) == {}
    assert list(plan_scales(model, placement, {"x": _seen([0, 0], [0, 1])}, whole)) == ["x"]


def test_a_tensor_that_shows_one_value_is_not_centred(graph_of: Callable[..., Graph]) -> None:
    text = "net (float[N, 2] x) => (float[N, 4] y) { [p] y = MatMul (x, w) }"
    model = graph_of(text, w=np.ones((2, 4), np.float32)).model
    placement = place(model, force=["."])
    one, near, two = (_seen([3, -5], [3 + spread, -5]) for spread in (0, 0.05, 0.5))
    shift = Strength(shift=True)
    assert plan_scales(model, placement, {"x": one}, shift) == {}
    assert plan_scales(model, placement, {"x": near}, shift) == {}
    assert plan_scales(model, placement, {"x": two}, shift)["x"].shift
    scaled = plan_scales(model, placement, {"x": one}, Strength(insert=1.0, shift=True))["x"]
    assert (scaled.shift, scaled.amax) == ((), 5.0)
