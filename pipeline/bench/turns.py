"""Timings of several candidates that take turns, and what is read from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtq.errors import UsageError

_MOST_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The runs of one candidate in one turn: the time of each, at least one, and that of the whole turn."""

    times_ms: tuple[float, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long is measured.

    Attributes:
        rounds: How often each candidate has its turn.
        seconds: Of measuring for each candidate, in all rounds together; a turn has at least one run.
        warmup_s: Each candidate runs so long before the first round, and at least twice.
    """

    rounds: int = 10
    seconds: float = 5.0
    warmup_s: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"bench takes at least one round, got {self.rounds}")
        for name, value, least in (("seconds", self.seconds, 0.0), ("warmup", self.warmup_s, -1.0)):
            if not least < value <= _MOST_SECONDS or value < 0:
                raise UsageError(f"--{name} is a time in seconds, at most a day, got {value}")


@dataclass(frozen=True, slots=True)
class Latency:
    """The times of one run in milliseconds: percentiles and mean of all runs of all rounds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float


def take_turns(
    candidates: Mapping[str, Callable[[float], Turn]], schedule: Schedule, done: Callable[[str], None]
) -> dict[str, tuple[Turn, ...]]:
    """Returns the turns of each candidate, A B C A B C: what slows the machine for a while meets them all.

    Args:
        candidates: Each runs for so many seconds.
        schedule: How long.
        done: Gets the name after each turn.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in candidates}
    for _ in range(schedule.rounds):
        for name, run in candidates.items():
            turns[name].append(run(schedule.seconds / schedule.rounds))
            done(name)
    return {name: tuple(items) for name, items in turns.items()}


def summarize_latency(turns: Sequence[Turn]) -> Latency:
    """Returns the percentiles of all runs (linear between ranks, as `numpy.percentile`)."""
    times = np.concatenate([turn.times_ms for turn in turns])
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Latency(p50, p90, p99, float(times.mean()), float(times.min()))


def measure_throughput(turns: Sequence[Turn], batch: int) -> float:
    """Returns samples a second: the median of the rounds."""
    return statistics.median(batch * len(turn.times_ms) / turn.wall_s for turn in turns)


def find_median_ms(turns: Sequence[Turn]) -> float:
    """Returns the median of the rounds' medians: one slow round does not move it."""
    return statistics.median(_medians(turns))


def compare_speed(turns: Sequence[Turn], reference: Sequence[Turn]) -> float:
    """Returns how many times faster than the reference in the same rounds: the median of the ratios."""
    return statistics.median(find_ratios(turns, reference))


def find_ratios(turns: Sequence[Turn], reference: Sequence[Turn]) -> list[float]:
    """Returns how many times faster than the reference each round was, by the medians of its runs."""
    pairs = zip(_medians(reference), _medians(turns), strict=True)
    return [theirs / ours for theirs, ours in pairs]


def measure_spread(turns: Sequence[Turn]) -> float:
    """Returns how far the medians of the rounds lie apart, as a share of their median.

    That is the distance of the quartiles, which a single disturbed round does not move; 0 for one round.
    """
    medians = _medians(turns)
    low, high = np.percentile(medians, (25, 75))
    return float(high - low) / statistics.median(medians)


def _medians(turns: Sequence[Turn]) -> list[float]:
    return [statistics.median(turn.times_ms) for turn in turns]
