"""FP8: E4M3 without infinities (arXiv 2209.05433, section 3)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.codes import CodeFormat


class _Fp8(CodeFormat):
    """Codes are floats of eight bits, the nearest, half to even."""

    def codes_of(self, values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        held: NDArray[Any] = np.clip(values / scales, self.lowest, self.largest)  # above is NaN
        return held.astype(self.array_dtype)

    def levels_of(self, codes: NDArray[Any]) -> NDArray[Any]:
        return codes.astype(np.float32)


FP8 = _Fp8(
    name="fp8",
    bits=8,
    lowest=-448,
    largest=448,
    dtype=ir.DataType.FLOAT8E4M3FN,
    array_dtype=np.dtype(ml_dtypes.float8_e4m3fn),
    min_opset=19,
    compute_capability=(8, 9),
    kernel_bytes=120_000,
    gains={
        "tensorrt": "TensorRT keeps FP8 weights at a byte: less memory, where the GPU has FP8 (compute "
        "capability 8.9)",
    },
)
