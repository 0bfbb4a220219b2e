"""Tests of the running comparison of outputs: by hand, and against numpy over all the data at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from compared_arrays import compare_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import ArrayLike, NDArray

from trtq.pipeline.judge.metrics import OutputMetrics, measure_batch
from trtq.records import WorstSample


def test_hand_worked_numbers() -> None:
    found = compare_arrays([[3.0, 4.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 2.0]])
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
    found = compare_arrays([[1.0, -2.0], [3.0, 4.0]], [[1.0, -2.0], [3.0, 4.0]])
    assert (found.cosine, found.sqnr_db, found.max_abs, found.mean_abs) == (1.0, math.inf, 0.0, 0.0)
    assert found.top1_agreement == 1.0


def test_an_opposite_output_has_cosine_minus_one() -> None:
    assert compare_arrays([[-1.0, 2.0]], [[1.0, -2.0]]).cosine == -1.0


@pytest.mark.parametrize(
    ("candidate", "reference", "cosine", "sqnr_db"),
    [
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0, math.inf),
        ([[1.0, 0.0]], [[0.0, 0.0]], 0.0, -math.inf),
        ([[0.0, 0.0]], [[1.0, 0.0]], 0.0, 0.0),
    ],
)
def test_zeros(candidate: ArrayLike, reference: ArrayLike, cosine: float, sqnr_db: float) -> None:
    found = compare_arrays(candidate, reference)
    assert (found.cosine, found.sqnr_db) == (cosine, sqnr_db)
    assert found.worst == (WorstSample(cosine, 0),)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_is_not_finite_is_counted_and_its_sample_is_the_worst(bad: float) -> None:
    reference = np.ones((4, 3))
    candidate = reference.copy()
    candidate[2, 1] = bad
    candidate[3] = [-1, -1, -1]
    found = compare_arrays(candidate, reference)
    assert found.nonfinite == 1
    assert all(math.isnan(value) for value in (found.cosine, found.sqnr_db, found.max_abs, found.mean_abs))
    assert [worst.sample for worst in found.worst] == [2, 3, 0, 1]
    assert math.isnan(found.worst[0].cosine)
    assert [worst.cosine for worst in found.worst[1:]] == pytest.approx([-1, 1, 1])


@pytest.mark.parametrize("candidate", [math.inf, -math.inf, math.nan, 7.0])
@pytest.mark.parametrize("reference", [math.inf, math.nan])
def test_places_where_the_reference_is_not_finite_count_nothing(candidate: float, reference: float) -> None:
    found = compare_arrays([[3.0, candidate, 4.0]], [[4.0, reference, 3.0]])
    assert found.nonfinite == 0
    assert found.cosine == pytest.approx(24 / 25)
    assert (found.max_abs, found.mean_abs) == (1.0, 1.0)


def test_a_reference_without_one_finite_value_compares_as_nothing() -> None:
    found = compare_arrays([[1.0, 2.0]], [[math.nan, math.inf]])
    assert math.isnan(found.cosine)
    assert math.isnan(found.sqnr_db)
    assert found.nonfinite == 0


def test_no_values_at_all_are_no_difference() -> None:
    found = compare_arrays(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32))
    assert (found.cosine, found.mean_abs, found.top1_agreement) == (1.0, 0.0, None)
    assert OutputMetrics().result("a", "b", "y").cosine == 1.0


def test_numbers_too_large_to_be_squared_give_no_cosine() -> None:
    metrics = OutputMetrics()
    metrics.add(measure_batch(np.full((1, 2), 1e200), np.full((1, 2), 1e200), 1))
    assert math.isnan(metrics.result("a", "b", "y").cosine)
    metrics = OutputMetrics()
    metrics.add(measure_batch(np.full((1, 2), 1e200), np.ones((1, 2)), 1))
    assert metrics.result("a", "b", "y").sqnr_db == -math.inf


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_classes_and_indices_are_equal_or_not(dtype: type) -> None:
    """From 900 on, all classes are near each other as numbers."""
    reference: NDArray[Any] = np.array([[902, 900], [901, 903]], dtype)
    found = compare_arrays(reference[:, ::-1], reference)
    assert (found.cosine, found.median_cosine, found.max_abs, found.mean_abs) == (0.0, 0.0, 2.0, 2.0)
    assert found.top1_agreement is None
    candidate = reference.copy()
    candidate[1, 1] = 7
    found = compare_arrays(candidate, reference)
    assert found.cosine == pytest.approx(0.75)
    assert found.sqnr_db == pytest.approx(10 * math.log10(4 / 2))
    assert [worst.cosine for worst in found.worst] == pytest.approx([0.5, 1.0])


def test_truths_are_equal_or_not() -> None:
    found = compare_arrays(np.array([True, False]), np.array([True, True]))
    assert found.cosine == pytest.approx(0.5)
    assert (found.max_abs, found.mean_abs) == (1.0, 0.5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_small_whole_numbers_are_amounts(dtype: type) -> None:
    found = compare_arrays(np.array([[100, 50]], dtype), np.array([[101, 50]], dtype))
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
    metrics.add(measure_batch(np.ones(shape, dtype), np.ones(shape, dtype), shape[0] or 1))
    assert metrics.result("a", "b", "y").top1_agreement == (1.0 if has_scores else None)


def test_top_1_agreement_is_the_share_of_rows_with_the_same_largest_score() -> None:
    reference = np.array([[0, 1, 2], [5, 1, 2], [0, 9, 2], [1, 2, 3.0]])
    candidate = np.array([[0, 1, 3], [5, 6, 2], [0, 9, 2], [9, 2, 3.0]])
    assert compare_arrays(candidate, reference).top1_agreement == 0.5
    assert compare_arrays(candidate[None], reference[None]).top1_agreement == 0.5


def _rotated(*degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns a candidate and a reference of which each sample is turned by its angle."""
    angles = np.radians(degrees)
    reference = np.stack([np.ones(len(angles)), np.zeros(len(angles))], axis=1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1), reference


@pytest.mark.parametrize("split", [1, 2, 3, 9])
def test_the_worst_five_samples_are_ordered(split: int) -> None:
    candidate, reference = _rotated(0, 50, 10, 90, 180, 20, 70, 5, 60)
    found = compare_arrays(candidate, reference, split=split)
    assert [worst.sample for worst in found.worst] == [4, 3, 6, 8, 1]
    cosines = [math.cos(math.radians(angle)) for angle in (180, 90, 70, 60, 50)]
    assert [worst.cosine for worst in found.worst] == pytest.approx(cosines, abs=1e-7)


@pytest.mark.parametrize("split", [1, 4, 20])
def test_of_equally_bad_samples_the_first_are_told(split: int) -> None:
    candidate, reference = _rotated(*[30] * 20)
    assert [w.sample for w in compare_arrays(candidate, reference, split=split).worst] == [0, 1, 2, 3, 4]


def test_an_output_without_a_sample_axis_is_told_by_the_first_sample_of_its_batch() -> None:
    metrics = OutputMetrics()
    for sign in (1.0, -1.0, 1.0):
        metrics.add(measure_batch(np.full((7, 2), sign), np.ones((7, 2)), 8))
    metrics.add(measure_batch(np.array(-1.0), np.array(1.0), 3))
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
    found = compare_arrays(candidate, reference, split=split)
    for name, wanted in _naive(candidate, reference).items():
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-9, abs=1e-9), name
    whole = compare_arrays(candidate, reference)
    assert [worst.sample for worst in found.worst] == [worst.sample for worst in whole.worst]
    assert found.nonfinite == whole.nonfinite == 0
