"""FP8 weights: E4M3 without infinities (arXiv 2209.05433, section 3), one scale for each channel."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.channels import choose_channel_scales, quantize_in_channels

LARGEST = 448


def quantize_fp8(
    weight: NDArray[Any], axis: int | None, dtype: str
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Returns the nearest E4M3 numbers, half to even, and the scales, amax / 448 rounded up.

    Args:
        weight: Any float dtype and shape.
        axis: The channels; None for one scale for all.
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".

    Returns:
        float8_e4m3fn of the weight's shape, and float32 scales of shape (channels,), or () without an axis.
    """
    view, parts = quantize_in_channels(weight, axis)
    scales = choose_channel_scales(view, parts, LARGEST, dtype)
    codes = np.empty(view.shape, ml_dtypes.float8_e4m3fn)
    for part in parts:
        scaled = view[part].astype(np.float32, copy=False) / scales[part[1], None]
        codes[part] = np.clip(scaled, -LARGEST, LARGEST)  # above it is NaN
    return codes.reshape(weight.shape), scales if axis is not None else scales.reshape(())
