"""Tests of what a comparison is worth: values that never change, low samples, noise beside change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from compared_arrays import compare_arrays

from trtq.pipeline.judge.change import OutputChange, measure_change
from trtq.pipeline.judge.metrics import OutputMetrics, holds_probabilities, measure_batch


def test_steady_values_are_judged_apart() -> None:
    reference = np.array([[-1e9, 3, 0], [-1e9, 0, 4.0]])
    candidate = np.array([[-1e9, 0, 3], [-1e9, 4, 0.0]])
    metrics = OutputMetrics()
    metrics.add(measure_batch(candidate, reference, 2, steady=np.array([True, False, False])))
    found = metrics.result("a", "b", "y")
    assert (found.cosine, found.apart, found.apart_cosine) == (0.0, 2, 1.0)
    assert found.judged_cosine <= 0.0
    assert [worst.cosine for worst in found.worst] == [0.0, 0.0]
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 50))


def test_where_all_values_are_steady_they_are_judged_together() -> None:
    metrics = OutputMetrics()
    metrics.add(measure_batch(np.array([[1.0, 0]]), np.array([[1.0, 1]]), 1, steady=np.array([True, True])))
    found = metrics.result("a", "b", "y")
    assert found.apart == 0
    assert found.cosine == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("mask", [-1e9, -1e4, -65504.0, float(np.finfo(np.float32).min)])
def test_scores_that_rule_a_class_out_are_judged_apart_wherever_they_are(mask: float) -> None:
    """The moves that a game allows differ from sample to sample."""
    reference = np.array([[mask, 3, 0, mask], [0, mask, 4, mask]], np.float32)
    candidate = np.array([[mask, 0, 3, mask], [4, mask, 0, mask]], np.float32)
    found = compare_arrays(candidate, reference)
    assert (found.cosine, found.apart) == (0.0, 4)
    assert found.apart_cosine == pytest.approx(1.0)


def test_low_values_among_others_of_their_size_rule_nothing_out() -> None:
    reference = np.array([[-1e6, -3e5, -5e4, -8e3, -900, 5]])
    assert compare_arrays(reference, reference).apart == 0
    assert compare_arrays(reference[:, :1], reference[:, :1]).apart == 0


def test_the_median_and_the_low_samples_are_told() -> None:
    reference = np.ones((40, 2))
    reference[0] *= 1000
    candidate = reference.copy()
    candidate[1:30, 1] = 0  # cosine 0.7071
    candidate[38:, 1] = -1  # cosine 0
    found = compare_arrays(candidate, reference, split=7)
    assert found.cosine > 0.9999
    assert found.median_cosine == pytest.approx(0.5**0.5)
    assert found.low_cosine == pytest.approx(0.5**0.5)  # two of forty may be worse
    assert found.judged_cosine == pytest.approx(0.5**0.5)


def test_samples_without_signal_are_low_samples_if_there_is_noise() -> None:
    """A noise of the power that cosine 0.99 leaves in the middle sample is allowed."""
    reference = np.array([[0, 0], [0, 3.0], [0, 3.0], [0, 1000.0]])
    for noise, low in [(1e-9, 1.0), (0.42, 1.0), (0.43, 0.0)]:
        candidate = reference.copy()
        candidate[0, 0] = noise
        found = compare_arrays(candidate, reference, split=2)
        assert (found.median_cosine, found.low_cosine) == (1.0, low)


def test_a_candidate_that_gives_one_answer_where_the_reference_differs_is_dead() -> None:
    reference = 20 + np.linspace(-2, 2, 8)[:, np.newaxis] * np.ones((1, 3))
    found = compare_arrays(np.full((8, 3), 20.0), reference, split=3)
    assert found.cosine > 0.99
    assert found.is_dead
    assert found.change_db == pytest.approx(0.0)
    assert not compare_arrays(reference, reference).is_dead
    hardly = 20 + 0.001 * (reference - 20)
    assert not compare_arrays(np.full((8, 3), 20.0), hardly).is_dead


@pytest.mark.parametrize("split", [1, 3, 8])
def test_the_noise_is_told_beside_what_changes_between_samples(split: int) -> None:
    rng = np.random.default_rng(0)
    reference = (100 + rng.normal(size=(8, 5))).astype(np.float32)
    candidate = (reference + 0.5 * rng.normal(size=(8, 5))).astype(np.float32)
    found = compare_arrays(candidate, reference, split=split)
    exact = reference.astype(np.float64)
    spread = np.square(exact - exact.mean(axis=0)).sum()
    noise = np.square(candidate.astype(np.float64) - exact).sum()
    assert found.change_db == pytest.approx(10 * math.log10(spread / noise), abs=1e-6)
    assert compare_arrays(reference, reference, split=split).change_db is None


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 6, 4), (3, 9, 1)])
def test_an_axis_of_several_sizes_holds_further_samples(lengths: tuple[int, ...]) -> None:
    """Such as tokens: a batch that is smaller must not hide that one answer would be as near."""
    rng, change, metrics = np.random.default_rng(1), OutputChange(), OutputMetrics()
    feeds = [(np.array([500, -300, 100.0]) + rng.normal(size=(length, 3))) for length in lengths]
    for feed in feeds:
        change.add(measure_change(feed, 2))
        metrics.add(measure_batch(np.tile([500, -300, 100.0], (len(feed), 1)), feed, 2))
    found = metrics.result("int8", "fp32", "y", change=change)
    assert found.is_change_known
    assert found.change_db is not None
    assert found.change_db < 0.1
    if len(set(lengths)) > 1:
        rows = np.concatenate(feeds)
        assert change.spread == pytest.approx(np.square(rows - rows.mean(axis=0)).sum())


@pytest.mark.parametrize("has_gaps", [False, True])
def test_an_output_of_many_places_is_measured_as_one(has_gaps: bool) -> None:
    values = np.random.default_rng(2).normal(3, 2, (6, 7, 5001)).astype(np.float32)
    if has_gaps:
        values[1:][np.random.default_rng(3).random(values[1:].shape) < 0.3] = np.nan
    found = measure_change(values, 6).judged
    assert found.means is not None
    assert found.deviations is not None
    wide = values.astype(np.float64)
    mean = np.nanmean(wide, axis=0)
    np.testing.assert_allclose(found.means, mean, rtol=1e-9)
    np.testing.assert_allclose(found.deviations, np.nansum((wide - mean) ** 2, axis=0), rtol=1e-9)
    assert found.squares == pytest.approx(np.nansum(wide**2))


def test_of_samples_with_another_number_of_axes_no_change_is_known() -> None:
    change = OutputChange()
    change.add(measure_change(np.ones((1, 2)), 1))
    change.add(measure_change(np.ones((1, 2, 3)), 1))
    assert (change.varies, change.spread, change.is_clear) == (True, None, False)
    assert OutputChange().spread is None


def test_a_candidate_that_is_constant_in_feeds_of_several_lengths_is_dead() -> None:
    change, answers, metrics = OutputChange(), OutputChange(), OutputMetrics()
    for length in (8, 8, 5):
        reference = np.random.default_rng(length).normal(size=(length, 3))
        candidate = np.tile([0.1, 0.2, 0.3], (length, 1))
        change.add(measure_change(reference, 4))
        answers.add(measure_change(candidate, 4))
        metrics.add(measure_batch(candidate, reference, 4))
    assert metrics.result("int8", "fp32", "y", change=change, answers=answers).is_dead


def test_a_change_of_values_that_hardly_change_counts_where_nothing_else_changes() -> None:
    x = np.random.default_rng(0).normal(size=(16, 4))
    reference = np.concatenate([np.linspace(100, 300, 4) + 0.1 * x, np.zeros((16, 2))], axis=1)
    steady = np.array([True] * 4 + [False] * 2)
    candidate = np.tile(reference.mean(axis=0), (16, 1))
    change, metrics = OutputChange(), OutputMetrics()
    change.add(measure_change(reference, 16, steady))
    metrics.add(measure_batch(candidate, reference, 16, steady=steady))
    found = metrics.result("int8", "fp32", "y", change=change)
    assert found.varies
    assert found.change_db == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("split", [1, 5, 64])
def test_a_rare_truth_that_is_always_missed_is_no_evidence(split: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((64, 100)) < 0.003
    reference[0, 0] = True
    found = compare_arrays(np.roll(reference, 50, axis=1), reference, split=split)
    assert found.cosine > 0.99
    assert found.change_db is not None
    assert found.change_db < 0
    right = reference.copy()
    right[0, 1] = ~right[0, 1]
    better = compare_arrays(right, reference, split=split).change_db
    assert better is not None
    assert better > 3


def test_masked_values_are_no_change() -> None:
    change = OutputChange()
    change.add(measure_change(np.array([[-1e9, 3, 0, 2], [0, -1e9, 4, 2.0]]), 2))
    assert change.spread == pytest.approx((4 - 0) ** 2 / 2)  # of the third; the others are masked once


def test_the_share_of_the_reference_that_is_known_is_told() -> None:
    reference = np.array([[1.0, np.nan, np.inf, -np.inf]])
    assert compare_arrays(np.array([[1.0, 5, 5, -np.inf]]), reference).known == 0.5
    assert compare_arrays(reference[:, :1], reference[:, :1]).known == 1.0


def test_an_output_without_a_sample_axis_is_one_sample_of_each_feed() -> None:
    """Though a feed of one sample has as many parts as samples."""
    metrics, change = OutputMetrics(), OutputChange()
    output = np.arange(15, dtype=np.float32).reshape(5, 3)
    for _ in range(4):
        metrics.add(measure_batch(output, output, 1))
        change.add(measure_change(output, 1))
    assert not metrics.result("int8", "fp32", "y", change=change).varies


@pytest.mark.parametrize(("second", "varies"), [([1.0, 2.0], False), ([1.0, 2.5], True)])
@pytest.mark.parametrize("split", [1, 2])
def test_whether_the_reference_changes_is_told(second: list[float], varies: bool, split: int) -> None:
    reference = np.array([[1.0, 2.0], second])
    assert compare_arrays(reference, reference, split=split).varies is varies


@pytest.mark.parametrize(
    ("row", "are_shares"),
    [([0.25, 0.75], True), ([0.2, 0.2], False), ([-0.5, 1.5], False), ([1.0], False)],
)
def test_shares_that_sum_to_1_are_probabilities(row: list[float], are_shares: bool) -> None:
    assert holds_probabilities(np.array([row, row])) is are_shares
    assert not holds_probabilities(np.array([[0, 1]]))
