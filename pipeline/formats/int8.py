"""INT8: the integers from -127 to 127."""

from __future__ import annotations

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
    kernel_bytes=120_000,
    advice="FP16 does not fit; INT8 weights cost the least accuracy of those that do",
)
