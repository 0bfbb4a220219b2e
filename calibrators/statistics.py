"""What is kept of the data: of each tensor a histogram that needs no range in advance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.channels import ChannelHalves
from trtq.calibrators.kernel import FIRST, MANTISSA_BITS, NUM_BINS, SHIFT, Table
from trtq.calibrators.ranges import Shapes

BINS_PER_OCTAVE = 1 << MANTISSA_BITS


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of magnitudes, with the exact extremes.

    The bin of a value is its float32 exponent and its first 10 mantissa bits (the idea of HdrHistogram,
    G. Tene): bins are less than 0.1 % wide relative to their values, over the whole range of float32, so
    nothing has to be known in advance, the order of the values does not matter, and two histograms add up.

    Attributes:
        bins: The bins that are not empty, ascending: int32, shape (filled,).
        counts: How many values each holds: int64, shape (filled,).
        minimum: The smallest value seen; +inf before the first.
        maximum: The largest value seen; -inf before the first.
    """

    bins: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    minimum: float = np.inf
    maximum: float = -np.inf

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and (
            (self.minimum, self.maximum) == (other.minimum, other.maximum)
            and np.array_equal(self.bins, other.bins)
            and np.array_equal(self.counts, other.counts)
        )

    @property
    def amax(self) -> float:
        """The largest magnitude, exactly; 0 before the first value."""
        return max(abs(self.minimum), abs(self.maximum)) if self.total else 0.0

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """The number of values below 2**-40 in magnitude."""
        return int(self.counts[0]) if self.bins.size and self.bins[0] == 0 else 0

    def merged(self, other: Histogram) -> Histogram:
        """Returns the histogram of the values of both."""
        last = max((int(bins[-1]) for bins in (self.bins, other.bins) if bins.size), default=-1)
        counts = np.zeros(last + 1, np.int64)
        counts[self.bins] = self.counts
        counts[other.bins] += other.counts
        bins = np.flatnonzero(counts != 0)
        return Histogram(
            bins.astype(np.int32),
            counts[bins],
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def points(self, per_octave: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the centres of bins above 2**-40 and their counts: float64, ascending, shape (points,).

        `per_octave` of them, a divisor of 1024, stand for a doubling of the magnitude.
        """
        step = BINS_PER_OCTAVE // per_octave
        bins, counts = self._nonzero()
        used, starts = np.unique(bins // step, return_index=True)
        weights = np.add.reduceat(counts, starts) if used.size else counts
        centres = (_find_edges(used * step) + _find_edges((used + 1) * step)) / 2
        return np.minimum(centres, self.amax), weights.astype(np.float64)

    def exact(self, num_bins: int) -> tuple[NDArray[np.float64], float]:
        """Returns exact counts over equal bins, float64, shape (bins,), zeros left out, and their width.

        The width is a power of two, so that the borders are borders of ours. There are more than half of
        `num_bins` bins; above 2048 the counts are as of `linear`.
        """
        if not self.amax:
            return np.zeros(num_bins), 0.0
        width = 2.0 ** math.ceil(math.log2(self.amax / num_bins))
        used = math.ceil(self.amax / width)
        return self.linear(used, used * width), width

    def linear(self, num_bins: int, top: float | None = None) -> NDArray[np.float64]:
        """Returns the counts over equal bins from 0 to `top`, zeros left out: float64, shape (num_bins,).

        Values are taken as evenly spread inside each of the narrow bins, so counts come out as fractions.
        `top` is at least amax, which it is by default.
        """
        bins, counts = self._nonzero()
        if not bins.size:
            return np.zeros(num_bins)
        ends = np.cumsum(counts, dtype=np.float64)
        borders = np.stack([_find_edges(bins), _find_edges(bins + 1)], axis=1).reshape(-1)
        borders[-1] = self.amax  # which lies in the last of these bins
        cumulated = np.stack([ends - counts, ends], axis=1).reshape(-1)
        return np.diff(np.interp(np.linspace(0.0, top or self.amax, num_bins + 1), borders, cumulated))

    def quantile(self, fraction: float) -> float:
        """Returns the magnitude that this fraction (0 to 1) of all values, zeros included, do not exceed."""
        if not self.bins.size:
            return 0.0
        cumulated = np.cumsum(self.counts)
        rank = fraction * int(cumulated[-1])
        place = int(np.searchsorted(cumulated, rank))
        index, count = int(self.bins[place]), int(self.counts[place])
        if index == 0:
            return 0.0
        low, high = _find_edges(np.array([index, index + 1]))
        inside = (rank - (int(cumulated[place]) - count)) / count
        return min(float(low + (high - low) * inside), self.amax)

    def _nonzero(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        start = 1 if self.zeros else 0
        return self.bins[start:], self.counts[start:]


MOST_SHARDS = 1_000_000
"""In how many parts data may be observed."""


@dataclass(frozen=True, slots=True)
class StatisticsSource:
    """What statistics are made of; only those of the same can be merged.

    Attributes:
        model_sha256: The model that was observed.
        data: The data, as a person reads it.
        data_digest: Of its content; of the script where the content is not known.
        is_random: Whether the data was made up.
        num_shards: In how many parts the data is observed; 1: as a whole.
    """

    model_sha256: str = ""
    data: str = ""
    data_digest: str = ""
    is_random: bool = False
    num_shards: int = 1


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was seen of a model's tensors, enough for every method of histograms.

    Attributes:
        histograms: By tensor.
        magnitudes: The largest magnitude of float32 tensors; see `trtq.calibrators.survey` for how much of
            the data it is.
        inputs: How often an input had a shape, by input and shape.
        num_samples: How many samples were seen.
        source: What they are made of.
        shards: Which parts of the data were seen, from 1 on.
        feeds: How many feeds of the last shard each tensor has seen; empty when it has seen all of them.
        channels: Of the tensors whose channels were measured on the way; None: none were. No file holds them.
    """

    histograms: Mapping[str, Histogram]
    magnitudes: Mapping[str, float]
    inputs: Mapping[str, Mapping[tuple[int, ...], int]]
    num_samples: int
    source: StatisticsSource = field(default_factory=StatisticsSource)
    shards: frozenset[int] = frozenset({1})
    feeds: Mapping[str, int] = field(default_factory=dict)
    channels: ChannelHalves | None = field(default=None, compare=False)

    @property
    def shapes(self) -> Mapping[str, Shapes]:
        """The shapes of the inputs."""
        return {name: _summary(Counter(seen)) for name, seen in self.inputs.items() if seen}

    @property
    def missing_shards(self) -> list[int]:
        """The parts of the data that were not seen."""
        return sorted(set(range(1, self.source.num_shards + 1)) - self.shards)


def to_histogram(table: Table) -> Histogram:
    """Returns what a table holds."""
    return Histogram(*table.filled(), *table.extremes())


def find_bins(values: NDArray[np.floating]) -> NDArray[np.int32]:
    """Returns the bins of finite values: int32, of the same shape."""
    bits = np.abs(values.astype(np.float32)).view(np.uint32) >> np.uint32(SHIFT)
    return np.maximum(bits.astype(np.int32) - FIRST, 0)


def _find_edges(bins: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the lower edges of bins; float64, of the same shape."""
    bits = (bins.astype(np.int64) + FIRST).astype(np.uint32) << np.uint32(SHIFT)
    edges = bits.view(np.float32).astype(np.float64)
    edges[bins == 0] = 0.0
    edges[bins == NUM_BINS] = 2.0**128
    return edges


def _summary(seen: Counter[tuple[int, ...]]) -> Shapes:
    by_axis = list(zip(*seen, strict=True))
    return Shapes(
        tuple(min(sizes) for sizes in by_axis),
        max(seen, key=lambda shape: (seen[shape], shape)),
        tuple(max(sizes) for sizes in by_axis),
    )
