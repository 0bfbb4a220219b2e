"""Tests of what is read from timings, by hand-worked tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.errors import UsageError
from trtq.pipeline.bench.turns import (
    Latency,
    Schedule,
    Turn,
    compare_speed,
    find_median_ms,
    measure_spread,
    measure_throughput,
    summarize_latency,
    take_turns,
)


def turns(*rounds: tuple[float, ...]) -> tuple[Turn, ...]:
    return tuple(Turn(times, sum(times) / 1000) for times in rounds)


def test_candidates_take_turns() -> None:
    asked: list[tuple[str, float]] = []

    def candidate(name: str) -> Turn:
        return Turn((float(len(asked)),), 1.0)

    def run(name: str) -> object:
        def take(seconds: float) -> Turn:
            asked.append((name, seconds))
            return candidate(name)

        return take

    done: list[str] = []
    names = {name: run(name) for name in "abc"}
    found = take_turns(names, Schedule(rounds=2, seconds=3.0), done.append)  # type: ignore[arg-type]
    assert asked == [(name, 1.5) for name in "abcabc"]
    assert done == list("abcabc")
    assert [turn.times_ms for turn in found["b"]] == [(2.0,), (5.0,)]


def test_percentiles_are_of_all_runs() -> None:
    found = summarize_latency(turns(tuple(range(1, 51)), tuple(range(51, 102))))
    assert found == Latency(p50_ms=51.0, p90_ms=91.0, p99_ms=100.0, mean_ms=51.0, min_ms=1.0)


def test_a_slow_round_moves_neither_median_nor_ratio_nor_spread() -> None:
    ours = turns((1.0, 1.0, 9.0), (1.0,), (50.0,), (1.0,), (1.0,))
    theirs = turns((2.0,), (2.0, 2.0), (90.0,), (2.0,), (2.0,))
    assert find_median_ms(ours) == 1.0
    assert compare_speed(ours, theirs) == 2.0
    assert measure_spread(ours) == 0.0


def test_the_ratio_is_of_rounds_that_lie_beside_each_other() -> None:
    assert compare_speed(turns((1.0,), (2.0,), (4.0,)), turns((3.0,), (6.0,), (12.0,))) == 3.0


def test_the_spread_is_between_the_quartiles() -> None:
    assert measure_spread(turns((1.0,), (2.0,), (3.0,), (4.0,), (5.0,))) == pytest.approx(2 / 3)
    assert measure_spread(turns((7.0, 8.0, 9.0))) == 0.0


def test_throughput_counts_samples_over_the_whole_turn() -> None:
    rounds = (Turn((1.0,) * 10, 2.0), Turn((1.0,) * 30, 2.0), Turn((1.0,) * 20, 2.0))
    assert measure_throughput(rounds, batch=4) == 40.0


@given(st.lists(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20), min_size=1, max_size=6))
def test_percentiles_are_in_order(rounds: list[list[float]]) -> None:
    found = summarize_latency(turns(*map(tuple, rounds)))
    assert found.min_ms <= found.p50_ms * (1 + 1e-9)
    assert found.p50_ms <= found.p90_ms * (1 + 1e-9)
    assert found.p90_ms <= found.p99_ms * (1 + 1e-9)
    assert found.p99_ms <= max(map(max, rounds)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"rounds": 0}, r"^bench takes at least one round, got 0$"),
        ({"seconds": 0.0}, r"^--seconds is a time in seconds, at most a day, got 0\.0$"),
        ({"seconds": float("nan")}, r"^--seconds is a time in seconds, at most a day, got nan$"),
        ({"seconds": 1e6}, r"^--seconds is a time"),
        ({"warmup_s": -0.5}, r"^--warmup is a time in seconds, at most a day, got -0\.5$"),
        ({"warmup_s": float("inf")}, r"^--warmup is a time"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(given_: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Schedule(**given_)  # type: ignore[arg-type]


def test_no_warmup_is_a_schedule() -> None:
    assert Schedule(warmup_s=0.0).warmup_s == 0.0
