"""NF4: 4-bit codes of the quantiles of a normal distribution, one largest magnitude for each block.

QLoRA (arXiv 2305.14314), section 3 and appendix E. Codes and magnitudes are bitsandbytes', bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import iterate_pieces, shape_of_scales, split_in_blocks

CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""Appendix E of the paper; code 7 is exactly zero."""
_BOUNDS = (CODEBOOK[:-1] + CODEBOOK[1:]) / np.float32(2)
_SMALLEST_ABSMAX = np.float32(1e-38)  # bitsandbytes' own guard of a block of zeros, whose codes are 7


def quantize_nf4(
    weight: NDArray[Any], axis: int, block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns the codes in 0..15 of the weight's shape, and each block's largest magnitude.

    Args:
        weight: Any float dtype; `axis` is a multiple of the block size long.
        axis: The axis that is summed over. bitsandbytes has its blocks in a weight of (out, in), so those of
            a MatMul's weight of (in, out) lie along axis 0.
        block_size: Elements to a magnitude.

    Returns:
        uint8 codes, and float32 magnitudes of shape `shape_of_scales`.
    """
    view = split_in_blocks(weight, axis, block_size)
    outer, _, inner = view.shape
    codes = np.empty(view.shape, np.uint8)
    absmax = np.empty((outer, inner), np.float32)
    for part in iterate_pieces((outer, block_size, inner)):
        blocks = view[part].astype(np.float32, copy=False)
        absmax[part[0], part[2]] = largest = np.abs(blocks).max(axis=1)
        factor = np.float32(1) / np.maximum(largest, _SMALLEST_ABSMAX)
        codes[part] = _nearest(blocks * factor[:, None])
    return codes.reshape(weight.shape), absmax.reshape(shape_of_scales(weight.shape, axis, block_size))


def _nearest(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns how many of the 15 bounds lie below each value: the code of the nearest level.

    Fifteen comparisons of whole vectors are three times as fast as a binary search of each value.
    """
    codes = np.zeros(scaled.shape, np.uint8)
    above = np.empty(scaled.shape, np.bool_)
    for bound in _BOUNDS:
        np.greater(scaled, bound, out=above)
        np.add(codes, above.view(np.uint8), out=codes)
    return codes
