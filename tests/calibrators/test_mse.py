"""Tests of the range with the smallest squared error."""

from __future__ import annotations

import numpy as np
import pytest
from counted import counted
from numpy.typing import NDArray

from trtq.calibrators.grid import sum_rounded
from trtq.calibrators.mse import Mse, find_squared_errors
from trtq.calibrators.statistics import Histogram
from trtq.errors import UsageError


def _seen(values: object) -> Histogram:
    return counted(np.asarray(values, np.float32))


def _measure_error(values: NDArray[np.float64], weights: NDArray[np.float64], amax: float) -> float:
    """Returns that of one clip."""
    order = np.argsort(values)
    (found,) = find_squared_errors(sum_rounded(values[order], weights[order], np.array([amax])))
    return float(found)


def _brute_force(values: NDArray[np.float64], amax: float) -> float:
    """Quantizes every single value, as the engine will."""
    total = 0.0
    for value in values:
        code = max(-127, min(127, round(value / (amax / 127))))
        total += (value - code * amax / 127) ** 2
    return total


def test_the_error_by_hand() -> None:
    values, weights = np.array([1.0, 126.75, 130.0]), np.array([1.0, 2.0, 3.0])
    # 1.0 is a code; 126.75 becomes 127; 130 is clipped to 127.
    assert _measure_error(values, weights, 127.0) == pytest.approx(2 * 0.25**2 + 3 * 3.0**2, rel=1e-9)


def test_the_error_is_that_of_brute_force() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=500))
    for amax in (0.3, 1.0, 2.7, 4.0):
        ours = _measure_error(values, np.ones(500), amax)
        assert ours == pytest.approx(_brute_force(values, amax), rel=1e-9)


def test_values_that_are_levels_have_no_error() -> None:
    values = np.arange(1.0, 128.0)
    assert _measure_error(values, np.full(127, 1e6), 127.0) == 0.0
    assert _measure_error(values * 0.1, np.ones(127), 12.7) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_mse_chooses_as_well_as_brute_force(seed: int) -> None:
    values = np.random.default_rng(seed).laplace(size=20_000).astype(np.float32)
    largest = float(np.abs(values).max())
    grid = largest * np.geomspace(1, 0.02, 120)
    errors = [((values - np.clip(np.rint(values * 127 / a), -127, 127) * a / 127) ** 2).sum() for a in grid]
    best = float(grid[int(np.argmin(errors))])
    assert best < largest
    assert Mse().amax(_seen(values)) == pytest.approx(best, rel=1e-9)


def test_mse_clips_a_long_tail_of_many_values_less_than_one_outlier() -> None:
    values = np.random.default_rng(3).normal(size=400_000)
    without = Mse().amax(_seen(values))
    values[0] = 20
    assert Mse().amax(_seen(values)) < 20
    assert without == pytest.approx(3.9, abs=0.3)  # the known optimum of a normal distribution at 8 bits


def test_mse_keeps_values_that_need_no_clip() -> None:
    assert Mse().amax(_seen([0.0, 127.0, -127.0, 64.0])) == 127.0


def test_mse_of_magnitudes_below_the_first_bin_is_the_largest() -> None:
    assert Mse().amax(_seen([1e-30, -2e-30])) == float(np.float32(2e-30))


def test_two_candidates_are_enough() -> None:
    assert Mse(2, 0.5).amax(_seen([1.0, 2.0])) == 2.0


@pytest.mark.parametrize(("candidates", "smallest"), [(1, 0.02), (120, 0.0), (120, 1.0), (120, -0.5)])
def test_parameters_out_of_range_are_refused(candidates: int, smallest: float) -> None:
    with pytest.raises(
        UsageError,
        match=rf"mse needs 2 to 65536 candidates and 0 < smallest < 1, got {candidates} and {smallest:g}$",
    ):
        Mse(candidates, smallest)
