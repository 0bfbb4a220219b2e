"""The way back from NF4 codes and from magnitudes in 8 bits: slow and obvious."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import split_in_blocks
from trtq.pipeline.formats.double import GROUP, DoubleQuantized, build_dynamic_map
from trtq.pipeline.formats.nf4 import CODEBOOK


def dequantize_nf4(
    codes: NDArray[np.uint8], absmax: NDArray[np.float32], axis: int, block_size: int
) -> NDArray[np.float32]:
    """Returns the weight that the codes stand for."""
    blocks = CODEBOOK[split_in_blocks(codes, axis, block_size)]
    weight: NDArray[np.float32] = blocks * absmax.reshape(blocks.shape[0], 1, -1)
    return weight.reshape(codes.shape)


def dequantize_absmax(quantized: DoubleQuantized) -> NDArray[np.float32]:
    """Returns the magnitudes, one-dimensional."""
    scales = np.repeat(quantized.scales, GROUP)[: quantized.codes.size]
    return build_dynamic_map()[quantized.codes] * scales + quantized.offset
