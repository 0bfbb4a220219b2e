"""Statistics while they grow, filled from several threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.calibrators.kernel import Table
from trtq.calibrators.statistics import Histogram, Statistics, to_histogram


class Accumulator:
    """The statistics of some tensors, and how many feeds each tensor has seen: `feeds`.

    A table is filled by one thread at a time: the threads are at different tensors most of the time, and
    tables of their own would cost memory for every core. A tensor has one from its first values until it is
    closed.
    """

    def __init__(self, tensors: Sequence[str], inputs: Sequence[str], earlier: Statistics | None) -> None:
        known = earlier or Statistics({}, {}, {}, 0)
        self._known = known.histograms
        self._tables = dict[str, Table]()
        self._closed = dict.fromkeys(tensors, Histogram())
        self._locks = {name: Lock() for name in tensors}
        self._magnitudes = dict(known.magnitudes)
        self._inputs = {name: Counter(known.inputs.get(name, {})) for name in inputs}
        self._num_samples = known.num_samples
        self._lock = Lock()
        self.feeds = dict.fromkeys(tensors, 0) | dict(known.feeds)
        self._num_feeds = max(self.feeds.values(), default=0)

    def add(self, name: str, values: NDArray[Any]) -> float:
        """Counts values of a tensor; returns the largest magnitude of them."""
        with self._locks[name]:
            if name not in self._tables:
                self._tables[name] = Table()
            return self._tables[name].add(values)

    def close(self, tensors: Sequence[str]) -> None:
        """Turns the tables of tensors that have seen all data into histograms, so that not all need both."""
        for name in tensors:
            if name in self._tables:
                self._closed[name] = to_histogram(self._tables.pop(name))

    def raise_magnitudes(self, magnitudes: Mapping[str, float]) -> None:
        """Keeps the larger magnitude of each tensor."""
        with self._lock:
            self._magnitudes |= _larger(self._magnitudes, magnitudes)

    @property
    def magnitudes(self) -> Mapping[str, float]:
        """The largest magnitudes so far, of what is not counted."""
        return self._magnitudes

    def finish(self, feed: Feed, tensors: Sequence[str]) -> bool:
        """Returns whether this feed is new: another pass over it, for other tensors, does not count it."""
        for name in tensors:
            self.feeds[name] += 1
        position = self.feeds[tensors[0]] if tensors else self._num_feeds + 1
        if position <= self._num_feeds:
            return False
        self._num_feeds = position
        self._num_samples += feed.num_samples
        for name, shapes in self._inputs.items():
            shapes[feed.arrays[name].shape] += 1
        return True

    def statistics(self, shard: int, *, is_whole: bool) -> Statistics:
        """Returns what was seen so far of a shard of the data."""
        histograms = self._closed | {name: to_histogram(table) for name, table in self._tables.items()}
        known = ((name, self._known[name]) for name in histograms if name in self._known)
        histograms |= {name: earlier.merged(histograms[name]) for name, earlier in known}
        amaxes = {name: histogram.amax for name, histogram in histograms.items() if histogram.total}
        return Statistics(
            histograms,
            self._magnitudes | _larger(self._magnitudes, amaxes),
            self._inputs,
            self._num_samples,
            shards=frozenset({shard}),
            feeds={} if is_whole else dict(self.feeds),
        )


def _larger(known: Mapping[str, float], magnitudes: Mapping[str, float]) -> dict[str, float]:
    return {name: max(known.get(name, 0.0), magnitude) for name, magnitude in magnitudes.items()}
