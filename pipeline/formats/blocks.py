"""Blocks of a weight along one axis, worked on in pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 17  # elements; measured: 8 times more or less costs a third of the speed
_SMALLEST_SCALE = {
    "float32": np.float32(2.0**-126),
    "float16": np.float32(2.0**-24),
    "bfloat16": np.float32(2.0**-126),
}
_LARGEST_SCALE = {
    "float32": np.float32(3.4028235e38),
    "float16": np.float32(65504.0),
    "bfloat16": np.float32(3.3895314e38),
}

Piece = tuple[slice, slice, slice]


def choose_block_size(length: int, wanted: int) -> int | None:
    """Returns the largest of `wanted`, a half, a quarter ... down to 16 that divides the length, else None.

    TensorRT takes whole blocks only.
    """
    size = wanted
    while size >= 16:
        if length % size == 0:
            return size
        size //= 2
    return None


def split_in_blocks(weight: NDArray[Any], axis: int, block_size: int) -> NDArray[Any]:
    """Returns a view of shape (outer, block_size, inner): blocks along `axis`, which they must divide.

    The view's first and last axis, multiplied out, are `shape_of_scales`.
    """
    inner = int(np.prod(weight.shape[axis + 1 :]))
    return weight.reshape(-1, block_size, inner)


def shape_of_scales(shape: tuple[int, ...], axis: int, block_size: int) -> tuple[int, ...]:
    """Returns the shape of the block scales, as DequantizeLinear wants it since opset 21."""
    return (*shape[:axis], shape[axis] // block_size, *shape[axis + 1 :])


def iterate_pieces(shape: tuple[int, int, int]) -> Iterator[Piece]:
    """Yields the parts of an array (outer, block, inner), each with whole blocks and small temporaries."""
    outer, block, inner = shape
    columns = max(1, min(inner, _PIECE // block))
    rows = max(1, _PIECE // (block * columns))
    for start in range(0, outer, rows):
        for left in range(0, inner, columns):
            yield slice(start, start + rows), slice(None), slice(left, left + columns)


def pack_nibbles(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns two 4-bit codes a byte, the first in the low half, as ONNX stores INT4; an odd one is padded.

    Args:
        codes: int8 in -8..7 or uint8 in 0..15, any shape, in C order.
    """
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed = np.empty(flat.size // 2, np.uint8)
    for start in range(0, packed.size, _PIECE):
        part = slice(start, start + _PIECE)
        pairs = flat[2 * start : 2 * (start + _PIECE)].view("<u2")
        packed[part] = (pairs & 0xF) | ((pairs >> 4) & 0xF0)
    return packed


def swap_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the bytes with their halves exchanged: bitsandbytes has the first code in the high half."""
    return (packed << np.uint8(4)) | (packed >> np.uint8(4))


def reshape_scales(scales: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Returns scales that the dtype holds exactly, rounded up so that nothing is clipped, still as float32.

    Args:
        scales: float32, any shape, not negative.
        dtype: "float32", "float16" or "bfloat16"; its largest number takes the place of larger ones.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    wanted = np.clip(scales, _SMALLEST_SCALE[dtype], _LARGEST_SCALE[dtype])
    if dtype == "float32":
        return wanted
    rounded = wanted.astype(kind)
    with np.errstate(over="ignore"):  # above the largest number, which is then not taken
        above = np.nextafter(rounded, np.asarray(np.inf, kind))
    return np.where(rounded.astype(np.float32) < wanted, above, rounded).astype(np.float32)
