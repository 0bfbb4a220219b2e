"""NVFP4: E2M1 numbers in blocks of 16, an E4M3 scale for each block, and one scale for all of these."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import iterate_pieces
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.fp8 import FP8
from trtq.pipeline.formats.granularity import PerBlock

BLOCK = 16
_LARGEST = 6
"""The largest E2M1 number."""
_EXPONENT = np.int32(0x7F800000)
"""The bits of a float32 that hold its exponent."""
_STEPS = range(-4, 7)
"""Which scales of a block are tried: so many E4M3 numbers around amax / 6, from 0.7 to 1.75 times as large.

With amax / 4 all codes are used that lie below 4, where the steps are finer.
"""


class _Nvfp4(CodeFormat):
    """The levels are those of a whole tensor in units of its one scale: up to 6 times 448."""

    def codes_of(self, values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        held: NDArray[Any] = np.clip(values / scales, -_LARGEST, _LARGEST)  # ml_dtypes saturates too
        return held.astype(self.array_dtype)

    def levels_of(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.float32)

    def scales_of_blocks(
        self, values: NDArray[Any], granularity: PerBlock, shared: NDArray[np.float32]
    ) -> NDArray[Any]:
        """Returns the scales of least squared error, of the E4M3 numbers around amax / 6: none is zero.

        Args:
            values: Any float dtype; whole blocks along the axis.
            granularity: Blocks of 16.
            shared: What the scales are multiplied with: shape ().

        Returns:
            float8_e4m3fn, one a block, in the shape that the granularity has.
        """
        view = granularity.split(values)
        scales = np.empty((view.shape[0], view.shape[2]), FP8.array_dtype)
        for part in iterate_pieces((view.shape[0], view.shape[1], view.shape[2])):
            blocks = view[part].astype(np.float32, copy=False)
            scales[part[0], part[2]] = self._search(blocks / shared)
        return scales.reshape(granularity.scales_shape(values.shape))

    def _search(self, blocks: NDArray[np.float32]) -> NDArray[Any]:
        """Returns the scales (outer, inner) of blocks (outer, block, inner)."""
        magnitudes = np.abs(blocks)
        widest = FP8.codes_of(magnitudes.max(axis=1), np.asarray(_LARGEST, np.float32))
        places, last = widest.view(np.uint8).astype(np.int16), FP8.magnitudes.size - 1
        best, least = widest, np.full(widest.shape, np.inf, np.float32)
        for step in _STEPS:
            scales = np.clip(places + step, 1, last).astype(np.uint8).view(FP8.array_dtype)
            wide = scales.astype(np.float32)[:, None]
            error = _round_magnitudes(magnitudes / wide)
            error *= wide
            error -= magnitudes
            loss = np.einsum("obi,obi->oi", error, error)
            best, least = np.where(loss < least, scales, best), np.minimum(loss, least)
        return best

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        return self._products

    def round_steps(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        middles = (self._products[1:] + self._products[:-1]) / 2
        return np.asarray(np.copysign(self._products[np.searchsorted(middles, np.abs(steps))], steps))

    @cached_property
    def _products(self) -> NDArray[np.float64]:
        numbers = np.arange(8, dtype=np.uint8).view(self.array_dtype).astype(np.float64)
        return np.unique(numbers[:, None] * FP8.magnitudes)


def _round_magnitudes(values: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the nearest E2M1 numbers: steps are half of the power of two below, and 0.5 below 2.

    With ml_dtypes, to and from E2M1, the search takes five times as long.
    """
    powers = np.maximum(values, np.float32(1)).view(np.int32)
    powers &= _EXPONENT
    steps = powers.view(np.float32)
    steps *= np.float32(0.5)
    found: NDArray[np.float32] = values / steps
    np.rint(found, out=found)
    found *= steps
    np.minimum(found, np.float32(_LARGEST), out=found)
    return found


NVFP4 = _Nvfp4(
    name="nvfp4",
    bits=4,
    lowest=-_LARGEST * FP8.largest,
    largest=_LARGEST * FP8.largest,
    dtype=ir.DataType.FLOAT4E2M1,
    array_dtype=np.dtype(ml_dtypes.float4_e2m1fn),
    min_opset=23,
    first_opset=23,
    methods=(),
    compute_capability=(12, 0),
    kernel_bytes=120_000,
    clips=False,
    otherwise=FP8,
)
"""For MatMul and Gemm; what they do not take gets FP8."""
