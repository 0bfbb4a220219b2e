"""How much an output changes from sample to sample: without that, no comparison of it is evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask, find_apart, split_by_sample
from trtq.sums import sum_products

_CLEAR = 0.01
"""Samples differ clearly if what changes has this share of the amplitude of the whole."""
_ROUNDING = 1e-24
"""Of the squares of all values: what the differences of equal ones may come to in float64."""
_BLOCK_VALUES = 1 << 14
_NAMES_BYTES = 4
"""From this size on whole numbers are indices and classes; smaller ones are pictures and the like."""


def holds_names(output: NDArray[Any]) -> bool:
    """Whether the values are truths, classes or indices, and no amounts."""
    return output.dtype == bool or (output.dtype.kind in "iu" and output.dtype.itemsize >= _NAMES_BYTES)


@dataclass(slots=True)
class Moments:
    """Counts, means and squared deviations of each place of a sample.

    Batches are merged as in Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for
    computing sample variances", 1979). An axis that differs in size from feed to feed is summed up: its
    places are then further samples of one place. Where all places have the same count, or no deviation, one
    number stands for all.
    """

    counts: NDArray[np.float64] | None = None
    means: NDArray[np.float64] | None = None
    deviations: NDArray[np.float64] | None = None
    squares: float = 0.0
    open_axes: tuple[int, ...] = ()
    is_known: bool = True

    def merge(self, other: Moments) -> None:
        """Takes in those of one more batch, as of `measure_moments`."""
        if not self.is_known or other.means is None:
            return
        self.squares += other.squares
        if self.means is not None and not self._fit(other.means.shape):
            return
        other = replace(other)
        for axis in self.open_axes:
            other._open(axis)
        self._add(other)

    def _fit(self, shape: tuple[int, ...]) -> bool:
        """Sums up the axes in which a sample differs from those before; returns whether it has as many."""
        assert self.means is not None
        if len(shape) != self.means.ndim:
            self.is_known = False
            return False
        for axis, (here, before) in enumerate(zip(shape, self.means.shape, strict=True)):
            if axis not in self.open_axes and here != before:
                self._open(axis)
        return True

    def _open(self, axis: int) -> None:
        assert self.counts is not None
        assert self.means is not None
        assert self.deviations is not None
        counts, deviations = (
            np.broadcast_to(item, self.means.shape) for item in (self.counts, self.deviations)
        )
        number = counts.sum(axis=axis, keepdims=True)
        base = self.means.take([0], axis=axis)
        mean = base + ((self.means - base) * counts).sum(axis=axis, keepdims=True) / np.maximum(number, 1)
        between = ((self.means - mean) ** 2 * counts).sum(axis=axis, keepdims=True)
        self.deviations = deviations.sum(axis=axis, keepdims=True) + between
        self.counts, self.means = number, mean
        self.open_axes = (*self.open_axes, axis)

    def _add(self, other: Moments) -> None:
        number, mean, deviation = other.counts, other.means, other.deviations
        if self.counts is None or self.means is None or self.deviations is None:
            self.counts, self.means, self.deviations = number, mean, deviation
            return
        assert number is not None
        assert mean is not None
        assert deviation is not None
        total = np.maximum(self.counts + number, 1)
        difference = np.where((self.counts > 0) & (number > 0), mean - self.means, 0.0)
        self.deviations = self.deviations + deviation + difference**2 * self.counts * number / total
        self.means = np.where(self.counts > 0, self.means + difference * number / total, mean)
        self.counts = self.counts + number

    @property
    def spread(self) -> float | None:
        """The squares of what differs from the mean of all samples; None where their shapes do not fit."""
        if not self.is_known or self.deviations is None:
            return None
        found = float(self.deviations.sum())
        if not np.isfinite(found):
            return None
        return found if found > _ROUNDING * self.squares else 0.0


def measure_moments(rows: NDArray[Any], counts: Mask) -> Moments:
    """Returns those of one batch, samples along the first axis; values that do not count are left out.

    It takes some places at a time, whose values fit the cache of a processor.
    """
    if not rows.size:
        return Moments()
    shape = rows.shape[1:]
    is_whole, same = bool(counts.all()), (1,) * len(shape)
    number = np.full(same, float(len(rows)))
    if not is_whole:
        number = np.asarray(counts.sum(axis=0, dtype=np.intp), np.float64)
    values, counted = rows.reshape(len(rows), -1), counts.reshape(len(rows), -1)
    means, deviations = np.empty(values.shape[1]), np.empty(values.shape[1])
    step = max(1, _BLOCK_VALUES // len(rows))
    squares = 0.0
    for start in range(0, values.shape[1], step):
        block = slice(start, start + step)
        own = None if is_whole else counted[:, block]
        means[block], deviations[block], more = _measure_block(values[:, block].astype(np.float64), own)
        squares += more
    spread = np.zeros(same) if len(rows) == 1 else deviations.reshape(shape)
    return Moments(number, means.reshape(shape), spread, squares)


def _measure_block(
    values: NDArray[np.float64], counts: Mask | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Returns the mean of each column, its squared deviations, and the squares of all values."""
    number: float | NDArray[np.intp] = len(values)
    if counts is not None:
        values = np.where(counts, values, 0.0)
        number = np.maximum(counts.sum(axis=0, dtype=np.intp), 1)
    squares = sum_products(values.reshape(-1), values.reshape(-1))
    base = values[0].copy()  # of values that are equal, no digit is lost
    values -= base
    if counts is not None:
        values[~counts] = 0.0
    shift = values.sum(axis=0) / number
    values -= shift
    if counts is not None:
        values[~counts] = 0.0
    values *= values
    return base + shift, values.sum(axis=0), squares


@dataclass(slots=True)
class _Names:
    """How many classes, indices or truths differ from one answer for all."""

    first: NDArray[Any] | None = None
    is_alike: bool = True
    differing: int = 0
    counts: Counter[Any] = field(default_factory=Counter)

    def add(self, rows: NDArray[Any]) -> None:
        """Takes in samples along the first axis."""
        names, counts = np.unique(rows, return_counts=True)
        self.counts.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        if self.first is None:
            self.first = rows[0].copy()
        if self.first.shape != rows.shape[1:]:
            self.is_alike = False
        elif self.is_alike:
            self.differing += int((rows != self.first).sum())

    @property
    def spread(self) -> float:
        """The least number of wrong ones: of the commonest name, or of what the first sample shows.

        Where two samples are drawn alike, they differ from each other in twice as many places as from the
        commonest names of each place.
        """
        commonest = sum(self.counts.values()) - max(self.counts.values(), default=0)
        return min(commonest, self.differing / 2) if self.is_alike else commonest


@dataclass(frozen=True, slots=True)
class BatchChange:
    """What one batch tells of how an output changes; `names` are the samples themselves."""

    judged: Moments = field(default_factory=Moments)
    steady: Moments = field(default_factory=Moments)
    names: NDArray[Any] | None = None


def measure_change(
    output: NDArray[Any], num_samples: int, steady: Mask | None = None, *, are_names: bool | None = None
) -> BatchChange:
    """Returns what one batch tells; for `steady` see `find_apart`, for `are_names` `measure_batch`."""
    rows = split_by_sample(output, num_samples)
    if not rows.size:
        return BatchChange()
    if holds_names(rows) if are_names is None else are_names:
        return BatchChange(names=rows)
    fine, apart = np.isfinite(rows), find_apart(rows, steady)
    with np.errstate(over="ignore", invalid="ignore"):
        judged = measure_moments(rows, fine & ~apart)
        if steady is None:
            return BatchChange(judged)
        return BatchChange(judged, measure_moments(rows, fine & apart & ~find_apart(rows)))


@dataclass(slots=True)
class OutputChange:
    """How much the samples of one output differ; masked scores and what is not finite count nothing.

    Attributes:
        judged: Of the values that are judged.
        steady: Of those that hardly change, which count only where nothing else changes.
        names: Of classes, indices and truths.
    """

    judged: Moments = field(default_factory=Moments)
    steady: Moments = field(default_factory=Moments)
    names: _Names = field(default_factory=_Names)

    def add(self, seen: BatchChange) -> None:
        """Takes in one more batch."""
        if seen.names is not None:
            self.names.add(seen.names)
        with np.errstate(over="ignore", invalid="ignore"):
            self.judged.merge(seen.judged)
            self.steady.merge(seen.steady)

    @property
    def spread(self) -> float | None:
        """What differs from one answer for all: squares of amounts, or how many names; None: unknown."""
        if self.names.counts:
            return self.names.spread
        return self.judged.spread or self.steady.spread or self.judged.spread

    @property
    def is_of_steady(self) -> bool:
        """Whether only values change that hardly do."""
        return not self.names.counts and not self.judged.spread and bool(self.steady.spread)

    @property
    def varies(self) -> bool:
        """Whether any value differs between samples; so it is where that is not known."""
        spread = self.spread
        return spread is None or spread > 0

    @property
    def is_clear(self) -> bool:
        """Whether amounts differ by more than rounding would make them."""
        spread = self.judged.spread
        return spread is not None and spread > _CLEAR**2 * self.judged.squares
