"""A loud channel, token or column hides no other."""

from __future__ import annotations

import numpy as np
import pytest
from compared_arrays import compare_arrays
from numpy.typing import NDArray

from trtq.pipeline.judge.metrics import OutputMetrics, measure_batch
from trtq.records import cosine_of_noise


def _draw(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_loud_entry_of_an_axis_hides_no_other(axis: int) -> None:
    reference = _draw(16, 5, 6, 7)
    loud = [slice(None)] * 4
    loud[axis] = slice(1)
    reference[tuple(loud)] *= 1000
    candidate = np.zeros_like(reference)
    candidate[tuple(loud)] = reference[tuple(loud)]
    found = compare_arrays(candidate, reference, split=5)
    assert min(found.cosine, found.median_cosine, found.low_cosine) > 0.999
    assert found.entry_cosine == pytest.approx(0.5, abs=0.01)
    assert found.judged_cosine == found.entry_cosine


def test_the_low_entry_is_told_by_its_noise() -> None:
    reference = _draw(50, 30) * np.where(np.arange(30) < 25, 100, 1)
    noise = np.random.default_rng(1).normal(size=reference.shape) * np.where(np.arange(30) < 25, 0, 0.4)
    ratios = np.square(noise).sum(axis=0) / np.square(reference).sum(axis=0)
    third = float(np.sort(ratios)[::-1][3])  # a tenth of thirty may be worse
    found = compare_arrays(reference + noise, reference, split=50)
    assert found.entry_cosine == pytest.approx(cosine_of_noise(-10 * np.log10(third)), abs=1e-6)
    assert found.judged_cosine > 0.99


@pytest.mark.parametrize(("scale", "is_near"), [(1e-3, True), (0.2, False), (-1e-3, False)])
def test_scores_that_are_nearly_zero_in_both_are_near(scale: float, is_near: bool) -> None:
    """Of a class that no sample shows; what may be negative or is off by more is no such score."""
    reference = np.abs(_draw(20, 8))
    reference[:, 0] *= 100
    reference[:, 1] = scale * np.random.default_rng(2).random(20)
    candidate = reference.copy()
    candidate[:, 1] = 0
    assert (compare_arrays(candidate, reference).entry_cosine == 1.0) == is_near


def test_silent_entries_and_the_rest_of_rounding_say_nothing() -> None:
    reference = _draw(20, 4)
    reference[:, 0], reference[:, 1] = 0, reference[:, 1] * 1e-8
    candidate = reference.copy()
    candidate[:, :2] = 1e-3
    assert compare_arrays(candidate, reference).entry_cosine == 1.0
    nothing = np.zeros((3, 4))
    assert compare_arrays(nothing, nothing).entry_cosine == 1.0


def test_axes_that_differ_in_size_from_sample_to_sample_are_left_out() -> None:
    metrics = OutputMetrics()
    for length in (3, 5):
        reference = _draw(1, length, 4) * [1000, 1, 1, 1]
        metrics.add(measure_batch(reference * [1, 0, 0, 0], reference, 1))
    assert metrics.result("int8", "fp32", "y").entry_cosine < 0.6
    metrics.add(measure_batch(_draw(1, 4), _draw(1, 4), 1))
    assert metrics.result("int8", "fp32", "y").entry_cosine == 1.0


@pytest.mark.parametrize(("scale", "is_lost"), [(1.0, True), (0.01, False)])
def test_one_entry_that_varies_as_others_do_is_not_lost(scale: float, is_lost: bool) -> None:
    """One column of forty is dead; a far softer one is not judged alone, as its unit is not known."""
    reference = _draw(50, 40) + 5
    reference[:, 7] = 5 + scale * (reference[:, 7] - 5)
    candidate = reference.copy()
    candidate[:, 7] = 5
    found = compare_arrays(candidate, reference)
    assert found.cosine > 0.99
    assert (found.judged_cosine < 0.75) == is_lost
    assert not is_lost or found.entry == (7, 40)


@pytest.mark.parametrize(("size", "is_lost"), [(99, True), (100, False)])
def test_of_many_entries_one_may_be_lost(size: int, is_lost: bool) -> None:
    reference = _draw(20, size)
    candidate = reference.copy()
    candidate[:, 7] = 0
    assert (compare_arrays(candidate, reference).entry_cosine < 0.75) == is_lost


@pytest.mark.parametrize(("places", "is_lost"), [((), True), ((2, 3), False)])
def test_noise_that_hides_rows_of_background_is_none_of_a_picture(
    places: tuple[int, ...], is_lost: bool
) -> None:
    reference = _draw(8, 3, 20, 10) * np.where(np.arange(20) < 12, 1, 1e-3)[:, None]
    noise = np.random.default_rng(1).normal(size=reference.shape) * 0.01
    metrics = OutputMetrics()
    metrics.add(measure_batch(reference + noise, reference, 8, places=places))
    found = metrics.result("int8", "fp32", "y")
    assert found.sqnr_db > 35
    assert (found.judged_cosine < 0.75) == is_lost


def test_a_channel_of_a_picture_is_lost_all_the_same() -> None:
    reference = _draw(8, 3, 20, 10) * np.array([1, 1, 1e-3])[:, None, None]
    metrics = OutputMetrics()
    metrics.add(measure_batch(np.where(reference < 0.02, 0, reference), reference, 8, places=(2, 3)))
    assert metrics.result("int8", "fp32", "y").entry == (2, 3)
