"""Tests of the kernel: the compiled one and the one in numpy fill the same table, bit for bit."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from trtq.calibrators import kernel
from trtq.calibrators.kernel import NUM_BINS, Count, Table, count_table_bytes, count_with_numpy
from trtq.workers import Threads

BITS = arrays(np.uint32, st.integers(0, 3000), elements=st.integers(0, 2**32 - 1))
"""Every float32 there is: NaN, infinities, denormals, -0.0."""
KERNELS = [count_with_numpy, kernel.choose_kernel()]


def _filled(count: Count, *batches: NDArray[Any]) -> tuple[list[float], list[Any]]:
    table = Table(count)
    told = [table.add(batch) for batch in batches]
    bins, counts = table.filled()
    return told, [bins.tolist(), counts.tolist(), table.extremes()]


needs_compiled = pytest.mark.skipif(
    not kernel.is_compiled(), reason="the installation found no compiler, or the checkout was not installed"
)


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(BITS)
def test_both_kernels_fill_the_same_table_bit_for_bit(bits: NDArray[np.uint32]) -> None:
    results = []
    for count in KERNELS:
        counts = np.zeros(NUM_BINS + 1, np.uint32)
        extremes = np.array([2**31 - 1, -(2**31)], np.int32)
        count(bits, counts, extremes)
        results.append((counts, extremes))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 2.0**-40, 3.4e38, -3.4e38, 6.0, -1.5], np.float32)


@pytest.mark.parametrize("count", KERNELS)
@pytest.mark.parametrize(
    "values",
    [
        SPECIAL,
        np.tile(SPECIAL, 1000)[::-3],
        np.asfortranarray(np.tile(SPECIAL, (70, 1))),
        np.tile(SPECIAL, (70, 1))[3:, 1:4],
        np.float32(7.5),
    ],
)
def test_a_table_counts_every_value_once_in_its_bin(count: Count, values: NDArray[np.float32]) -> None:
    told, (bins, counts, extremes) = _filled(count, values, values)
    magnitudes = np.abs(np.asarray(values, np.float64)).reshape(-1)
    mantissas, exponents = np.frexp(magnitudes)
    wanted = np.where(
        magnitudes < 2.0**-40, 0, (exponents + 39) * 1024 + np.floor((2 * mantissas - 1) * 1024)
    )
    found, numbers = np.unique(wanted, return_counts=True)
    assert told == [magnitudes.max()] * 2
    assert (bins, counts) == (found.tolist(), (2 * numbers).tolist())
    assert extremes == (float(np.min(values)), float(np.max(values)))


@pytest.mark.parametrize("count", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_every_float_dtype_is_taken(count: Count, dtype: Any) -> None:
    values = np.array([[0.5, -1.5], [3.0, 0.0]], dtype)
    wanted = _filled(count, np.array([0.5, -1.5, 3.0, 0.0], np.float32))
    assert _filled(count, values.T) == wanted
    assert wanted[1][2] == (-1.5, 3.0)


@pytest.mark.parametrize("count", KERNELS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(count: Count, value: float) -> None:
    assert _filled(count, np.array([1.0], np.float32), np.array([2.0, value], np.float32))[0] == [1.0, np.inf]


@pytest.mark.parametrize("count", KERNELS)
def test_what_is_not_finite_is_told_of_the_values_that_hold_it_only(count: Count) -> None:
    wrong, right = np.array([np.nan], np.float32), np.array([1.0], np.float32)
    assert _filled(count, wrong, right, wrong)[0] == [np.inf, 1.0, np.inf]


@pytest.mark.parametrize("count", KERNELS)
def test_zero_has_no_sign_and_nothing_has_no_extremes(count: Count) -> None:
    extremes = _filled(count, np.array([-0.0], np.float32))[1][2]
    assert [str(value) for value in extremes] == ["0.0", "0.0"]
    assert _filled(count, np.zeros((0, 3), np.float32)) == ([0.0], [[], [], (np.inf, -np.inf)])


@pytest.mark.parametrize("count", KERNELS)
def test_counts_go_on_beyond_32_bits(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_LARGEST_UINT32", 7)
    table = Table(count)
    for _ in range(5):
        table.add(np.array([1.0, 1.0, 2.0], np.float32))
    assert table.filled()[1].tolist() == [10, 5]
    assert table.filled()[1].dtype == np.int64


@pytest.mark.parametrize("count", KERNELS)
@pytest.mark.parametrize("size", [4095, 4096, 4097, 31 * 4096, 32 * 4096 + 1, 300_001])
def test_one_bin_takes_more_values_than_16_bits_count(count: Count, size: int) -> None:
    values = np.full(size, 1.5, np.float32)
    values[::3] = 0.0
    zeros = len(values[::3])
    assert _filled(count, values)[1][:2] == [[0, (40 << 10) + 512], [zeros, size - zeros]]


@needs_compiled
def test_threads_count_side_by_side() -> None:
    batches = [np.random.default_rng(seed).standard_normal(200_000).astype(np.float32) for seed in range(8)]

    def fill(batch: NDArray[np.float32]) -> Any:
        return _filled(kernel.choose_kernel(), batch, batch, batch)

    assert list(Threads(4).map(fill, batches)) == [_filled(count_with_numpy, *[item] * 3) for item in batches]


@pytest.fixture
def no_cache() -> Any:
    for load in (kernel._load_compiled, kernel.load_function):
        load.cache_clear()
    yield
    for load in (kernel._load_compiled, kernel.load_function):
        load.cache_clear()


@pytest.mark.usefixtures("no_cache")
def test_without_a_compiled_kernel_numpy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "kernel.py"))
    assert kernel.choose_kernel() is count_with_numpy
    assert not kernel.is_compiled()


@pytest.mark.usefixtures("no_cache")
def test_a_kernel_that_cannot_be_loaded_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernel_c.so").write_bytes(b"not a shared object")
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "kernel.py"))
    with pytest.raises(OSError, match="kernel_c"):
        ctypes.CDLL(str(tmp_path / "kernel_c.so"))
    assert kernel.choose_kernel() is count_with_numpy


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are resident")
def test_a_table_takes_memory_for_the_magnitudes_that_occur() -> None:
    table, resident = Table(), (ctypes.c_ubyte * 173)()
    table.add(np.append(np.geomspace(1, 16, 5000, dtype=np.float32), np.float32(0)))
    table.add(np.geomspace(1e-11, 1, 2, dtype=np.float32))  # nothing is between them
    start, size = table._counts.ctypes.data, table._counts.nbytes
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), resident) == 0
    assert 6 <= sum(page & 1 for page in resident) * mmap.PAGESIZE / 4096 <= 10  # zeros, 1e-11, 1 to 16
    assert count_table_bytes(16.0) >= 46 * 4096  # as there may be values from 2**-40 on
    assert table.filled()[0][[0, -1]].tolist() == [0, 44 << 10]
