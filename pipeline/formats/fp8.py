"""FP8: E4M3 without infinities (arXiv 2209.05433, section 3)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.codes import CodeFormat

_CODE_OF_LARGEST = 0x7E
"""The code behind it is NaN."""


class _Fp8(CodeFormat):
    """Codes are floats of eight bits, the nearest, half to even."""

    def codes_of(self, values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        held: NDArray[Any] = np.clip(values / scales, self.lowest, self.largest)  # above is NaN
        return held.astype(self.array_dtype)

    def levels_of(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.float32)

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        return np.arange(_CODE_OF_LARGEST + 1, dtype=np.uint8).view(self.array_dtype).astype(np.float64)

    def round_steps(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        held = np.clip(steps, self.lowest, self.largest).astype(self.array_dtype)
        return np.asarray(held.astype(np.float64))

    def round_away(self, steps: NDArray[np.float64], nearest: NDArray[np.float64]) -> NDArray[np.float64]:
        above = np.searchsorted(self._levels, nearest, "right")
        below = np.searchsorted(self._levels, nearest, "left") - 1
        place = np.where(steps > nearest, above, np.where(steps < nearest, below, above - 1))
        return np.asarray(self._levels[np.clip(place, 0, len(self._levels) - 1)])

    @cached_property
    def _levels(self) -> NDArray[np.float64]:
        positive = self.magnitudes[1:]
        return np.concatenate([-positive[::-1], [0.0], positive])


FP8 = _Fp8(
    name="fp8",
    bits=8,
    lowest=-448,
    largest=448,
    dtype=ir.DataType.FLOAT8E4M3FN,
    array_dtype=np.dtype(ml_dtypes.float8_e4m3fn),
    min_opset=19,
    first_opset=19,
    compute_capability=(8, 9),
    kernel_bytes=120_000,
    gains={
        "tensorrt": "TensorRT keeps FP8 weights at a byte: less memory, where the GPU has FP8 (compute "
        "capability 8.9)",
    },
)
