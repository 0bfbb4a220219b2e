"""INT8 weights: symmetric, one scale for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.ranges import QMAX
from trtq.pipeline.formats.channels import choose_channel_scales, quantize_in_channels


def quantize_int8(
    weight: NDArray[Any], axis: int | None, dtype: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns the codes in -127..127, rounded half to even, and the scales, amax / 127 rounded up.

    Args:
        weight: Any float dtype and shape.
        axis: The channels; None for one scale for all.
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".

    Returns:
        int8 codes of the weight's shape, and float32 scales of shape (channels,), or () without an axis.
    """
    view, parts = quantize_in_channels(weight, axis)
    scales = choose_channel_scales(view, parts, QMAX, dtype)
    codes = np.empty(view.shape, np.int8)
    for part in parts:
        divisor = scales[part[1], None]
        codes[part] = np.clip(np.rint(view[part].astype(np.float32, copy=False) / divisor), -QMAX, QMAX)
    return codes.reshape(weight.shape), scales if axis is not None else scales.reshape(())
