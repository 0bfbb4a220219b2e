"""From blocks of a weight to their extremes and codes: compiled where a compiler was there, else in numpy.

Blocks have the shape (outer, block, inner), and what is known of each (outer, inner). The compiled functions
read FP16 and FP32 as they lie, in one pass without temporaries, and give what numpy gives, bit for bit.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function
from trtq.pipeline.formats.blocks import iterate_parts

Extremes = tuple[NDArray[np.float32], NDArray[np.float32]]
"""The smallest value and the largest magnitude of each block."""
_KINDS = (np.float16, np.float32)
BLOCK_TYPES = (ctypes.c_void_p, ctypes.c_int32, *(ctypes.c_size_t,) * 5)
"""Of the arguments that `describe_blocks` returns."""


def find_extremes(values: NDArray[Any]) -> Extremes:
    """Returns the smallest value and the largest magnitude of each block: float32.

    The magnitude is NaN where a value is.

    Args:
        values: Any float dtype.
    """
    shape = (values.shape[0], values.shape[2])
    function = load_function("trtq_find_extremes", *BLOCK_TYPES, ctypes.c_void_p, ctypes.c_void_p)
    if function is not None and (blocks := describe_blocks(values)) is not None:
        least, most = np.empty(shape, np.float32), np.empty(shape, np.float32)
        function(*blocks, least.ctypes.data, most.ctypes.data)
        return least, most
    least, most = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
    for part in iterate_parts(values.shape):
        piece = _widen(values[part])
        own = part[0], part[2]
        least[own] = np.minimum(least[own], piece.min(axis=1))
        most[own] = np.maximum(most[own], np.abs(piece).max(axis=1))
    return least, most


def round_blocks(
    values: NDArray[Any], scales: NDArray[np.float32], lowest: float, largest: float
) -> NDArray[np.int8]:
    """Returns the nearest codes, half to even, held within the ends: int8, the shape of the values.

    Args:
        values: Any float dtype.
        scales: Positive.
        lowest: The lowest code, from -128 on.
        largest: The largest one, up to 127.
    """
    codes = np.empty(values.shape, np.int8)
    pointer, number = ctypes.c_void_p, ctypes.c_float
    function = load_function("trtq_round", *BLOCK_TYPES, pointer, number, number, pointer)
    if function is not None and (blocks := describe_blocks(values)) is not None:
        own = np.ascontiguousarray(scales, np.float32)
        function(*blocks, own.ctypes.data, lowest, largest, codes.ctypes.data)
        return codes
    for part in iterate_parts(values.shape):
        steps = np.asarray(_widen(values[part]) / scales[part[0], None, part[2]])
        np.rint(steps, out=steps)
        codes[part] = np.clip(steps, lowest, largest, out=steps).astype(np.int8)
    return codes


def count_bounds(
    values: NDArray[Any], inverses: NDArray[np.float32], bounds: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Returns how many bounds lie below each value times the inverse of its block's scale.

    Args:
        values: Any float dtype.
        inverses: Of the scales.
        bounds: 15 of them, ascending.
    """
    codes = np.empty(values.shape, np.uint8)
    function = load_function("trtq_count_bounds", *BLOCK_TYPES, *(ctypes.c_void_p,) * 3)
    if function is not None and (blocks := describe_blocks(values)) is not None:
        own = np.ascontiguousarray(inverses, np.float32)
        function(*blocks, own.ctypes.data, bounds.ctypes.data, codes.ctypes.data)
        return codes
    for part in iterate_parts(values.shape):
        codes[part] = count_below(_widen(values[part]) * inverses[part[0], None, part[2]], bounds)
    return codes


def count_below(scaled: NDArray[Any], bounds: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns how many bounds lie below each value, any shape.

    Fifteen comparisons of whole vectors are three times as fast as a binary search of each value.
    """
    codes, above = np.zeros(scaled.shape, np.uint8), np.empty(scaled.shape, np.bool_)
    for bound in bounds:
        np.greater(scaled, bound, out=above)
        np.add(codes, above.view(np.uint8), out=codes)
    return codes


def describe_blocks(values: NDArray[Any]) -> tuple[int, ...] | None:
    """Returns the first seven arguments of the functions of blocks.c; None if they do not take the values."""
    if values.dtype not in _KINDS or not values.dtype.isnative or not values.size:
        return None
    size = values.itemsize
    steps = [
        stride if count > 1 else size for stride, count in zip(values.strides, values.shape, strict=True)
    ]
    if steps[2] != size or any(step <= 0 or step % size for step in steps):
        return None
    is_half = int(values.dtype == np.float16)
    return values.ctypes.data, is_half, *values.shape, steps[0] // size, steps[1] // size


def _widen(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32, copy=False)
