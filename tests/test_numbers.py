"""Sizes and times for people: no unit is ever full."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.numbers import (
    format_beside,
    format_bytes,
    format_count,
    format_decibels,
    format_seconds,
    format_shape,
    shorten,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (999.6, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (1_834_000, "1.8 MB"),
        (3.2e9, "3.2 GB"),
        (999_999_999_999, "1.0 TB"),
        (4e15, "4.0 PB"),
    ],
)
def test_a_size(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**24))
def test_a_size_has_at_most_three_digits_before_its_point(count: int) -> None:
    assert re.fullmatch(r"\d{1,3} bytes?|\d{1,3}\.\d [kMGTPEZY]B", format_bytes(count))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (99.94, "1 min 40 s"),
        (119.7, "2 min 0 s"),
        (125, "2 min 5 s"),
        (3599.6, "1 h 0 min"),
        (5405, "1 h 30 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_a_time(value: float, text: str) -> None:
    assert format_seconds(value) == text


@pytest.mark.parametrize(("shape", "text"), [((), "scalar"), ((4,), "4"), ((1, 3, 8), "1x3x8")])
def test_a_shape(shape: tuple[int, ...], text: str) -> None:
    assert format_shape(shape) == text


def test_counts_are_singular_and_plural() -> None:
    assert [format_count(count, "node") for count in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]


def test_what_was_given_is_shortened_for_a_message() -> None:
    assert shorten("1" * 20) == "1" * 20
    assert shorten("1" * 21) == "1" * 20 + "..."
    assert shorten("abcdef", 3) == "abc..."


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [
        (0.98, 0.99, "0.9800"),
        (0.9999989, 0.999999, "0.9999989"),  # four decimals would show a number above the limit
        (0.99, 0.99, "0.9900"),
        (1.0000001, 1.0, "1.0000001"),
        (math.nan, 0.99, "nan"),
        (1 - 2**-53, 1.0, "0.9999999999999999"),
    ],
)
def test_a_number_is_shown_on_its_side_of_a_limit(value: float, limit: float, shown: str) -> None:
    assert format_beside(value, limit, 4) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(43.71, "43.7"), (-0.25, "-0.2"), (math.inf, "exact"), (-math.inf, "broken"), (math.nan, "broken")],
)
def test_decibels_have_one_decimal_or_are_told_in_a_word(value: float, shown: str) -> None:
    assert format_decibels(value) == shown
