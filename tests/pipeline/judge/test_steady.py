"""Tests of which values of an output are steady."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import OutputSpread, find_steady, measure_spreads


def _runs(*batches: NDArray[np.float32]) -> Iterator[tuple[dict[str, OutputSpread], int]]:
    yield from ((measure_spreads({"y": batch}, len(batch)), len(batch)) for batch in batches)


def _array(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_what_stays_within_a_hundredth_of_its_magnitude_is_steady() -> None:
    rows = _array([-1e9, 5, -10000, 100, 0, 1], [-1e9, -3, -9950, 102, 0, -1])
    for runs in (_runs(rows), _runs(rows[:1], rows[1:]), _runs(rows[1:], rows[:1])):
        assert find_steady(runs)["y"].tolist() == [True, False, True, False, False, False]


def test_zeros_hide_nothing_and_are_not_steady() -> None:
    assert find_steady(_runs(np.zeros((4, 3), np.float32))) == {}


def test_of_one_sample_nothing_is_known() -> None:
    assert find_steady(_runs(np.ones((1, 3), np.float32))) == {}


def test_no_batch_is_asked_for_when_nothing_is_steady_any_more() -> None:
    asked: list[int] = []

    def runs() -> Iterator[tuple[dict[str, OutputSpread], int]]:
        for index in range(10):
            asked.append(index)
            yield from _runs(np.full((1, 3), 1.0 + index, np.float32))

    assert find_steady(runs()) == {}
    assert asked == [0, 1]


def test_samples_of_different_shapes_are_seen_by_their_last_axis() -> None:
    """A vocabulary that is filled up: the logits of the tokens that are none are -1e9, for any length."""
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, length, 4)).astype(np.float32) for length in (5, 3, 5)]
    for batch in batches:
        batch[..., 3] = -1e9
    assert find_steady(_runs(*batches))["y"].tolist() == [False, False, False, True]


def test_samples_that_share_no_axis_have_nothing_steady() -> None:
    assert find_steady(_runs(np.ones((1, 3), np.float32), np.ones((1, 4), np.float32))) == {}


def test_values_that_are_not_finite_count_nothing() -> None:
    rows = _array([np.nan, -np.inf, 7], [3, -np.inf, 7])
    assert find_steady(_runs(rows))["y"].tolist() == [True, False, True]


def test_truths_are_left_out_and_whole_numbers_are_not() -> None:
    runs = [(measure_spreads({"b": np.ones((2, 2), bool), "i": np.full((2, 1), 7)}, 2), 2)]
    assert {name: mask.tolist() for name, mask in find_steady(runs).items()} == {"i": [True]}


def test_an_output_without_samples_is_one_sample() -> None:
    runs = [(measure_spreads({"y": _array([4, last])[0]}, 8), 8) for last in (5, 7)]
    assert find_steady(runs)["y"].tolist() == [True, False]
