"""Counts, sizes, times and shapes as people write them, in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence


def format_count(count: int, noun: str) -> str:
    """Returns how many there are of something whose plural ends in s: `1 node`, `2 nodes`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_bytes(count: float) -> str:
    """Returns a size in powers of 1000: `999 bytes`, `1.8 MB`."""
    from rich import filesize

    text = filesize.decimal(round(count))
    if text.startswith("1,000.0 "):  # rounded up, to 1.0 of the next unit
        return filesize.decimal(1000 ** round(math.log(count, 1000)))
    return text


def format_beside(value: float, limit: float, digits: int) -> str:
    """Returns a number with as many decimals as show on which side of a limit it is: at least `digits`."""
    for more in range(digits, 17):
        text = f"{value:.{more}f}"
        if (float(text) < limit, float(text) > limit) == (value < limit, value > limit):
            return text
    return repr(value)


def format_decibels(value: float) -> str:
    """Returns dB without the unit: `43.7`; `exact` where nothing is lost, `broken` where nothing is left."""
    if math.isfinite(value):
        return f"{value:.1f}"
    return "exact" if value > 0 else "broken"


def format_shape(shape: Sequence[int]) -> str:
    """Returns a shape as options have it: `4x3x224x224`; `scalar` without axes."""
    return "x".join(map(str, shape)) or "scalar"


def shorten(text: str, length: int = 20) -> str:
    """Returns the beginning of what was given, for a message."""
    return text if len(text) <= length else f"{text[:length]}..."


def format_seconds(value: float) -> str:
    """Returns a time: `0.3 s`, `2 min 5 s`, `1 h 30 min`."""
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {seconds} s"
