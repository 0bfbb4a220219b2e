"""Tests of sums over arrays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.sums import sum_products


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_products_add_up_in_float64(dtype: type) -> None:
    values: NDArray[np.int64] = np.arange(1, 60_000, dtype=np.int64) % 100
    found = sum_products(values.astype(dtype), values[::-1].astype(dtype))
    assert found == float((values * values[::-1]).sum())


def test_what_float32_has_no_room_for_counts() -> None:
    assert sum_products(np.full(3, 1e30, np.float32), np.full(3, 1e30, np.float32)) == pytest.approx(3e60)
    assert sum_products(np.full(3, 1e-30, np.float32), np.full(3, 1e-30, np.float32)) == pytest.approx(3e-60)
    assert sum_products(np.zeros(0), np.zeros(0)) == 0.0
