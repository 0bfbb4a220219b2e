"""Numbers as the page writes them."""

from __future__ import annotations

import math

from trtq import numbers

_SUPERSCRIPTS = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = "kMGTP"
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Where there is no number."""


def format_amount(count: float) -> str:
    """Returns a number of things for people: `512`, `1.8 M`."""
    if count < 10_000:
        return f"{count:.0f}"
    power = min(int(math.log10(count) // 3), len(_UNITS))
    return f"{count / 1000**power:.1f} {_UNITS[power - 1]}"


def format_share(value: float) -> str:
    """Returns a share as per cent: `0`, `0.004%`, `12.3%`."""
    if value == 0:
        return "0"
    percent = 100 * value
    return f"{percent:.1f}%" if percent >= 1 else f"{percent:.2g}%" if percent >= 1e-4 else "< 0.0001%"


def format_decibels(value: float | None) -> str:
    """Returns dB without the unit; `exact` where nothing is lost."""
    return NONE if value is None or math.isnan(value) else numbers.format_decibels(value).replace("-", MINUS)


def format_magnitude(value: float) -> str:
    """Returns a value of a tensor in at most four digits: `6.13`, `0.0021`, `1.2e+05`."""
    return f"{value:.4g}".replace("-", MINUS)


def format_power_of_ten(exponent: int) -> str:
    """Returns `10⁴`; 1 and 10 as they are."""
    return str(10**exponent) if exponent in (0, 1) else f"10{str(exponent).translate(_SUPERSCRIPTS)}"
