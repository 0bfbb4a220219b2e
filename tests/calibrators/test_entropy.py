"""Tests of the range that loses the least information: against the published loop, word for word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from counted import counted
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.calibrators.entropy import Entropy, measure_divergences
from trtq.calibrators.statistics import Histogram
from trtq.errors import UsageError


def _even(num_levels: int) -> NDArray[np.float64]:
    return np.arange(num_levels + 1) / num_levels


def _seen(values: object) -> Histogram:
    return counted(np.asarray(values, np.float32))


def _published(counts: NDArray[np.float64], num_levels: int, size: int) -> float:
    """One round of the loop of "8-bit Inference with TensorRT" (GTC 2017), page "Pseudocode", bin by bin."""
    kept = counts[:size]
    reference = kept.copy()
    reference[-1] += counts[size:].sum()
    expanded = np.zeros(size)
    for level in range(num_levels):
        start, stop = size * level // num_levels, size * (level + 1) // num_levels
        filled = [index for index in range(start, stop) if reference[index] > 0]
        for index in filled:
            expanded[index] = kept[start:stop].sum() / len(filled)
    if kept.sum() == 0:
        return math.inf
    divergence = 0.0
    for index in range(size):
        if reference[index] > 0:
            p = reference[index] / reference.sum()
            q = max(expanded[index], 1e-4) / kept.sum()  # an empty bin gets a trace, as in MXNet
            divergence += p * math.log(p / q)
    return divergence


def test_the_example_of_the_slides() -> None:
    counts = np.array([1.0, 0, 2, 3, 5, 3, 1, 7])  # to 2 levels: 6 and 16, spread as 2 0 2 2 | 4 4 4 4
    logs = [math.log(ratio) for ratio in (1 / 2, 1.0, 3 / 2, 5 / 4, 3 / 4, 1 / 4, 7 / 4)]
    wanted = sum(count * log for count, log in zip([1, 2, 3, 5, 3, 1, 7], logs, strict=True)) / 22
    assert measure_divergences(counts, _even(2), 2)[-1] == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 2, 7, 100, 5000]), min_size=8, max_size=48).filter(any),
    st.integers(2, 8),
)
def test_divergences_are_those_of_the_published_loop(counts: list[int], num_levels: int) -> None:
    values = np.array(counts, np.float64)
    wanted = [_published(values, num_levels, size) for size in range(num_levels, len(counts) + 1)]
    np.testing.assert_allclose(measure_divergences(values, _even(num_levels), num_levels), wanted, atol=1e-9)


@pytest.mark.parametrize("name", ["normal", "one-sided", "gaps", "spike"])
def test_divergences_of_the_real_size_are_those_of_the_published_loop(name: str) -> None:
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=20_000))
    if name == "one-sided":
        values = np.maximum(rng.normal(size=20_000), 0)
    elif name == "gaps":
        values = np.round(values, 1)
    elif name == "spike":
        values[:4000] = 6.0
    counts = _seen(values).linear(2048)
    found = measure_divergences(counts, _even(128), 128)
    assert found.shape == (1921,)
    every = slice(0, None, 320)  # the loop is slow; this has the first and the last
    wanted = [_published(counts, 128, size) for size in range(128, 2049)[every]]
    np.testing.assert_allclose(found[every], wanted, atol=1e-9)
    np.testing.assert_array_equal(measure_divergences(counts, _even(128), 2000), found[2000 - 128 :])


def test_no_clip_loses_nothing_when_every_level_has_one_bin() -> None:
    counts = np.array([3.0, 1, 4, 1, 5])
    assert measure_divergences(counts, _even(5), 5).tolist() == pytest.approx([0.0], abs=1e-12)


def test_a_clip_that_leaves_nothing_is_never_the_best() -> None:
    counts = np.array([0.0, 0, 0, 0, 5, 9])
    assert measure_divergences(counts, _even(2), 2)[:3].tolist() == [math.inf] * 3
    histogram = _seen(np.linspace(5.5, 6.0, 1000))
    assert Entropy(max_clipped=1.0).amax(histogram) >= 5.5


@pytest.mark.parametrize("share", [0.0005, 0.001, 0.01])
def test_entropy_does_not_collapse_on_relu6(share: float) -> None:
    rng = np.random.default_rng(1)
    values = np.clip(np.abs(rng.normal(0, 0.5, 200_000)), 0, 5.5)
    values[:140_000] = 0
    values[-int(share * values.size) :] = 6
    assert Entropy().amax(_seen(values)) == 6.0


def test_entropy_does_not_collapse_on_a_spike_at_zero() -> None:
    values = np.maximum(np.random.default_rng(2).normal(-2, 1, 400_000), 0)
    largest = float(values.max())
    assert (values == 0).mean() > 0.97
    assert Entropy().amax(_seen(values)) > 0.7 * largest


def test_zeros_do_not_matter_to_entropy() -> None:
    values = np.random.default_rng(3).normal(size=50_000)
    assert Entropy().amax(_seen(np.append(values, np.zeros(10**6)))) == Entropy().amax(_seen(values))


def test_entropy_ignores_one_outlier() -> None:
    values = np.random.default_rng(4).normal(size=200_000)
    values[7] = 100
    assert 3 < Entropy().amax(_seen(values)) < 10


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_clips_no_more_than_is_allowed(sign: int) -> None:
    values = sign * np.random.default_rng(5).standard_t(2, size=100_000)
    for max_clipped in (0.01, 0.001, 0.0001):
        amax = Entropy(max_clipped=max_clipped).amax(_seen(values))
        assert (np.abs(values) > amax).mean() <= max_clipped * 1.05  # a histogram bin is 0.05 % wide


def test_entropy_takes_the_middle_of_the_bin_that_it_ends_in() -> None:
    values = np.random.default_rng(6).normal(size=200_000)
    histogram = _seen(values)
    place = Entropy().amax(histogram) / histogram.exact(2048)[1]
    assert histogram.amax != pytest.approx(Entropy().amax(histogram))
    assert place - math.floor(place) == pytest.approx(0.5, abs=1e-6)


def test_entropy_of_magnitudes_below_the_first_bin_is_the_largest() -> None:
    assert Entropy().amax(_seen([1e-30, -2e-30])) == float(np.float32(2e-30))


@pytest.mark.parametrize(
    ("num_bins", "num_levels", "max_clipped"),
    [(2048, 1, 0.1), (64, 128, 0.1), (2048, 128, 0.0), (2048, 128, 1.5)],
)
def test_parameters_out_of_range_are_refused(num_bins: int, num_levels: int, max_clipped: float) -> None:
    with pytest.raises(
        UsageError,
        match=rf"entropy needs 2 <= num_levels <= num_bins <= 1048576 and 0 < max_clipped <= 1, "
        rf"got {num_levels}, {num_bins} and {max_clipped:g}$",
    ):
        Entropy(num_bins, num_levels, max_clipped)
