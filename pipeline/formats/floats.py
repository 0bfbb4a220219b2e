"""Float formats, and scales that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.format import Format


@dataclass(frozen=True, eq=False, kw_only=True)
class FloatFormat(Format):
    """A float format that layers compute in; `smallest_scale` is the smallest that a scale may be."""

    smallest_scale: float

    @property
    def largest_exact(self) -> int:
        """The whole number up to which it has all others."""
        return int(2 / float(ml_dtypes.finfo(self.array_dtype).eps))  # type: ignore[no-untyped-call]

    def round_up(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Returns the numbers in this format, none smaller than it was.

        Args:
            numbers: Any float dtype, none negative or larger than the largest one.
        """
        rounded = numbers.astype(self.array_dtype)
        if numbers.dtype == self.array_dtype:
            return rounded
        is_lower = rounded.astype(numbers.dtype) < numbers
        bits = rounded.view(f"i{rounded.itemsize}")  # those of the next number are larger by one
        return np.asarray(bits + is_lower).view(self.array_dtype)


FP32 = FloatFormat(
    name="fp32",
    bits=32,
    largest=3.4028235e38,
    dtype=ir.DataType.FLOAT,
    array_dtype=np.dtype(np.float32),
    smallest_scale=2.0**-126,
)
FP16 = FloatFormat(
    name="fp16",
    bits=16,
    largest=65504.0,
    dtype=ir.DataType.FLOAT16,
    array_dtype=np.dtype(np.float16),
    smallest_scale=2.0**-24,
    advice="it fits, and nothing is more accurate at this speed; INT8 with calibration may be faster",
)
BF16 = FloatFormat(
    name="bf16",
    bits=16,
    largest=3.3895314e38,
    dtype=ir.DataType.BFLOAT16,
    array_dtype=np.dtype(ml_dtypes.bfloat16),
    smallest_scale=2.0**-126,
)
BY_DTYPE = {item.array_dtype.name: item for item in (FP32, FP16, BF16)}


def round_scales_up(
    scales: NDArray[np.float32], dtype: str, most: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns scales that the dtype holds exactly, rounded up so that nothing is clipped, still as float32.

    Args:
        scales: Positive.
        dtype: "float32", "float16" or "bfloat16".
        most: The largest that they may be, of all or of each: see `find_most`.
    """
    form = BY_DTYPE[dtype]
    return form.round_up(np.clip(scales, np.float32(form.smallest_scale), most)).astype(np.float32)


@cache
def find_most(dtype: str, largest: float) -> NDArray[np.float32]:
    """Returns the largest scale of a dtype with which a code of this magnitude is a number of it: ()."""
    form = BY_DTYPE[dtype]
    wanted = np.asarray(form.largest / largest)
    above = form.round_up(wanted)
    held = np.where(above.astype(np.float64) > wanted, np.nextafter(above, np.zeros_like(above)), above)
    return np.asarray(held, np.float32)


def choose_scales(scales: NDArray[np.float64] | np.float64, dtype: str) -> NDArray[Any]:
    """Returns scales in the dtype as `convert_scales`; in float32 too where it holds none of them.

    Scales of a tensor that vanish beside its others are raised: their values are next to nothing.
    """
    largest = np.asarray(scales, np.float64).max(initial=0.0)
    vanishes = 0 < largest < BY_DTYPE[dtype].smallest_scale
    return convert_scales(scales, "float32" if vanishes else dtype)


def convert_scales(scales: NDArray[np.float64] | np.float64, dtype: str) -> NDArray[Any]:
    """Returns positive scales in the dtype, rounded up; in float32 where one is too large for it."""
    form = BY_DTYPE[dtype]
    wanted = np.maximum(np.asarray(scales, np.float64), form.smallest_scale)
    return (FP32 if wanted.max(initial=0.0) > form.largest else form).round_up(wanted)
