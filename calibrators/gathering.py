"""Statistics while they grow, filled from several threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.calibrators.kernel import Table
from trtq.calibrators.statistics import Statistics, to_histogram, to_table


class Gathering:
    """The statistics of some tensors.

    A table is filled by one thread at a time: the threads are at different tensors most of the time, and
    tables of their own would cost memory for every core.

    Attributes:
        feeds: How many feeds each tensor has seen.
    """

    def __init__(self, tensors: Sequence[str], inputs: Sequence[str], earlier: Statistics | None) -> None:
        begun = earlier.histograms if earlier is not None else {}
        self._tables = {name: to_table(begun[name]) if name in begun else Table() for name in tensors}
        self._locks = {name: Lock() for name in tensors}
        self._magnitudes = dict(earlier.magnitudes) if earlier is not None else {}
        self._inputs = {name: Counter(earlier.inputs[name] if earlier is not None else {}) for name in inputs}
        self._num_samples = earlier.num_samples if earlier is not None else 0
        self._lock = Lock()
        self.feeds = dict.fromkeys(tensors, 0) | dict(earlier.feeds if earlier is not None else {})
        self._num_feeds = max(self.feeds.values(), default=0)

    def add(self, name: str, values: NDArray[Any]) -> float:
        """Returns the largest magnitude of the values, which are added to those of a tensor."""
        with self._locks[name]:
            return self._tables[name].add(values)

    def raise_magnitudes(self, magnitudes: Mapping[str, float]) -> None:
        """Keeps the larger magnitude of each tensor."""
        with self._lock:
            for name, magnitude in magnitudes.items():
                self._magnitudes[name] = max(self._magnitudes.get(name, 0.0), magnitude)

    def finish(self, feed: Feed, tensors: Sequence[str]) -> bool:
        """Returns whether this feed is new: another pass over it, for other tensors, does not count it."""
        for name in tensors:
            self.feeds[name] += 1
        position = self.feeds[tensors[0]] if tensors else self._num_feeds + 1
        if position <= self._num_feeds:
            return False
        self._num_feeds = position
        self._num_samples += feed.num_samples
        for name, seen in self._inputs.items():
            seen[feed.arrays[name].shape] += 1
        return True

    def statistics(self, shard: int, *, is_whole: bool) -> Statistics:
        """Returns what was seen so far, of a source that the caller knows."""
        histograms = {name: to_histogram(table) for name, table in self._tables.items()}
        largest = {name: histogram.amax for name, histogram in histograms.items() if histogram.total}
        magnitudes = {
            name: max(self._magnitudes.get(name, 0.0), largest.get(name, 0.0))
            for name in {**self._magnitudes, **largest}
        }
        result = Statistics(histograms, magnitudes, self._inputs, self._num_samples)
        return replace(result, shards=frozenset({shard}), feeds={} if is_whole else dict(self.feeds))
