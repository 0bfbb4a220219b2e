"""Tests of the range that holds every value."""

from __future__ import annotations

import numpy as np
import pytest
from counted import counted

from trtq.calibrators.minmax import MinMax


@pytest.mark.parametrize(
    ("values", "amax"),
    [([1.0, -2.5, 2.25], 2.5), ([0.1], float(np.float32(0.1))), ([0.0], 0.0), ([-1e-42], 1e-42), ([], 0.0)],
)
def test_minmax_is_the_largest_magnitude_exactly(values: list[float], amax: float) -> None:
    histogram = counted(np.array(values, np.float32))
    assert MinMax().amax(histogram) == float(np.float32(amax))


def test_minmax_keeps_an_outlier() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values[7] = -100
    assert MinMax().amax(counted(values)) == 100
