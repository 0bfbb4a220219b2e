"""Tests of the range that holds a given share of the values."""

from __future__ import annotations

import numpy as np
import pytest
from counted import counted

from trtq.calibrators.percentile import Percentile
from trtq.calibrators.statistics import Histogram
from trtq.errors import UsageError


def _seen(values: object) -> Histogram:
    return counted(np.asarray(values, np.float32))


@pytest.mark.parametrize("percentile", [0.5, 50.0, 99.0, 99.9, 99.99])
def test_percentile_is_that_of_numpy(percentile: float) -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    wanted = np.percentile(np.abs(values), percentile)
    assert Percentile(percentile).amax(_seen(values)) == pytest.approx(wanted, rel=1e-3)


def test_percentile_counts_zeros() -> None:
    histogram = _seen([0.0] * 50 + [float(value) for value in range(1, 51)])
    assert Percentile(90).amax(histogram) == pytest.approx(40, rel=1e-3)


def test_percentile_ignores_one_outlier() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    values[0] = 1000
    assert Percentile().amax(_seen(values)) < 5


def test_a_percentile_among_zeros_is_the_largest_magnitude() -> None:
    histogram = _seen([0.0] * 9999 + [-3.0])
    assert Percentile(50).amax(histogram) == 3.0


def test_a_hundred_per_cent_is_the_largest_magnitude_exactly() -> None:
    assert Percentile(100).amax(_seen([0.1, -0.7])) == float(np.float32(0.7))


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.00001, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match=rf"percentile must be above 0 and at most 100, got {percentile}$"):
        Percentile(percentile)
