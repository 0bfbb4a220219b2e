"""Counting values by magnitude: compiled where a compiler was there at installation, else in numpy."""

from __future__ import annotations

import ctypes
import math
import mmap
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 10
SMALLEST_EXPONENT = -40
SHIFT = 23 - MANTISSA_BITS
FIRST = (127 + SMALLEST_EXPONENT) << MANTISSA_BITS
NUM_BINS = (255 << MANTISSA_BITS) - FIRST
"""Magnitudes from 2**-40 to the largest float; bin 0 also holds everything smaller, zeros above all."""

_ZEROS = 8
"""Further places of a row, where the compiled kernel counts zeros."""
_LARGEST_UINT32 = (1 << 32) - 1
_LARGEST_INT32 = (1 << 31) - 1
_EMPTY = (_LARGEST_INT32, -_LARGEST_INT32 - 1)
_BLOCK = 1 << 18

Count = Callable[[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]], None]
"""Adds values, given as their bits, to a table of NUM_BINS + 1 counts and to two extremes."""


class Table:
    """Counts that grow, by float32 exponent and first 10 mantissa bits.

    Counts are uint32, so that a tensor costs 0.7 MB of address space and 4 KB of memory for every doubling of
    the magnitude that occurs (`count_table_bytes`); before one can overflow, all go on to int64.
    """

    def __init__(self, count: Count | None = None) -> None:
        self._count = count or choose_kernel()
        self._counts = _take_zeros(NUM_BINS + 1, np.uint32)
        self._extremes = _EMPTY
        self._num_values = 0
        self._earlier: NDArray[np.int64] | None = None

    def add(self, values: NDArray[Any]) -> float:
        """Counts values of any float dtype and shape, as float32; returns their largest magnitude.

        It is 0 if there are none, and infinity if one is NaN or infinite: the table is then of no use.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
        if not flat.size:
            return 0.0
        if self._num_values + flat.size > _LARGEST_UINT32:
            self._earlier = self._sums(NUM_BINS)
            self._counts = _take_zeros(NUM_BINS + 1, np.uint32)
            self._num_values = 0
        extremes = np.array(_EMPTY, np.int32)
        num_wrong = self._counts[NUM_BINS]
        self._count(flat, self._counts, extremes)
        self._num_values += flat.size
        smallest, largest = extremes.tolist()  # numbers from here on: a call for two elements costs more
        self._extremes = (min(self._extremes[0], smallest), max(self._extremes[1], largest))
        if self._counts[NUM_BINS] != num_wrong:  # of these values: other threads may have brought others
            return math.inf
        return max(abs(_to_float(smallest)), abs(_to_float(largest)))

    def filled(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the bins that are not empty, ascending, and their counts: shape (filled,) each."""
        top = max(abs(extreme) for extreme in self.extremes()) if self._num_values else 0.0
        sums = self._sums(min(NUM_BINS, _count_octaves(top) << MANTISSA_BITS))
        bins = np.flatnonzero(sums != 0)  # which NumPy looks through many times as fast
        return bins.astype(np.int32), sums[bins].astype(np.int64)

    def extremes(self) -> tuple[float, float]:
        """Returns the smallest and the largest value; +inf and -inf before the first."""
        if self._extremes[0] > self._extremes[1]:
            return math.inf, -math.inf
        return _to_float(self._extremes[0]) + 0.0, _to_float(self._extremes[1]) + 0.0  # -0.0 becomes 0.0

    def _sums(self, num_bins: int) -> NDArray[Any]:
        """Returns the counts of the first bins: uint32 or int64, shape (num_bins,)."""
        sums = self._counts[:num_bins]
        return sums if self._earlier is None else sums + self._earlier[:num_bins]


def count_table_bytes(magnitude: float) -> int:
    """Returns the most memory that a table takes of values up to this magnitude: pages that hold counts."""
    num_pages = -(-(_count_octaves(magnitude) << MANTISSA_BITS + 2) // mmap.PAGESIZE)
    return (num_pages + 1) * mmap.PAGESIZE  # and one for what is not finite


def _count_octaves(magnitude: float) -> int:
    """Returns how many doublings of the magnitude have bins up to this one."""
    if not magnitude < 2.0**127:  # infinite, or as good as
        return NUM_BINS >> MANTISSA_BITS
    return max(1, math.frexp(magnitude)[1] - SMALLEST_EXPONENT)


def _take_zeros(size: int, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    """Returns zeros whose pages take memory once they are written to: shape (size,).

    `numpy.zeros` writes to them where malloc has freed memory at hand.
    """
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    num_bytes = size * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, num_bytes, flags=private) if private else mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # of 2 MB, which hold two tables
        with suppress(OSError):  # of a kernel without such pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype)


def is_compiled() -> bool:
    """Returns whether the compiled kernel is here."""
    return _load_compiled() is not None


def choose_kernel() -> Count:
    """Returns the compiled kernel, or the one in numpy where there is none."""
    return _load_compiled() or count_with_numpy


def count_with_numpy(
    values: NDArray[np.uint32], counts: NDArray[np.uint32], extremes: NDArray[np.int32]
) -> None:
    """Does what `trtq_count_magnitudes` of kernel.c does, some seven times slower."""
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        bins = (block & np.uint32(np.iinfo(np.int32).max)) >> np.uint32(SHIFT)
        bins = np.clip(bins, FIRST, FIRST + NUM_BINS) - np.uint32(FIRST)
        counted = np.bincount(bins)
        counts[: counted.size] += counted.astype(np.uint32)
        ordered = _mirror(block.view(np.int32))
        extremes[0] = min(extremes[0], ordered.min())
        extremes[1] = max(extremes[1], ordered.max())


def _mirror(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns integers in the order of the floats that the bits are, and from those the bits again."""
    return np.where(bits < 0, bits ^ np.int32(np.iinfo(np.int32).max), bits)


def _to_float(ordered: int) -> float:
    """Returns the float whose bits `_mirror` has put in order."""
    bits = ordered ^ _LARGEST_INT32 if ordered < 0 else ordered
    number: float = struct.unpack("=f", struct.pack("=i", bits))[0]
    return number


@cache
def load_function(name: str, *types: Any) -> Any:
    """Returns a function of kernel.c or blocks.c, with the types of its arguments.

    None if the installation had no compiler, or the library cannot be loaded or is older than the function.
    """
    try:
        function = getattr(ctypes.CDLL(str(Path(__file__).with_name("kernel_c.so"))), name)
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = None, types
    return function


class _Rows(local):
    """What the compiled kernel counts in before it adds that to a table: two rows for each thread."""

    def __init__(self) -> None:
        self.place = _take_zeros(2 * (NUM_BINS + 1 + _ZEROS), np.uint16)


@cache
def _load_compiled() -> Count | None:
    """Returns the compiled kernel; None if there is none."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    types = (pointer, ctypes.c_size_t, pointer, pointer, pointer, integer, integer, integer)
    function = load_function("trtq_count_magnitudes", *types)
    if function is None:
        return None
    rows = _Rows()

    def count(values: NDArray[np.uint32], counts: NDArray[np.uint32], extremes: NDArray[np.int32]) -> None:
        places = (counts.ctypes.data, rows.place.ctypes.data, extremes.ctypes.data)
        function(values.ctypes.data, values.size, *places, SHIFT, FIRST, NUM_BINS)

    return count
