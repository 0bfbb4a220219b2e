"""What the channels of a tensor are like: the extremes and the mean of each, taken while the data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_PARTS = 8
"""Parts of the feeds, added up at the end: even, so that a part holds even feeds alone, or odd ones."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """The extremes and the mean of each channel of one tensor.

    Attributes:
        minimum: float64, shape (channels,).
        maximum: float64, shape (channels,).
        mean: float64, shape (channels,); of the means of the runs, by how many samples each has.
        num_samples: How many samples they are of.
    """

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    num_samples: int = 1

    def merged(self, other: ChannelStats) -> ChannelStats:
        """Returns the statistics of both."""
        total = self.num_samples + other.num_samples
        return ChannelStats(
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            (self.mean * self.num_samples + other.mean * other.num_samples) / total,
            total,
        )


@dataclass(frozen=True, slots=True)
class ChannelLayout:
    """Where the channels of a tensor are.

    Attributes:
        number: How many there are.
        is_second: Whether they are axis 1, as a Conv reads them; else the last axis.
    """

    number: int
    is_second: bool

    def measure(self, values: NDArray[Any], num_samples: int) -> ChannelStats:
        """Returns the statistics of one run's values, which are not empty.

        Args:
            values: Of any float dtype: shape (N, channels, ...) or (..., channels).
            num_samples: Of the run.
        """
        numbers = np.asarray(values, np.float32)
        if not self.is_second:
            rows = numbers.reshape(-1, self.number)
            low, high, total = rows.min(0), rows.max(0), rows.sum(0, dtype=np.float64)
        else:  # row by row in memory, which NumPy reduces several times as fast as both axes at a time
            maps = numbers.reshape(len(numbers), self.number, -1)
            low, high = maps.min(2).min(0), maps.max(2).max(0)
            total = maps.sum(2).sum(0, dtype=np.float64)
        mean = total * (self.number / numbers.size)
        return ChannelStats(low.astype(np.float64), high.astype(np.float64), mean, max(1, num_samples))


Seen = Mapping[str, ChannelStats]
"""By tensor."""


@dataclass(frozen=True, slots=True)
class ChannelHalves:
    """The statistics of the channels over the even and over the odd feeds; a half without a feed is empty."""

    even: Seen
    odd: Seen

    @property
    def whole(self) -> Seen:
        """Those over all feeds, of the tensors that both halves have."""
        return {name: seen.merged(self.odd[name]) for name, seen in self.even.items() if name in self.odd}


NO_CHANNELS = ChannelHalves({}, {})


@dataclass(slots=True)
class ChannelTally:
    """The statistics of the channels while they grow.

    Feeds come in their order, so that the sums are the same however many threads have run them.
    """

    parts: list[dict[str, ChannelStats]] = field(default_factory=lambda: [{} for _ in range(NUM_PARTS)])

    def add(self, index: int, seen: Seen) -> None:
        """Adds what a run shows of a feed.

        Args:
            index: The place of the feed in the data, from 0.
            seen: By tensor.
        """
        part = self.parts[index % NUM_PARTS]
        for name, item in seen.items():
            part[name] = part[name].merged(item) if name in part else item

    def halves(self) -> ChannelHalves:
        """Returns the statistics of what was added."""
        return ChannelHalves(_merge(self.parts[0::2]), _merge(self.parts[1::2]))


def _merge(parts: Sequence[Seen]) -> dict[str, ChannelStats]:
    merged: dict[str, ChannelStats] = {}
    for part in parts:
        for name, seen in part.items():
            merged[name] = merged[name].merged(seen) if name in merged else seen
    return merged
