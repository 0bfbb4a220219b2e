"""Tests of the range that keeps what a softmax makes of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.calibrators.cross_entropy import CrossEntropy, cross_entropy
from trtq.errors import UsageError


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _copy(rows: NDArray[np.float64], amax: float) -> NDArray[np.float64]:
    return np.clip(np.rint(rows / (amax / 127)), -127, 127) * (amax / 127)


def test_the_cross_entropy_by_hand() -> None:
    """Two classes with the weights 2/3 and 1/3; clipped to the same value they get 1/2 each."""
    row = np.array([[math.log(2), 0.0]])
    assert cross_entropy(row, _softmax(row), math.log(2)) == pytest.approx(
        -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    )
    both = np.array([[math.log(8), math.log(4)]])
    assert cross_entropy(both, _softmax(both), math.log(4)) == pytest.approx(math.log(2))


def test_values_that_get_no_weight_do_not_make_the_steps_coarse() -> None:
    """Of -20 a softmax of 3 makes 1e-10: to hold it would cost the differences of the others a digit."""
    rows = np.random.default_rng(0).uniform(0, 3, (256, 16))
    rows[:, 0] = -20
    assert CrossEntropy().amax(rows) < 10
    rows[:, 0] = 20  # and now it gets all the weight
    assert CrossEntropy().amax(rows) > 10


@pytest.mark.parametrize("mask", [-3.4e38, -1e9, -math.inf])
def test_a_mask_does_not_stretch_the_range(mask: float) -> None:
    rows = np.random.default_rng(0).standard_normal((256, 16)) * 2
    rows[:, 8:] = mask
    amax = CrossEntropy().amax(rows)
    assert np.abs(rows[:, :8]).max() < amax < 40
    np.testing.assert_allclose(_softmax(_copy(rows, amax)), _softmax(rows), atol=0.02)


def test_the_order_of_the_largest_values_survives_where_the_least_noise_would_lose_it() -> None:
    """Many small values and a few large ones that lie near each other: clipping these is cheap in squares."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 2048))
    rows[:, :4] = 40 + np.array([0.0, 1.0, 2.0, 3.0])
    amax = CrossEntropy().amax(rows)
    assert (np.argsort(_copy(rows, amax)[:, :4], axis=1) == np.arange(4)).all()
    clipped = _copy(rows, 38.0)
    assert (np.argmax(clipped[:, :4], axis=1) != 3).all()


def test_rows_without_a_largest_value_are_left_out() -> None:
    rows = np.array([[1.0, 2.0], [np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 1.0]])
    assert CrossEntropy().amax(rows) == CrossEntropy().amax(rows[:1])


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.zeros((0, 4)), np.full((2, 2), np.nan)])
def test_nothing_to_see_gives_zero(rows: NDArray[np.float64]) -> None:
    assert CrossEntropy().amax(rows) == 0.0


@given(seed=st.integers(0, 999), spread=st.floats(1e-3, 1e3))
def test_no_candidate_of_the_grid_is_better(seed: int, spread: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((8, 5)) * spread
    rows = np.maximum(rows, rows.max(axis=1, keepdims=True) - 32)
    method = CrossEntropy(num_candidates=9)
    amax, wanted = method.amax(rows), _softmax(rows)
    grid = np.abs(rows).max() * np.geomspace(1.0, 0.02, 9)
    assert amax == pytest.approx(grid[np.argmin(np.abs(grid - amax))])
    least = min(cross_entropy(rows, wanted, float(one)) for one in grid)
    assert cross_entropy(rows, wanted, amax) == pytest.approx(least, abs=1e-7)


def test_a_grid_without_a_choice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cross-entropy needs 2 to 65536 candidates .* got 1 and 0\.02"):
        CrossEntropy(num_candidates=1)
