"""INT8: the integers from -127 to 127."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from trtq.pipeline.formats.codes import CodeFormat

INT8 = CodeFormat(
    name="int8",
    bits=8,
    lowest=-127,
    largest=127,
    dtype=ir.DataType.INT8,
    array_dtype=np.dtype(np.int8),
    min_opset=19,
    first_opset=13,
    kernel_bytes=120_000,
    advice="FP16 does not fit; INT8 weights cost the least accuracy of those that do",
)

UINT8 = replace(INT8, lowest=0, largest=255, dtype=ir.DataType.UINT8, array_dtype=np.dtype(np.uint8))
"""For activations with a zero point."""
INT8_OF_7_BITS = replace(INT8, lowest=-63, largest=63)
"""For weights where a kernel adds two products of 8 bits in 16: 2 * 255 * 63 fits, 2 * 255 * 127 does not."""
