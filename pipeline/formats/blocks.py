"""Blocks of a weight along one axis, worked on in pieces that fit the processor's cache."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function

_PIECE = 1 << 17  # elements; measured: 8 times more or less costs a third of the speed
_LONG = 256
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""TensorRT runs INT4 blocks of 8 to 128 fused; ONNX Runtime's MatMulBnb4 takes powers of two from 16 on."""

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


def iterate_pieces(shape: tuple[int, int, int]) -> Iterator[Piece]:
    """Yields the parts of an array (outer, block, inner), each with whole blocks and small temporaries."""
    outer, block, inner = shape
    columns = max(1, min(inner, _PIECE // block))
    rows = max(1, _PIECE // (block * columns))
    for start in range(0, outer, rows):
        for left in range(0, inner, columns):
            yield slice(start, start + rows), slice(None), slice(left, left + columns)


def iterate_parts(shape: tuple[int, ...]) -> Iterator[Piece]:
    """Yields the parts of an array (outer, block, inner) of any size, so that long blocks are cut too."""
    outer, block, inner = shape
    if block <= _LONG or (inner == 1 and block <= _PIECE):
        yield from iterate_pieces((outer, block, inner))
        return
    for index in range(outer):
        for rows, _, columns in iterate_pieces((block, 1, inner)):
            yield slice(index, index + 1), rows, columns


def pack_nibbles(codes: NDArray[Any], flip: int = 0) -> NDArray[np.uint8]:
    """Returns two 4-bit codes a byte, the first in the low half, as ONNX stores INT4; an odd one is padded.

    Args:
        codes: int8 in -8..7 or uint8 in 0..15, any shape, in C order.
        flip: The bits that are turned over in each.
    """
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(flip))
    packed = np.empty(flat.size // 2, np.uint8)
    pointer = ctypes.c_void_p
    function = load_function("trtq_pack", pointer, ctypes.c_size_t, ctypes.c_uint8, pointer)
    if function is not None:
        function(flat.ctypes.data, packed.size, flip, packed.ctypes.data)
        return packed
    for start in range(0, packed.size, _PIECE):
        part = slice(start, start + _PIECE)
        pairs = flat[2 * start : 2 * (start + _PIECE)].view("<u2")
        packed[part] = ((pairs & 0xF) | ((pairs >> 4) & 0xF0)) ^ (flip * 0x11)
    return packed


def swap_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the bytes with their halves exchanged: bitsandbytes has the first code in the high half."""
    return (packed << np.uint8(4)) | (packed >> np.uint8(4))
