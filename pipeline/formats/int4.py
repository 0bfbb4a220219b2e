"""INT4: the integers from -8 to 7, one scale for each block."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.floats import round_scales_up

_CLIPS = np.linspace(1.0, 0.6, 12, dtype=np.float32)
"""Shares of amax / 7 that are tried; those near 7/8 use the code -8 where the largest value is negative."""


_LEAST = np.float32(1e-30)
"""Instead of zero, where all codes are."""


class _Int4(CodeFormat):
    def block_scales(
        self,
        blocks: NDArray[np.float32],
        dtype: str,
        method: str,
        importance: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Returns the scales of least squared error, found from 12 clips, unless the method is "rtn".

        Clipping a few large values leaves finer steps for all others (as in OMSE, arXiv 1902.06822, section
        3.2, here for each block). For the codes q that a clip gives the values x, the best scale is qx / qq,
        which explains (qx)^2 / qq of their squares: 12 clips so refined err less than 26 as they are.

        Args:
            blocks: Shape (outer, block, inner).
            dtype: Which the scales must survive.
            method: "rtn" or another.
            importance: What the squared error of each weight counts, shape (outer, block, 1), none negative;
                None: all count the same.
        """
        if method == "rtn":
            return super().block_scales(blocks, dtype, method)
        widest = super().block_scales(blocks, "float32", "rtn")
        steps = blocks * (np.float32(1) / widest)[:, None]
        best = np.ones_like(widest)
        most = np.full_like(widest, -1)
        codes = np.empty_like(steps)
        for clip in _CLIPS:
            np.multiply(steps, np.float32(1) / clip, out=codes)
            np.rint(codes, out=codes)
            np.clip(codes, self.lowest, self.largest, out=codes)
            counted = codes if importance is None else codes * importance
            product = np.einsum("obi,obi->oi", counted, steps)
            square = np.maximum(np.einsum("obi,obi->oi", counted, codes), _LEAST)
            ratio = product / square
            explained = ratio * product
            better = explained > most
            np.copyto(most, explained, where=better)
            np.copyto(best, ratio, where=better)
        return round_scales_up(best * widest, dtype)


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
    advice="INT8 does not fit; INT4 is read inside the product, so it is also the fastest that does",
    gains={"onnxruntime": "ONNX Runtime fuses INT4 weights into MatMulNBits"},
)
