"""Tests of sums over arrays."""

from __future__ import annotations

import numpy as np
import pytest

from trtq.sums import sum_products


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_products_add_up_in_float64(dtype: type) -> None:
    values = np.arange(1, 60_000).astype(np.int64) % 100
    first, second = values.astype(dtype), values[::-1].astype(dtype)
    assert sum_products(first, second) == float((values * values[::-1]).sum())


def test_what_float32_has_no_room_for_counts() -> None:
    assert sum_products(np.full(3, 1e30, np.float32), np.full(3, 1e30, np.float32)) == pytest.approx(3e60)
    assert sum_products(np.full(3, 1e-30, np.float32), np.full(3, 1e-30, np.float32)) == pytest.approx(3e-60)
    assert sum_products(np.zeros(0), np.zeros(0)) == 0.0
