"""Tests of how the page writes numbers."""

from __future__ import annotations

import math

import pytest

from trtq.pipeline.deliver.html.numbers import (
    NONE,
    format_amount,
    format_decibels,
    format_magnitude,
    format_power_of_ten,
    format_share,
)


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (9999, "9999"), (10_000, "10.0 k"), (1.25e6, "1.2 M")])
def test_an_amount(count: float, text: str) -> None:
    assert format_amount(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "100.0%"),
        (0.0123, "1.2%"),
        (0.000041, "0.0041%"),
        (1e-7, "< 0.0001%"),
        (2e-6, "0.0002%"),
    ],
)
def test_a_share(value: float, text: str) -> None:
    assert format_share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NONE),
        (math.nan, NONE),
        (math.inf, "exact"),
        (-math.inf, "broken"),
        (39.44, "39.4"),
        (-3.0, "-3.0"),
    ],
)
def test_decibels(value: float | None, text: str) -> None:
    assert format_decibels(value) == text.replace("-", "\N{MINUS SIGN}")


@pytest.mark.parametrize(
    ("value", "text"), [(6.1284, "6.128"), (-0.375, "\N{MINUS SIGN}0.375"), (123456, "1.235e+05")]
)
def test_a_magnitude_has_four_digits(value: float, text: str) -> None:
    assert format_magnitude(value) == text


def test_powers_of_ten() -> None:
    assert [format_power_of_ten(power) for power in (0, 1, 2, 12)] == ["1", "10", "10²", "10¹²"]
