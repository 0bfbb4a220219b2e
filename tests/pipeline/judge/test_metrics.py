"""Tests of the running comparison of outputs: by hand, and against numpy over all the data at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray

from trtq.pipeline.judge.change import OutputChange
from trtq.pipeline.judge.metrics import OutputMetrics, holds_probabilities
from trtq.records import OutputComparison, WorstSample


def _compared(candidate: ArrayLike, reference: ArrayLike, *, split: int | None = None) -> OutputComparison:
    """Compares float32 arrays with a leading sample axis, `split` samples at a time."""
    ours, theirs = np.asarray(candidate), np.asarray(reference)
    ours, theirs = (a.astype(np.float32) if a.dtype == np.float64 else a for a in (ours, theirs))
    metrics, change = OutputMetrics(), OutputChange()
    size = split or len(theirs)
    for start in range(0, len(theirs), size):
        part = slice(start, start + size)
        metrics.add(ours[part], theirs[part], len(theirs[part]))
        change.add(theirs[part], len(theirs[part]))
    return metrics.result("int8", "fp32", "y", change=change)


def test_hand_worked_numbers() -> None:
    found = _compared([[3.0, 4.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 2.0]])
    # dot 9 of lengths sqrt(26) and sqrt(13); errors 0, 4, 1, -2
    assert found.cosine == pytest.approx(9 / math.sqrt(26 * 13), abs=1e-15)
    assert found.sqnr_db == pytest.approx(10 * math.log10(13 / 21), abs=1e-12)
    assert found.max_abs == 4
    assert found.mean_abs == 7 / 4
    assert found.top1_agreement == 0.0
    assert found.nonfinite == 0
    assert [worst.sample for worst in found.worst] == [1, 0]
    assert [worst.cosine for worst in found.worst] == pytest.approx([0.0, 0.6])
    assert (found.candidate, found.reference, found.output) == ("int8", "fp32", "y")


def test_an_equal_output_is_exact() -> None:
    found = _compared([[1.0, -2.0], [3.0, 4.0]], [[1.0, -2.0], [3.0, 4.0]])
    assert (found.cosine, found.sqnr_db, found.max_abs, found.mean_abs) == (1.0, math.inf, 0.0, 0.0)
    assert found.top1_agreement == 1.0


def test_an_opposite_output_has_cosine_minus_one() -> None:
    assert _compared([[-1.0, 2.0]], [[1.0, -2.0]]).cosine == -1.0


@pytest.mark.parametrize(
    ("candidate", "reference", "cosine", "sqnr_db"),
    [
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0, math.inf),
        ([[1.0, 0.0]], [[0.0, 0.0]], 0.0, -math.inf),
        ([[0.0, 0.0]], [[1.0, 0.0]], 0.0, 0.0),
    ],
)
def test_zeros(candidate: ArrayLike, reference: ArrayLike, cosine: float, sqnr_db: float) -> None:
    found = _compared(candidate, reference)
    assert (found.cosine, found.sqnr_db) == (cosine, sqnr_db)
    assert found.worst == (WorstSample(cosine, 0),)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_is_not_finite_is_counted_and_its_sample_is_the_worst(bad: float) -> None:
    reference = np.ones((4, 3))
    candidate = reference.copy()
    candidate[2, 1] = bad
    candidate[3] = [-1, -1, -1]
    found = _compared(candidate, reference)
    assert found.nonfinite == 1
    assert all(math.isnan(value) for value in (found.cosine, found.sqnr_db, found.max_abs, found.mean_abs))
    assert [worst.sample for worst in found.worst] == [2, 3, 0, 1]
    assert math.isnan(found.worst[0].cosine)
    assert [worst.cosine for worst in found.worst[1:]] == pytest.approx([-1, 1, 1])


@pytest.mark.parametrize("candidate", [math.inf, -math.inf, math.nan, 7.0])
@pytest.mark.parametrize("reference", [math.inf, math.nan])
def test_places_where_the_reference_is_not_finite_count_nothing(candidate: float, reference: float) -> None:
    found = _compared([[3.0, candidate, 4.0]], [[4.0, reference, 3.0]])
    assert found.nonfinite == 0
    assert found.cosine == pytest.approx(24 / 25)
    assert (found.max_abs, found.mean_abs) == (1.0, 1.0)


def test_a_reference_without_one_finite_value_compares_as_nothing() -> None:
    found = _compared([[1.0, 2.0]], [[math.nan, math.inf]])
    assert math.isnan(found.cosine)
    assert math.isnan(found.sqnr_db)
    assert found.nonfinite == 0


def test_no_values_at_all_are_no_difference() -> None:
    found = _compared(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32))
    assert (found.cosine, found.mean_abs, found.top1_agreement) == (1.0, 0.0, None)
    assert OutputMetrics().result("a", "b", "y").cosine == 1.0


def test_numbers_too_large_to_be_squared_give_no_cosine() -> None:
    metrics = OutputMetrics()
    metrics.add(np.full((1, 2), 1e200), np.full((1, 2), 1e200), 1)
    assert math.isnan(metrics.result("a", "b", "y").cosine)
    metrics = OutputMetrics()
    metrics.add(np.full((1, 2), 1e200), np.ones((1, 2)), 1)
    assert metrics.result("a", "b", "y").sqnr_db == -math.inf


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_classes_and_indices_are_equal_or_not(dtype: type) -> None:
    """From 900 on, all classes are near each other as numbers."""
    reference: NDArray[Any] = np.array([[902, 900], [901, 903]], dtype)
    found = _compared(reference[:, ::-1], reference)
    assert (found.cosine, found.median_cosine, found.max_abs, found.mean_abs) == (0.0, 0.0, 2.0, 2.0)
    assert found.top1_agreement is None
    candidate = reference.copy()
    candidate[1, 1] = 7
    found = _compared(candidate, reference)
    assert found.cosine == pytest.approx(0.75)
    assert found.sqnr_db == pytest.approx(10 * math.log10(4 / 2))
    assert [worst.cosine for worst in found.worst] == pytest.approx([0.5, 1.0])


def test_truths_are_equal_or_not() -> None:
    found = _compared(np.array([True, False]), np.array([True, True]))
    assert found.cosine == pytest.approx(0.5)
    assert (found.max_abs, found.mean_abs) == (1.0, 0.5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_small_whole_numbers_are_amounts(dtype: type) -> None:
    found = _compared(np.array([[100, 50]], dtype), np.array([[101, 50]], dtype))
    assert found.cosine == pytest.approx(12600 / math.sqrt(12500 * 12701))


@pytest.mark.parametrize(
    ("shape", "dtype", "has_scores"),
    [
        ((4, 10), np.float32, True),
        ((4, 5, 10), np.float16, True),
        ((4, 1), np.float32, False),
        ((4,), np.float32, False),
        ((4, 3, 8, 8), np.float32, False),
        ((4, 10), np.int64, False),
        ((0, 10), np.float32, False),
    ],
)
def test_only_rows_of_float_scores_have_a_top_1(
    shape: tuple[int, ...], dtype: type, has_scores: bool
) -> None:
    metrics = OutputMetrics()
    metrics.add(np.ones(shape, dtype), np.ones(shape, dtype), shape[0] or 1)
    assert metrics.result("a", "b", "y").top1_agreement == (1.0 if has_scores else None)


def test_top_1_agreement_is_the_share_of_rows_with_the_same_largest_score() -> None:
    reference = np.array([[0, 1, 2], [5, 1, 2], [0, 9, 2], [1, 2, 3.0]])
    candidate = np.array([[0, 1, 3], [5, 6, 2], [0, 9, 2], [9, 2, 3.0]])
    assert _compared(candidate, reference).top1_agreement == 0.5
    assert _compared(candidate[None], reference[None]).top1_agreement == 0.5


def _rotated(*degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns a candidate and a reference of which each sample is turned by its angle."""
    angles = np.radians(degrees)
    reference = np.stack([np.ones(len(angles)), np.zeros(len(angles))], axis=1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1), reference


@pytest.mark.parametrize("split", [1, 2, 3, 9])
def test_the_worst_five_samples_are_ordered(split: int) -> None:
    candidate, reference = _rotated(0, 50, 10, 90, 180, 20, 70, 5, 60)
    found = _compared(candidate, reference, split=split)
    assert [worst.sample for worst in found.worst] == [4, 3, 6, 8, 1]
    cosines = [math.cos(math.radians(angle)) for angle in (180, 90, 70, 60, 50)]
    assert [worst.cosine for worst in found.worst] == pytest.approx(cosines, abs=1e-7)


@pytest.mark.parametrize("split", [1, 4, 20])
def test_of_equally_bad_samples_the_first_are_told(split: int) -> None:
    candidate, reference = _rotated(*[30] * 20)
    assert [w.sample for w in _compared(candidate, reference, split=split).worst] == [0, 1, 2, 3, 4]


def test_an_output_without_a_sample_axis_is_told_by_the_first_sample_of_its_batch() -> None:
    metrics = OutputMetrics()
    for sign in (1.0, -1.0, 1.0):
        metrics.add(np.full((7, 2), sign), np.ones((7, 2)), 8)
    metrics.add(np.array(-1.0), np.array(1.0), 3)
    found = metrics.result("a", "b", "y").worst
    assert [worst.sample for worst in found] == [8, 24, 0, 16]


def _naive(candidate: NDArray[Any], reference: NDArray[Any]) -> dict[str, float]:
    ours, theirs = candidate.astype(np.float64), reference.astype(np.float64)
    fine = np.isfinite(theirs)
    ours, theirs = ours[fine], theirs[fine]
    norms = np.linalg.norm(ours) * np.linalg.norm(theirs)
    noise = np.linalg.norm(ours - theirs)
    return {
        "cosine": float(ours @ theirs / norms),
        "sqnr_db": float(20 * np.log10(np.linalg.norm(theirs) / noise)) if noise else math.inf,
        "max_abs": float(np.abs(ours - theirs).max()),
        "mean_abs": float(np.abs(ours - theirs).mean()),
        "top1_agreement": float((candidate.argmax(-1) == reference.argmax(-1)).mean()),
    }


_values = st.floats(-1e3, 1e3, width=32).map(lambda value: round(value, 2))


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (11, 3), elements=_values),
    hnp.arrays(np.float32, (11, 3), elements=_values),
    st.integers(1, 11),
    st.booleans(),
)
def test_any_split_into_batches_gives_what_numpy_gives_at_once(
    candidate: NDArray[np.float32], reference: NDArray[np.float32], split: int, broken: bool
) -> None:
    candidate[0, 0], reference[0, 1] = 1, 2  # not all zeros
    candidate[1, 1] = 3
    if broken:
        reference[5, 0] = np.inf
    found = _compared(candidate, reference, split=split)
    for name, wanted in _naive(candidate, reference).items():
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-9, abs=1e-9), name
    whole = _compared(candidate, reference)
    assert [worst.sample for worst in found.worst] == [worst.sample for worst in whole.worst]
    assert found.nonfinite == whole.nonfinite == 0


def test_steady_values_are_judged_apart() -> None:
    reference = np.array([[-1e9, 3, 0], [-1e9, 0, 4.0]])
    candidate = np.array([[-1e9, 0, 3], [-1e9, 4, 0.0]])
    metrics = OutputMetrics()
    metrics.add(candidate, reference, 2, steady=np.array([True, False, False]))
    found = metrics.result("a", "b", "y")
    assert (found.cosine, found.apart, found.apart_cosine) == (0.0, 2, 1.0)
    assert found.judged_cosine == 0.0
    assert [worst.cosine for worst in found.worst] == [0.0, 0.0]
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 50))


def test_where_all_values_are_steady_they_are_judged_together() -> None:
    metrics = OutputMetrics()
    metrics.add(np.array([[1.0, 0]]), np.array([[1.0, 1]]), 1, steady=np.array([True, True]))
    found = metrics.result("a", "b", "y")
    assert found.apart == 0
    assert found.cosine == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("mask", [-1e9, -1e4, -65504.0, float(np.finfo(np.float32).min)])
def test_scores_that_rule_a_class_out_are_judged_apart_wherever_they_are(mask: float) -> None:
    """The moves that a game allows differ from sample to sample."""
    reference = np.array([[mask, 3, 0, mask], [0, mask, 4, mask]], np.float32)
    candidate = np.array([[mask, 0, 3, mask], [4, mask, 0, mask]], np.float32)
    found = _compared(candidate, reference)
    assert (found.cosine, found.apart) == (0.0, 4)
    assert found.apart_cosine == pytest.approx(1.0)


def test_low_values_among_others_of_their_size_rule_nothing_out() -> None:
    reference = np.array([[-1e6, -3e5, -5e4, -8e3, -900, 5]])
    assert _compared(reference, reference).apart == 0
    assert _compared(reference[:, :1], reference[:, :1]).apart == 0


def test_the_median_and_the_low_samples_are_told() -> None:
    reference = np.ones((40, 2))
    reference[0] *= 1000
    candidate = reference.copy()
    candidate[1:30, 1] = 0  # cosine 0.7071
    candidate[38:, 1] = -1  # cosine 0
    found = _compared(candidate, reference, split=7)
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
        found = _compared(candidate, reference, split=2)
        assert (found.median_cosine, found.low_cosine) == (1.0, low)


def test_a_candidate_that_gives_one_answer_where_the_reference_differs_is_dead() -> None:
    reference = 20 + np.linspace(-2, 2, 8)[:, np.newaxis] * np.ones((1, 3))
    found = _compared(np.full((8, 3), 20.0), reference, split=3)
    assert found.cosine > 0.99
    assert found.is_dead
    assert found.change_db == pytest.approx(0.0)
    assert not _compared(reference, reference).is_dead
    hardly = 20 + 0.001 * (reference - 20)
    assert not _compared(np.full((8, 3), 20.0), hardly).is_dead


@pytest.mark.parametrize("split", [1, 3, 8])
def test_the_noise_is_told_beside_what_changes_between_samples(split: int) -> None:
    rng = np.random.default_rng(0)
    reference = (100 + rng.normal(size=(8, 5))).astype(np.float32)
    candidate = (reference + 0.5 * rng.normal(size=(8, 5))).astype(np.float32)
    found = _compared(candidate, reference, split=split)
    exact = reference.astype(np.float64)
    spread = np.square(exact - exact.mean(axis=0)).sum()
    noise = np.square(candidate.astype(np.float64) - exact).sum()
    assert found.change_db == pytest.approx(10 * math.log10(spread / noise), abs=1e-6)
    assert _compared(reference, reference, split=split).change_db is None


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 6, 4), (3, 9, 1)])
def test_an_axis_of_several_sizes_holds_further_samples(lengths: tuple[int, ...]) -> None:
    """Such as tokens: a batch that is smaller must not hide that one answer would be as near."""
    rng, change, metrics = np.random.default_rng(1), OutputChange(), OutputMetrics()
    feeds = [(np.array([500, -300, 100.0]) + rng.normal(size=(length, 3))) for length in lengths]
    for feed in feeds:
        change.add(feed, 2)
        metrics.add(np.tile([500, -300, 100.0], (len(feed), 1)), feed, 2)
    found = metrics.result("int8", "fp32", "y", change=change)
    assert found.is_change_known
    assert found.change_db is not None
    assert found.change_db < 0.1
    if len(set(lengths)) > 1:
        rows = np.concatenate(feeds)
        assert change.spread == pytest.approx(np.square(rows - rows.mean(axis=0)).sum())


def test_of_samples_with_another_number_of_axes_no_change_is_known() -> None:
    change = OutputChange()
    change.add(np.ones((1, 2)), 1)
    change.add(np.ones((1, 2, 3)), 1)
    assert (change.varies, change.spread, change.is_clear) == (True, None, False)
    assert OutputChange().spread is None


def test_a_candidate_that_is_constant_in_feeds_of_several_lengths_is_dead() -> None:
    change, metrics = OutputChange(), OutputMetrics()
    for length in (8, 8, 5):
        reference = np.random.default_rng(length).normal(size=(length, 3))
        change.add(reference, 4)
        metrics.add(np.tile([0.1, 0.2, 0.3], (length, 1)), reference, 4)
    assert metrics.result("int8", "fp32", "y", change=change).is_dead


def test_a_change_of_values_that_hardly_change_counts_where_nothing_else_changes() -> None:
    x = np.random.default_rng(0).normal(size=(16, 4))
    reference = np.concatenate([np.linspace(100, 300, 4) + 0.1 * x, np.zeros((16, 2))], axis=1)
    steady = np.array([True] * 4 + [False] * 2)
    candidate = np.tile(reference.mean(axis=0), (16, 1))
    change, metrics = OutputChange(), OutputMetrics()
    change.add(reference, 16, steady)
    metrics.add(candidate, reference, 16, steady=steady)
    found = metrics.result("int8", "fp32", "y", change=change)
    assert found.varies
    assert found.change_db == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("split", [1, 5, 64])
def test_a_rare_truth_that_is_always_missed_is_no_evidence(split: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((64, 100)) < 0.003
    reference[0, 0] = True
    found = _compared(np.roll(reference, 50, axis=1), reference, split=split)
    assert found.cosine > 0.99
    assert found.change_db is not None
    assert found.change_db < 0
    right = reference.copy()
    right[0, 1] = ~right[0, 1]
    better = _compared(right, reference, split=split).change_db
    assert better is not None
    assert better > 3


def test_masked_values_are_no_change() -> None:
    change = OutputChange()
    change.add(np.array([[-1e9, 3, 0, 2], [0, -1e9, 4, 2.0]]), 2)
    assert change.spread == pytest.approx((4 - 0) ** 2 / 2)  # of the third; the others are masked once


def test_the_share_of_the_reference_that_is_known_is_told() -> None:
    reference = np.array([[1.0, np.nan, np.inf, -np.inf]])
    assert _compared(np.array([[1.0, 5, 5, -np.inf]]), reference).known == 0.5
    assert _compared(reference[:, :1], reference[:, :1]).known == 1.0


def test_an_output_without_a_sample_axis_is_one_sample_of_each_feed() -> None:
    """Though a feed of one sample has as many parts as samples."""
    metrics, change = OutputMetrics(), OutputChange()
    output = np.arange(15, dtype=np.float32).reshape(5, 3)
    for _ in range(4):
        metrics.add(output, output, 1)
        change.add(output, 1)
    assert not metrics.result("int8", "fp32", "y", change=change).varies


@pytest.mark.parametrize(("second", "varies"), [([1.0, 2.0], False), ([1.0, 2.5], True)])
@pytest.mark.parametrize("split", [1, 2])
def test_whether_the_reference_changes_is_told(second: list[float], varies: bool, split: int) -> None:
    reference = np.array([[1.0, 2.0], second])
    assert _compared(reference, reference, split=split).varies is varies


@pytest.mark.parametrize(
    ("row", "are_shares"),
    [([0.25, 0.75], True), ([0.2, 0.2], False), ([-0.5, 1.5], False), ([1.0], False)],
)
def test_shares_that_sum_to_1_are_probabilities(row: list[float], are_shares: bool) -> None:
    assert holds_probabilities(np.array([row, row])) is are_shares
    assert not holds_probabilities(np.array([[0, 1]]))
