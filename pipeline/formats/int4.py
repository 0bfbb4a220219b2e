"""INT4 weights: symmetric, one scale for each block; rounding to nearest, or the clip of least error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import iterate_pieces, reshape_scales, shape_of_scales, split_in_blocks

QMIN, QMAX = -8, 7
_CLIPS = np.linspace(1.0, 0.6, 12, dtype=np.float32)
"""Shares of amax / 7 that are tried; those near 7/8 use the code -8 where the largest value is negative."""

Blocks = NDArray[np.float32]
"""Shape (outer, block, inner)."""
Scales = Callable[[Blocks, str], NDArray[np.float32]]


def choose_rtn_scales(blocks: Blocks, dtype: str) -> NDArray[np.float32]:
    """Returns scales that hold the largest magnitude of each block: amax / 7; shape (outer, inner)."""
    return reshape_scales(np.abs(blocks).max(axis=1) / np.float32(QMAX), dtype)


def choose_mse_scales(blocks: Blocks, dtype: str) -> NDArray[np.float32]:
    """Returns the scales of least squared error, found from 12 clips; shape (outer, inner).

    Clipping a few large values leaves finer steps for all others (as in OMSE, arXiv 1902.06822, section 3.2,
    here for each block). For the codes q that a clip gives the values x, the best scale is qx / qq, which
    explains (qx)^2 / qq of their squares: 12 clips so refined err less than 26 as they are.
    """
    widest = choose_rtn_scales(blocks, "float32")
    steps = blocks * (np.float32(1) / widest)[:, None]
    best = np.ones_like(widest)
    most = np.full_like(widest, -1)
    codes = np.empty_like(steps)
    for clip in _CLIPS:
        np.multiply(steps, np.float32(1) / clip, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, QMIN, QMAX, out=codes)
        product = np.einsum("obi,obi->oi", codes, steps)
        square = np.maximum(np.einsum("obi,obi->oi", codes, codes), np.float32(1))
        ratio = product / square
        explained = ratio * product
        better = explained > most
        np.copyto(most, explained, where=better)
        np.copyto(best, ratio, where=better)
    return reshape_scales(best * widest, dtype)


METHODS: dict[str, Scales] = {"rtn": choose_rtn_scales, "mse": choose_mse_scales, "gptq": choose_mse_scales}
"""GPTQ is for products; the weights that it cannot take (embeddings) get the clip of least error."""


def codes_of(blocks: Blocks, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Returns the codes in -8..7, rounded half to even.

    Args:
        blocks: float32, shape (outer, block, inner).
        scales: float32, shape (outer, inner).
    """
    codes: NDArray[np.int8] = np.clip(np.rint(blocks / scales[:, None]), QMIN, QMAX).astype(np.int8)
    return codes


def quantize_int4(
    weight: NDArray[Any], axis: int, block_size: int, dtype: str, method: str = "rtn"
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns the codes in -8..7 of the weight's shape, and float32 scales of shape `shape_of_scales`.

    Args:
        weight: Any float dtype; `axis` is a multiple of the block size long.
        axis: The axis that is summed over.
        block_size: Elements to a scale.
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".
        method: A key of `METHODS`.
    """
    view = split_in_blocks(weight, axis, block_size)
    outer, _, inner = view.shape
    codes = np.empty(view.shape, np.int8)
    scales = np.empty((outer, inner), np.float32)
    for part in iterate_pieces((outer, block_size, inner)):
        blocks = view[part].astype(np.float32, copy=False)
        scales[part[0], part[2]] = METHODS[method](blocks, dtype)
        codes[part] = codes_of(blocks, scales[part[0], part[2]])
    return codes.reshape(weight.shape), scales.reshape(shape_of_scales(weight.shape, axis, block_size))
