"""Tests of the range that keeps the direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from counted import counted
from numpy.typing import NDArray

from trtq.calibrators.cosine import Cosine, find_cosines
from trtq.calibrators.grid import sum_rounded
from trtq.calibrators.statistics import Histogram
from trtq.errors import UsageError


def _seen(values: object) -> Histogram:
    return counted(np.asarray(values, np.float32))


def _measure_cosine(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns that of one clip."""
    order = np.argsort(values)
    (found,) = find_cosines(sum_rounded(values[order], weights[order], np.array([amax])))
    return float(found)


def _brute_force(values: NDArray[np.float64], amax: float) -> float:
    """Quantizes every single value, as the engine will."""
    product = ours = theirs = 0.0
    for value in values:
        copy = max(-127, min(127, round(value / (amax / 127)))) * amax / 127
        product, ours, theirs = product + value * copy, ours + copy**2, theirs + value**2
    return product / math.sqrt(ours * theirs)


def test_the_cosine_by_hand() -> None:
    values, weights = np.array([3.0, 4.25]), np.array([1.0, 2.0])
    # 3 is a code, 4.25 becomes 4, twice: (9 + 2 * 17) / sqrt((9 + 2 * 16) * (9 + 2 * 18.0625))
    assert _measure_cosine(values, weights, 127.0) == pytest.approx(43 / math.sqrt(41 * 45.125), rel=1e-12)


def test_the_cosine_is_that_of_brute_force() -> None:
    values = np.random.default_rng(0).normal(size=500)
    for amax in (0.3, 1.0, 2.7, 4.0):
        ours = _measure_cosine(np.abs(values), np.ones(500), amax)
        assert ours == pytest.approx(_brute_force(values, amax), rel=1e-9)


def test_a_copy_of_zeros_has_no_direction() -> None:
    assert _measure_cosine(np.array([0.1, 0.2]), np.ones(2), 127.0) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_cosine_chooses_as_well_as_brute_force(seed: int) -> None:
    values = np.random.default_rng(seed).laplace(size=20_000).astype(np.float32).astype(np.float64)
    largest = float(np.abs(values).max())
    grid = largest * np.geomspace(1, 0.02, 120)
    copies = [np.clip(np.rint(values * 127 / a), -127, 127) for a in grid]
    best = float(grid[int(np.argmax([(values @ copy) / np.linalg.norm(copy) for copy in copies]))])
    assert best < largest
    assert Cosine().amax(_seen(values)) == pytest.approx(best, rel=1e-9)


def test_cosine_forgives_a_loss_of_length_that_squares_do_not() -> None:
    """Values of one magnitude keep their direction in every clip; the largest of equals is taken."""
    assert _measure_cosine(np.array([1.0]), np.array([9.0]), 0.5) == pytest.approx(1.0, rel=1e-12)
    assert Cosine().amax(_seen([1.0, -1.0])) == 1.0


def test_cosine_keeps_values_that_need_no_clip() -> None:
    assert Cosine().amax(_seen([0.0, 127.0, -127.0, 64.0])) == 127.0


def test_cosine_of_magnitudes_below_the_first_bin_is_the_largest() -> None:
    assert Cosine().amax(_seen([1e-30, -2e-30])) == float(np.float32(2e-30))


def test_cosine_of_nothing_is_zero() -> None:
    assert Cosine().amax(Histogram()) == 0.0


@pytest.mark.parametrize(("candidates", "smallest"), [(1, 0.02), (120, 0.0), (120, 1.0), (120, -0.5)])
def test_parameters_out_of_range_are_refused(candidates: int, smallest: float) -> None:
    with pytest.raises(
        UsageError,
        match=rf"cosine needs 2 to 65536 candidates and 0 < smallest < 1, got {candidates} and {smallest:g}$",
    ):
        Cosine(candidates, smallest)
