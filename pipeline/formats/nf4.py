"""NF4: 4-bit codes of the quantiles of a normal distribution, one largest magnitude for each block.

QLoRA (arXiv 2305.14314), section 3 and appendix E. Codes and magnitudes are bitsandbytes', bit for bit: it
has its blocks in a weight of (out, in), so those of a MatMul's weight of (in, out) lie along axis 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.double import SMALLEST_ABSMAX
from trtq.pipeline.formats.rounding import count_below, count_bounds

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


class _Nf4(CodeFormat):
    """Codes are places in the codebook; the scales are the largest magnitudes as they are."""

    def scales_of(self, amax: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
        return amax

    def codes_of(self, values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        """Returns how many of the 15 bounds lie below each value: the code of the nearest level."""
        return count_below(values * _invert(scales), _BOUNDS)

    def codes_of_blocks(self, blocks: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[Any]:
        return count_bounds(blocks, _invert(scales), _BOUNDS)

    def levels_of(self, codes: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(CODEBOOK[codes])


def _invert(scales: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.float32(1) / np.maximum(scales, SMALLEST_ABSMAX))


NF4 = _Nf4(
    name="nf4",
    bits=4,
    lowest=0,
    largest=15,
    dtype=ir.DataType.INT4,
    array_dtype=np.dtype(np.uint8),
    min_opset=21,
    first_opset=21,
    block_sizes=BLOCK_SIZES,
    is_linear=False,
    kernel_bytes=40_000,
    advice="nothing larger fits",
    gains={
        "tensorrt": "TensorRT keeps NF4 codes at half a byte and looks every weight up in each run: less "
        "memory, but not faster; INT4 is the faster format",
        "onnxruntime": "ONNX Runtime computes MatMulBnb4 from the codes",
    },
)
