"""Double quantization: the block magnitudes of NF4 in 8 bits (QLoRA, arXiv 2305.14314, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 256
"""Magnitudes to a scale of their own."""
SMALLEST_ABSMAX = np.float32(1e-38)
"""What bitsandbytes takes for the largest magnitude of zeros."""


@dataclass(frozen=True, slots=True)
class DoubleQuantized:
    """Magnitudes as `DYNAMIC_MAP[codes] * scales + offset`, in groups of 256.

    Attributes:
        codes: uint8, one a magnitude.
        scales: float32, one a group.
        offset: The mean of all magnitudes.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offset: np.float32


def build_dynamic_map() -> NDArray[np.float32]:
    """Returns the 256 levels of the dynamic data type (arXiv 1511.04561), ascending, float32.

    Seven decades of 1, 2, 4 ... 64 levels of each sign, evenly spaced between 0.1 and 1 times the decade, and
    zero and one.
    """
    levels: list[NDArray[np.float32]] = [np.array([0, 1], np.float32)]
    for exponent in range(7):
        edges = _evenly_spaced(2**exponent)
        middles = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        levels += [middles, -middles]
    return np.sort(np.concatenate(levels))


def _evenly_spaced(num_steps: int) -> NDArray[np.float32]:
    """Returns the numbers from 0.1 to 1, rounded as PyTorch does: from either end, one rounding each."""
    start, index = np.float32(0.1), np.arange(num_steps + 1, dtype=np.float64)
    step = np.float64((np.float32(1) - start) / np.float32(num_steps))
    near = index < (num_steps + 1) // 2
    return np.where(near, np.float64(start) + step * index, 1 - step * index[::-1]).astype(np.float32)


def quantize_absmax(absmax: NDArray[np.float32]) -> DoubleQuantized:
    """Returns the magnitudes in 8 bits, as bitsandbytes does with `compress_statistics`.

    Levels, scales and codes are the same, and the offset up to the order of a sum. The codes are those of the
    nearest levels; bitsandbytes' own code for CPUs searches in coarse steps, and misses one in 600 of them.

    Args:
        absmax: float32, in bitsandbytes' order: that of the weight as (out, in).
    """
    offset = np.float32(absmax.mean(dtype=np.float64))
    rest = absmax.reshape(-1) - offset
    groups = np.zeros((-(-rest.size // GROUP), GROUP), np.float32)
    groups.reshape(-1)[: rest.size] = rest
    scales = np.abs(groups).max(axis=1)
    levels = build_dynamic_map()
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    scaled = groups * (np.float32(1) / np.maximum(scales, SMALLEST_ABSMAX))[:, None]
    codes = np.searchsorted(bounds, scaled.reshape(-1)[: rest.size]).astype(np.uint8)
    return DoubleQuantized(codes, scales, offset)
