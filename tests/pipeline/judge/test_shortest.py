"""The least count of steps that holds a gate, found in few measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.pipeline.judge.shortest import ShortestSearch

_WANTED = 0.9


def search(predicted: list[float], used: Callable[[float], float], rounds: int) -> ShortestSearch:
    """Returns a search after so many rounds, or when it is done."""
    found = ShortestSearch(predicted, _WANTED)
    for _ in range(rounds):
        if found.is_done:
            break
        count = found.propose()
        assert found.too_few < count < found.enough
        found.learn(count, used(predicted[count]), holds=used(predicted[count]) <= _WANTED)
    return found


def fall(num_steps: int) -> list[float]:
    """Returns errors that fall from 9 to 0, each step by less than the one before."""
    return [9 * (1 - count / num_steps) ** 3 for count in range(num_steps + 1)]


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0, 1.5])
@pytest.mark.parametrize("scale", [0.6, 1.0, 3.0])
def test_five_rounds_come_near_the_least_count_however_the_score_grows_with_the_error(
    power: float, scale: float
) -> None:
    predicted = fall(200)
    least = next(count for count, error in enumerate(predicted) if scale * error**power <= _WANTED)
    found = search(predicted, lambda error: scale * error**power, 5)
    assert least <= found.enough <= least + 4


def test_it_ends_where_the_model_says_nothing() -> None:
    """The score falls at one step, wherever the error says that it should."""
    for least in range(1, 101):
        found = search(fall(100), partial(_jump, fall(100)[least]), 16)
        assert (found.is_done, found.enough) == (True, least)


def _jump(most: float, error: float) -> float:
    return 0.1 if error <= most else 5.0


@pytest.mark.parametrize("used", [0.0, math.inf, math.nan])
def test_what_no_number_tells_is_halved(used: float) -> None:
    found = ShortestSearch(fall(64), _WANTED)
    assert found.propose() == 0
    found.learn(0, used, holds=False)
    assert found.propose() == 32


def test_errors_that_are_not_finite_are_steps_to_be_taken() -> None:
    found = search([math.inf, math.inf, 4.0, 1.0, 0.4, 0.0], lambda error: error, 6)
    assert found.enough == 4


_ERRORS = st.lists(st.floats(0, 1e30), min_size=1, max_size=60)


@given(_ERRORS, st.floats(1e-300, 1e300))
def test_it_finds_the_least_count_of_any_errors(errors: list[float], scale: float) -> None:
    predicted = [*sorted(errors, reverse=True), 0.0]
    found = search(predicted, lambda error: scale * error, 100)
    assert found.is_done
    assert found.enough == next(c for c, error in enumerate(predicted) if scale * error <= _WANTED)
