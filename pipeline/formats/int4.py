"""INT4: the integers from -8 to 7, one scale for each block."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.clips import choose_search, search_with_numpy
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.floats import find_most, round_scales_up
from trtq.pipeline.formats.rounding import Extremes, find_extremes


class _Int4(CodeFormat):
    def block_scales(
        self,
        blocks: NDArray[Any],
        dtype: str,
        method: str,
        extremes: Extremes | None = None,
        importance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Returns the scales of least squared error, found from 12 clips, unless the method is "rtn".

        Clipping a few large values leaves finer steps for all others (as in OMSE, arXiv 1902.06822, section
        3.2, here for each block).

        Args:
            blocks: Any float dtype, shape (outer, block, inner).
            dtype: Which the scales must survive.
            method: "rtn" or another.
            extremes: Of the blocks, where they are known.
            importance: What the squared error of each weight counts, shape (outer, block, 1), none negative;
                None: all count the same.
        """
        if method == "rtn":
            return super().block_scales(blocks, dtype, method, extremes)
        least, most = extremes or find_extremes(blocks)
        widest = self.scales_of(most, "float32")
        units = np.float32(1) / widest
        best = (
            choose_search()(blocks, units)
            if importance is None
            else search_with_numpy(blocks, units, importance)
        )
        scales = best * widest
        limits = (find_most(dtype, reached) for reached in (-self.lowest, self.largest))
        reaches_lowest = least / (self.lowest + 0.5) > scales
        return round_scales_up(scales, dtype, np.where(reaches_lowest, *limits))


INT4 = _Int4(
    name="int4",
    bits=4,
    lowest=-8,
    largest=7,
    dtype=ir.DataType.INT4,
    array_dtype=np.dtype(np.int8),
    min_opset=21,
    first_opset=21,
    block_sizes=BLOCK_SIZES,
    methods=("rtn", "mse", "gptq", "awq"),
    kernel_bytes=200_000,
    advice="INT8 does not fit; INT4 is dequantized inside the matrix multiplication, so it is also the "
    "fastest that does",
    gains={"onnxruntime": "ONNX Runtime fuses INT4 weights into MatMulNBits"},
)
