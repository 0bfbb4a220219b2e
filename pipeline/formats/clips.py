"""The clips of INT4 blocks that lose least: compiled where the installation had a compiler, else in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function

CLIPS = np.linspace(1.0, 0.6, 12, dtype=np.float32)
"""Shares of amax / 7 that are tried; those near 7/8 use the code -8 where the largest value is negative."""
_LOWEST, _LARGEST, _LARGEST_BLOCK = -8, 7, 256
_UNIT = np.float32(1 << 10)
"""Parts of a step that are counted: 256 values times a code are less than 2**24, so their sums are exact."""

Search = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From steps in -7..7, shape (outer, block, inner), to the best scale of each block, shape (outer, inner)."""


def choose_search() -> Search:
    """Returns the compiled search, or the one in numpy where there is none."""
    return _load_compiled() or search_with_numpy


def search_with_numpy(
    steps: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Does what `trtq_search_clips` of kernel.c does, some five times slower, and takes an importance.

    For the codes q that a clip gives the values x, the best scale is qx / qq, which explains (qx)^2 / qq of
    their squares.

    Args:
        steps: Shape (outer, block, inner).
        importance: What the squared error of each value counts, shape (outer, block, 1), none negative; None:
            all count the same.
    """
    counted = np.rint(steps * _UNIT)
    best = np.ones((steps.shape[0], steps.shape[2]), np.float32)
    most = np.full_like(best, -1)
    codes = np.empty_like(steps)
    for clip in CLIPS:
        np.multiply(steps, np.float32(1) / clip, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, _LOWEST, _LARGEST, out=codes)
        weighed = codes if importance is None else codes * importance
        product = np.einsum("obi,obi->oi", weighed, counted) / _UNIT
        square = np.einsum("obi,obi->oi", weighed, codes)
        ratio = product / np.where(square > 0, square, np.float32(1))
        explained = ratio * product
        better = explained > most
        np.copyto(most, explained, where=better)
        np.copyto(best, ratio, where=better)
    return best


@cache
def _load_compiled() -> Search | None:
    """Returns the compiled search; None if the installation had no compiler, or it cannot be loaded."""
    function = load_function("trtq_search_clips")
    if function is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, size, size, size, pointer, size, pointer]
    inverses = np.float32(1) / CLIPS

    def search(steps: NDArray[np.float32]) -> NDArray[np.float32]:
        outer, length, inner = steps.shape
        if length > _LARGEST_BLOCK:
            return search_with_numpy(steps)
        steps, best = np.ascontiguousarray(steps, np.float32), np.ones((outer, inner), np.float32)
        how = (inverses.ctypes.data, inverses.size)
        if inner == 1:
            function(steps.ctypes.data, outer, length, 1, *how, best.ctypes.data)
            return best
        for block, found in zip(steps, best, strict=True):
            function(block.ctypes.data, inner, length, inner, *how, found.ctypes.data)
        return best

    return search
