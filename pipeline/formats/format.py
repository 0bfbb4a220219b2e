"""What is true of a number format everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, eq=False, kw_only=True)
class Format:
    """A number format.

    Attributes:
        name: In options, reports and files.
        bits: Of one number.
        largest: The largest number, or the largest code.
        dtype: Of the numbers or codes in ONNX.
        array_dtype: Of the numbers or codes in an array.
        advice: Why `trtq plan` recommends it, if it does; empty for what it only compares.
    """

    name: str
    bits: int
    largest: float
    dtype: ir.DataType
    array_dtype: np.dtype[Any]
    advice: str = ""

    def __str__(self) -> str:
        return self.name
