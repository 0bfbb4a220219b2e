"""The way back from magnitudes in 8 bits: slow and obvious."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.double import GROUP, DoubleQuantized, build_dynamic_map


def dequantize_absmax(quantized: DoubleQuantized) -> NDArray[np.float32]:
    """Returns the magnitudes, one-dimensional."""
    scales = np.repeat(quantized.scales, GROUP)[: quantized.codes.size]
    return build_dynamic_map()[quantized.codes] * scales + quantized.offset
