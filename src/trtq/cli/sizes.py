"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from trtq.errors import UsageError
from trtq.numbers import shorten

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DECIMAL_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_MOST_BYTES = 1 << 60


def parse_bytes(text: str, *, decimal: bool = False) -> int:
    """Returns a size: bytes, or a number with K, M or G, which are powers of 1024.

    Args:
        text: What was given.
        decimal: Whether KB, MB and GB are powers of 1000, as on the box of a GPU; K and KiB are not.

    Raises:
        UsageError: The text is no size, or larger than any memory.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMG]?)(iB|B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is not a size; write bytes, or a number with K, M or G")
    unit = found[2].upper()
    is_decimal = decimal and (found[3] or "").upper() == "B"
    size = float(found[1]) * (_DECIMAL_UNITS if is_decimal else _UNITS)[unit]
    if size > _MOST_BYTES:
        raise UsageError(
            f"{shorten(text)!r} is more than any memory; write bytes, or a number with K, M or G"
        )
    return int(size)


def parse_decimal_bytes(text: str) -> int:
    """Returns a size as on the box of a GPU, where KB, MB and GB are powers of 1000.

    Raises:
        UsageError: The text is no size.
    """
    return parse_bytes(text, decimal=True)
