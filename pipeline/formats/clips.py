"""The clips of INT4 blocks that lose least: compiled where the installation had a compiler, else in numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function
from trtq.pipeline.formats.blocks import iterate_pieces
from trtq.pipeline.formats.rounding import BLOCK_TYPES, describe_blocks

_PER_CLIP = np.array([32, *range(33, 54, 2)], np.int16)
"""For each clip, what makes codes of steps, in 32nds: whole numbers, so that processors multiply 16 bits."""
CLIPS = np.float32(32) / _PER_CLIP
"""Shares of amax / 7 that are tried; those near 7/8 use the code -8 where the largest value is negative."""
_LOWEST, _LARGEST, _LARGEST_BLOCK = -8, 7, 256
_UNIT = np.float32(1 << 10)
"""Parts of a step that are counted: 256 values times a code are less than 2**24, so their sums are exact."""
_TO_CODES = np.float32(1 << 15)
"""Codes are so many times smaller than these parts times `_PER_CLIP`."""

Search = Callable[[NDArray[Any], NDArray[np.float32]], NDArray[np.float32]]
"""From values (outer, block, inner), and what makes steps of them (outer, inner), to the best scales."""


def choose_search() -> Search:
    """Returns the compiled search, or the one in numpy where there is none."""
    return _load_compiled() or search_with_numpy


def search_with_numpy(
    values: NDArray[Any], units: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Does what `trtq_search_clips` of clips.c does, more slowly, and takes an importance.

    For the codes q that a clip gives the steps x, the best scale is qx / qq, which explains (qx)^2 / qq of
    their squares.

    Args:
        values: Any float dtype, shape (outer, block, inner).
        units: What a value is multiplied with to be a step of the scale that clips nothing, (outer, inner).
        importance: What the squared error of each value counts, shape (outer, block, 1), none negative; None:
            all count the same.

    Returns:
        The best scales in units of that scale, shape (outer, inner).
    """
    best = np.ones(units.shape, np.float32)
    for part in iterate_pieces((values.shape[0], values.shape[1], values.shape[2])):
        steps = (values[part] * units[part[0], None, part[2]]).astype(np.float32, copy=False)
        best[part[0], part[2]] = _search(steps, None if importance is None else importance[part[0]])
    return best


def _search(steps: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.float32]:
    counted = np.rint(steps * _UNIT)
    best = np.ones((steps.shape[0], steps.shape[2]), np.float32)
    most = np.full_like(best, -1)
    codes = np.empty_like(steps)
    for per_clip in _PER_CLIP:
        np.multiply(counted, per_clip / _TO_CODES, out=codes)  # exact: less than 2**24 / 2**15
        np.floor(np.add(codes, np.float32(0.5), out=codes), out=codes)
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
    """Returns the compiled search; None if there is none."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function = load_function("trtq_search_clips", *BLOCK_TYPES, pointer, pointer, size, pointer)
    if function is None:
        return None

    def search(values: NDArray[Any], units: NDArray[np.float32]) -> NDArray[np.float32]:
        blocks = describe_blocks(values)
        if blocks is None or values.shape[1] > _LARGEST_BLOCK:
            return search_with_numpy(values, units)
        own, best = np.ascontiguousarray(units, np.float32), np.ones(units.shape, np.float32)
        how = (_PER_CLIP.ctypes.data, _PER_CLIP.size, best.ctypes.data)
        function(*blocks, own.ctypes.data, *how)
        return best

    return search
