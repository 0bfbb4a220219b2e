"""Tests of the histogram: against math.frexp, numpy.percentile and worked tables."""

from __future__ import annotations

import math
from functools import reduce
from random import Random

import numpy as np
import pytest
from counted import bin_edges, counted
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.kernel import NUM_BINS
from trtq.calibrators.statistics import BINS_PER_OCTAVE, Histogram, find_bins

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _seen(*batches: object) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram = histogram.merged(counted(np.asarray(batch, np.float32)))
    return histogram


def _bin_of(value: float) -> int:
    """The slow reference: exponent and mantissa as the C library tells them."""
    mantissa, exponent = math.frexp(abs(value))
    octave = exponent - 1 + 40  # 2**-40 starts bin 0
    if value == 0 or octave < 0:
        return 0
    return octave * BINS_PER_OCTAVE + math.floor((2 * mantissa - 1) * BINS_PER_OCTAVE)


@given(FLOATS)
def test_a_value_falls_into_the_bin_of_its_exponent_and_mantissa(value: float) -> None:
    assert _seen([value]).bins.tolist() == [_bin_of(value)]


@pytest.mark.parametrize(
    ("value", "index"),
    [
        (0.0, 0),
        (-0.0, 0),
        (1e-45, 0),
        (2.0**-41, 0),
        (2.0**-40, 0),
        (2.0**-40 * (1 + 1 / 1024), 1),
        (1.0, 40 * 1024),
        (-1.0, 40 * 1024),
        (1.5, 40 * 1024 + 512),
        (2.0, 41 * 1024),
        (float(np.finfo(np.float32).max), NUM_BINS - 1),
    ],
)
def test_bins_by_hand(value: float, index: int) -> None:
    assert (_seen([value]).bins.tolist(), _seen([value]).counts.tolist()) == ([index], [1])


@given(FLOATS)
def test_the_edges_hold_the_value(value: float) -> None:
    edges = bin_edges()
    index = int(_seen([value]).bins[0])
    assert edges[index] <= abs(value) < edges[index + 1]


@given(FLOATS)
def test_bins_are_told_as_they_are_counted(value: float) -> None:
    assert find_bins(np.array([value])).tolist() == _seen([value]).bins.tolist()


def test_bins_are_a_thousandth_wide_from_the_smallest_to_the_largest() -> None:
    edges = bin_edges()
    assert edges.shape == (NUM_BINS + 1,)
    assert (edges[0], edges[-1]) == (0.0, 2.0**128)
    assert (np.diff(edges)[1:] / edges[1:-1]).max() <= 1 / 1024


def test_every_value_is_counted_where_the_reference_counts_it() -> None:
    values = np.random.default_rng(0).lognormal(0, 8, 3000).astype(np.float32) * [[1], [-1]]
    wanted = np.zeros(NUM_BINS, np.int64)
    for value in values.reshape(-1):
        wanted[_bin_of(float(value))] += 1
    seen = _seen(values)
    assert np.array_equal(seen.bins, np.flatnonzero(wanted))
    assert np.array_equal(seen.counts, wanted[seen.bins])


def test_the_extremes_are_exact() -> None:
    histogram = _seen([0.1, -7.3], [2.9])
    assert histogram.minimum == float(np.float32(-7.3))
    assert histogram.maximum == float(np.float32(2.9))
    assert histogram.amax == float(np.float32(7.3))
    assert histogram.total == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_dtype_and_shape_is_taken(dtype: type[np.floating]) -> None:
    values = np.array([[0.5, -1.5], [3.0, 0.0]], dtype)
    assert counted(values.T) == _seen([0.5, -1.5, 3.0, 0.0])
    assert counted(values[1, 0]) == _seen([3.0])


def test_no_values_change_nothing() -> None:
    histogram = _seen([1.0])
    assert histogram.merged(counted(np.zeros((0, 3), np.float32))) == histogram
    assert counted(np.zeros(0, np.float32)) == Histogram()


def test_nothing_seen_has_no_range() -> None:
    histogram = Histogram()
    assert (histogram.amax, histogram.total, histogram.zeros) == (0.0, 0, 0)
    assert (histogram.minimum, histogram.maximum) == (math.inf, -math.inf)
    assert histogram.quantile(0.5) == 0.0
    assert not histogram.linear(16).any()
    assert histogram.points(512)[0].size == 0


def test_a_dead_tensor_is_counted_and_has_amax_0() -> None:
    histogram = _seen(np.zeros(5))
    assert (histogram.amax, histogram.total, histogram.zeros) == (0.0, 5, 5)
    assert [method().amax(histogram) for method in METHODS.values()] == [0.0] * len(METHODS)


@pytest.mark.parametrize("value", [7.3, -7.3, 1e-30, 3e38, 2.0**-40, 1.0, 6.0])
def test_every_method_keeps_a_constant(value: float) -> None:
    histogram = _seen(np.full(1000, value))
    for name, method in METHODS.items():
        assert method().amax(histogram) == pytest.approx(abs(value), rel=1e-3), name


def test_a_growing_maximum_needs_no_range_in_advance() -> None:
    batches = [np.linspace(-1, 1, 11) * 10.0**step for step in range(-6, 7)]
    assert _seen(*batches) == _seen(np.concatenate(batches))
    assert _seen(*batches).amax == 1e6


def test_merging_leaves_both_as_they_were() -> None:
    first, second = _seen([1.0, -2.0]), _seen([4.0])
    assert first.merged(second) == _seen([1.0, -2.0, 4.0])
    assert first == _seen([1.0, -2.0])
    assert second == _seen([4.0])


def test_nothing_merged_is_nothing() -> None:
    assert _seen([3.0]).merged(Histogram()) == _seen([3.0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=1, max_size=40), min_size=1, max_size=6), st.randoms())
def test_parts_in_any_order_give_the_same_counts_and_every_amax(
    parts: list[list[float]], random: Random
) -> None:
    whole = _seen([value for part in parts for value in part])
    shuffled = list(parts)
    random.shuffle(shuffled)
    one_pass = _seen(*shuffled)
    merged = reduce(Histogram.merged, [_seen(part) for part in reversed(shuffled)])
    assert whole == one_pass == merged
    for method in METHODS.values():
        assert method().amax(whole) == method().amax(one_pass) == method().amax(merged)


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60))
def test_every_method_stays_within_the_values(values: list[float]) -> None:
    histogram = _seen(values)
    for name, method in METHODS.items():
        assert 0 <= method().amax(histogram) <= histogram.amax, name
        assert (method().amax(histogram) == 0) == (histogram.amax == 0), name


def test_points_by_hand() -> None:
    centres, weights = _seen([0.0, 1.0, 1.75, -1.0, 2.0, 5.0]).points(1)
    assert centres.tolist() == [1.5, 3.0, 5.0]  # 1..2, 2..4, and 4..8 cut at the largest value
    assert weights.tolist() == [3.0, 1.0, 1.0]


def test_points_keep_every_value_but_zeros() -> None:
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    values[:100] = 0
    centres, weights = _seen(values).points(512)
    assert weights.sum() == 900
    assert (np.diff(centres) > 0).all()
    assert float(centres @ weights) == pytest.approx(float(np.abs(values).sum(dtype=np.float64)), rel=1e-3)


def test_linear_bins_by_hand() -> None:
    histogram = _seen([0.0, 0.0, 1.0, -1.0, 1.0, 2.0, 4.0])
    assert histogram.linear(4).tolist() == [0.0, 3.0, 1.0, 1.0]


def test_linear_bins_spread_a_coarse_bin() -> None:
    histogram = _seen([1.0, 1.0, 2.0])  # two values somewhere in [1, 1 + 1/1024), cut into four
    counts = histogram.linear(4 * 1024 * 2)
    assert counts[4096 : 4096 + 4].tolist() == [0.5] * 4
    assert counts[-1] == 1.0
    assert counts.sum() == 3.0


def test_linear_bins_end_at_the_largest_value() -> None:
    histogram = _seen([1 + 3 / 4096] * 3)  # in a bin that goes on to 1 + 4/4096
    counts = histogram.linear(4096 + 3)
    assert counts[-4:].tolist() == pytest.approx([0, 1, 1, 1])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_linear_bins_are_those_of_numpy(scale: float) -> None:
    values = (np.random.default_rng(2).normal(size=50_000) * scale).astype(np.float32)
    ours = _seen(values).linear(256)
    wanted, _ = np.histogram(np.abs(values), 256, (0, float(np.abs(values).max())))
    assert np.abs(np.cumsum(ours) - np.cumsum(wanted)).max() < 0.001 * values.size


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60))
def test_linear_counts_are_never_negative_and_lose_nothing(values: list[float]) -> None:
    histogram = _seen(values)
    counts = histogram.linear(2048)
    assert counts.min() >= 0
    assert counts.sum() == pytest.approx(histogram.total - histogram.zeros)


def _distributions() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    normal = rng.normal(size=100_000)
    spiked = rng.normal(size=100_000)
    spiked[:30_000] = 0.0
    spiked[30_000:50_000] = 6.0
    return {
        "normal": normal,
        "lognormal": rng.lognormal(0, 2, 100_000),
        "one-sided": np.maximum(normal, 0),
        "spiked": spiked,
        "tiny": normal * 1e-9,
    }


@pytest.mark.parametrize("percentile", [75.0, 90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", list(_distributions()))
def test_quantiles_are_those_of_numpy(name: str, percentile: float) -> None:
    values = _distributions()[name].astype(np.float32)
    magnitudes = np.abs(values.astype(np.float64))
    # The gap between two neighbours in the tail is wider than a bin; our rank lies in between.
    wanted = [np.percentile(magnitudes, percentile, method=way) for way in ("lower", "higher")]
    found = _seen(values).quantile(percentile / 100)
    assert wanted[0] * 0.999 <= found <= wanted[1] * 1.001


def test_a_quantile_among_zeros_is_zero_and_the_last_is_exact() -> None:
    histogram = _seen([0.0, 0.0, 0.0, 7.3])
    assert histogram.quantile(0.75) == 0.0
    assert histogram.quantile(0.76) == pytest.approx(7.3, rel=1e-3)
    assert histogram.quantile(1.0) == float(np.float32(7.3))


def test_a_quantile_divides_its_bin() -> None:
    histogram = _seen([1.0] * 4 + [64.0])  # the four stand anywhere in [1, 1 + 1/1024)
    assert histogram.quantile(2 / 5) == 1 + 0.5 / 1024
