"""How near the outputs of one model are to those of another, added up batch by batch."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.change import OutputChange, holds_names
from trtq.pipeline.judge.classes import ClassCounts, count_classes
from trtq.pipeline.judge.entries import EntrySums, find_low_entry, measure_entries, merge_entries
from trtq.pipeline.judge.lone import find_quiet_change
from trtq.pipeline.judge.steady import Mask, find_apart, split_by_sample
from trtq.records import OutputComparison, WorstSample, cosine_of_noise
from trtq.sums import sum_products

_NUM_WORST = 5
LOW_SHARE = 0.05
"""The low cosine is the one that this share of the samples lies below."""
_SILENT_NOISE = 0.02
"""What a sample without signal may have in noise, of the power of the middle sample: that of cosine 0.99."""


@dataclass(slots=True)
class Sums:
    """The running sums of products; float64."""

    dot: float = 0.0
    candidate_squares: float = 0.0
    reference_squares: float = 0.0
    error_squares: float = 0.0
    count: int = 0

    def add(self, other: Sums) -> None:
        """Takes in the sums of other values."""
        self.dot += other.dot
        self.candidate_squares += other.candidate_squares
        self.reference_squares += other.reference_squares
        self.error_squares += other.error_squares
        self.count += other.count

    @property
    def cosine(self) -> float:
        """The cosine of all that was taken in."""
        return _cosine(self.dot, self.candidate_squares, self.reference_squares)


def _sum(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], squares: tuple[float, float] | None = None
) -> Sums:
    """Returns the sums of flat values; `squares` are those of both where they are known."""
    error = ours - theirs
    mine, other = squares or (sum_products(ours, ours), sum_products(theirs, theirs))
    return Sums(sum_products(ours, theirs), mine, other, sum_products(error, error), ours.size)


@dataclass(frozen=True, slots=True)
class SampleMarks:
    """What one sample of an output says.

    Attributes:
        judged: The sums that are judged.
        apart: Those of steady values and masked scores; None if there are none.
        absolute: The sum of the absolute errors.
        largest: The largest of them.
        size: How many values there are.
        known: How many of them are the same or can be compared.
        count: How many are finite in the reference.
        nonfinite: How many of these are not in the candidate.
        entries: Of each axis, where these are amounts.
        classes: Where these are names of a few kinds.
        lone: The reference and the error where it is one amount.
    """

    judged: Sums
    apart: Sums | None
    absolute: float
    largest: float
    size: int
    known: int
    count: int
    nonfinite: int
    entries: tuple[EntrySums, ...] = ()
    classes: ClassCounts | None = None
    lone: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class BatchMarks:
    """What one batch of an output says: of each sample, and how many rows have the same largest score."""

    samples: tuple[SampleMarks, ...]
    num_samples: int
    rows: int = 0
    rows_equal: int = 0
    are_names: bool = False


def measure_batch(
    candidate: NDArray[Any],
    reference: NDArray[Any],
    num_samples: int,
    *,
    steady: Mask | None = None,
    is_scores: bool = True,
    are_names: bool | None = None,
    places: Collection[int] = (),
) -> BatchMarks:
    """Returns what one batch of outputs of the same shape says.

    Places where the reference is not finite count nothing. Truths and indices are no amounts: they are equal
    or not. Each counts as a vector of a 1 and zeros, so that the cosine is the share of equal ones.

    Args:
        candidate: What is judged.
        reference: What it is judged by.
        num_samples: How many samples it has.
        steady: Which values hardly change between samples; of the shape of a sample or of its last axis.
        is_scores: Whether a float table of it holds scores of classes, as an embedding does not.
        are_names: Whether the values are truths, classes or indices; None: their type tells.
        places: The axes that are places of a picture, of an output whose samples are first.
    """
    same = np.empty(0, bool)
    if is_scores and _has_scores(reference):
        same = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
    rows = split_by_sample(reference, num_samples)
    are_names = holds_names(reference) if are_names is None else are_names
    apart = np.zeros(rows.shape, bool) if are_names else find_apart(rows, steady)
    pairs = zip(candidate.reshape(rows.shape), rows, apart, strict=True)
    own_places = {axis - int(rows.ndim == reference.ndim) for axis in places}
    with np.errstate(invalid="ignore", over="ignore"):
        samples = tuple(
            _measure_sample(
                rows.shape[1:],
                ours.reshape(-1),
                theirs.reshape(-1),
                aside.reshape(-1),
                own_places,
                are_names=are_names,
            )
            for ours, theirs, aside in pairs
        )
    return BatchMarks(samples, num_samples, same.size, int(same.sum()), are_names)


def _measure_sample(
    shape: tuple[int, ...],
    candidate: NDArray[Any],
    reference: NDArray[Any],
    apart: Mask,
    places: Collection[int],
    *,
    are_names: bool,
) -> SampleMarks:
    """Returns what one sample of this shape, flat, says: what it takes fits the cache of a processor."""
    ours, theirs = candidate.astype(np.float64), reference.astype(np.float64)
    size = known = fine = ours.size
    nonfinite = 0
    mine, other = sum_products(ours, ours), sum_products(theirs, theirs)
    squares = (mine, other) if math.isfinite(mine + other) else None
    if squares is None:
        is_fine = np.isfinite(theirs)
        nonfinite = int((is_fine & ~np.isfinite(ours)).sum())
        known, fine = int((is_fine | (ours == theirs)).sum()), int(is_fine.sum())
        ours, theirs = np.where(is_fine, ours, 0.0), np.where(is_fine, theirs, 0.0)
    error = np.abs(ours - theirs)
    absolute, largest = float(error.sum()), float(error.max(initial=0.0))
    aside = None
    entries = () if are_names else measure_entries(error, theirs, shape, apart, places)
    classes = None
    if are_names:
        classes, squares = count_classes(theirs, ours == theirs), None
        ours, theirs = _as_vectors(ours == theirs)
    elif apart.any():
        aside, squares = _sum(ours[apart], theirs[apart]), None
        ours, theirs = ours[~apart], theirs[~apart]
    is_lone = ours.size == 1 and fine == 1 and not are_names
    return SampleMarks(
        _sum(ours, theirs, squares), aside, absolute, largest, size, known, fine, nonfinite, entries, classes,
        lone=(float(theirs[0]), absolute) if is_lone else None,
    )  # fmt: skip


@dataclass(slots=True)
class OutputMetrics:
    """The running sums of one output, to which samples are added in their order.

    Values that are steady, and masked scores, are added up apart: they are large and say nothing of the data.
    """

    judged: Sums = field(default_factory=Sums)
    apart: Sums = field(default_factory=Sums)
    absolute: float = 0.0
    largest: float = 0.0
    count: int = 0
    nonfinite: int = 0
    rows: int = 0
    rows_equal: int = 0
    samples: int = 0
    size: int = 0
    known: int = 0
    worst: list[tuple[float, int]] = field(default_factory=list)
    cosines: array[float] = field(default_factory=lambda: array("d"))
    powers: array[float] = field(default_factory=lambda: array("d"))
    silent: array[float] = field(default_factory=lambda: array("d"))
    are_names: bool = False
    entries: tuple[EntrySums | None, ...] | None = None
    classes: ClassCounts | None = None
    are_classes: bool = True
    lone: tuple[array[float], array[float]] = field(default_factory=lambda: (array("d"), array("d")))

    def add(self, marks: BatchMarks) -> None:
        """Takes in what `measure_batch` returned for one more batch."""
        self.rows += marks.rows
        self.rows_equal += marks.rows_equal
        self.are_names = marks.are_names
        for index, item in enumerate(marks.samples):
            self._add_sample(item, index)
        self.samples += marks.num_samples

    def _add_sample(self, marks: SampleMarks, index: int) -> None:
        self.nonfinite += marks.nonfinite
        self.size, self.known = self.size + marks.size, self.known + marks.known
        self.count += marks.count
        self.absolute += marks.absolute
        self.largest = float(np.fmax(self.largest, marks.largest))
        if marks.apart is not None:
            self.apart.add(marks.apart)
        self.entries = merge_entries(self.entries, marks.entries)
        self._add_classes(marks.classes)
        if marks.lone is not None:
            for numbers, value in zip(self.lone, marks.lone, strict=True):
                numbers.append(value)
        sums = marks.judged
        self.judged.add(sums)
        rank = -sums.cosine if math.isfinite(sums.cosine) else 2.0  # not finite is worse than opposite
        entry = (rank, -self.samples - index)  # of equals, the first stay
        self.worst = heapq.nlargest(_NUM_WORST, [*self.worst, entry])
        if sums.reference_squares > 0:
            self.cosines.append(sums.cosine if math.isfinite(sums.cosine) else -1.0)
            self.powers.append(sums.reference_squares)
        else:
            self.silent.append(sums.candidate_squares)

    def _add_classes(self, classes: ClassCounts | None) -> None:
        """Takes in the classes of one more sample; where one has other numbers, none are classes."""
        self.are_classes = self.are_classes and classes is not None
        if classes is None or not self.are_classes:
            self.classes = None
        else:
            self.classes = classes if self.classes is None else self.classes.merge(classes)

    def count_below(self, cosine: float) -> int:
        """Returns how many samples have a lower cosine; not those where nothing should be."""
        return int((np.array(self.cosines) < cosine).sum())

    def result(
        self,
        candidate: str,
        reference: str,
        output: str,
        part: str = "",
        change: OutputChange | None = None,
        answers: OutputChange | None = None,
    ) -> OutputComparison:
        """Returns the comparison of all that was taken in.

        Args:
            candidate: The name of what is judged.
            reference: The name of what it is judged by.
            output: The output's name.
            part: That of the tensor joined to it; empty: the whole.
            change: How much the reference changes from sample to sample.
            answers: How much the candidate does.
        """
        cosine, sqnr_db, largest, mean = (
            self.judged.cosine,
            _to_decibels(self.judged.reference_squares, self.judged.error_squares),
            self.largest,
            self.absolute / max(self.count, 1),
        )
        apart = self.apart.cosine
        if self.nonfinite > 0 or (self.size > 0 and self.count == 0):
            cosine = sqnr_db = largest = mean = math.nan
        agreement = self.rows_equal / self.rows if self.rows else None
        worst = tuple(WorstSample(-rank if rank <= 1 else math.nan, -place) for rank, place in self.worst)
        ordered = self._sort_cosines()
        change = change or OutputChange()
        low, quiet = find_low_entry(self.entries), find_quiet_change(*self.lone)
        is_dead = change.is_clear and answers is not None and not answers.varies and self.nonfinite == 0
        return OutputComparison(
            candidate,
            reference,
            output,
            cosine,
            sqnr_db,
            largest,
            mean,
            agreement,
            self.nonfinite,
            worst,
            median_cosine=ordered[len(ordered) // 2] if ordered else 1.0,
            low_cosine=ordered[int(LOW_SHARE * len(ordered))] if ordered else 1.0,
            apart=self.apart.count,
            apart_cosine=apart,
            varies=change.varies,
            is_dead=is_dead,
            change_db=_compare_change(change.spread, self._find_noise(change)),
            quiet_change_db=None if quiet is None else _compare_change(*quiet),
            is_change_known=change.spread is not None,
            known=self.known / self.size if self.size else 0.0,
            part=part,
            entry_cosine=cosine_of_noise(_to_decibels(1.0, low.ratio)),
            entry=(low.place, low.size),
            lost=None if self.classes is None else self.classes.find_lost(),
        )

    def _find_noise(self, change: OutputChange) -> float:
        """Returns the error of the values whose change is known, in the units of that."""
        if self.are_names:  # a wrong one is two vectors at right angles
            return self.judged.error_squares / 2
        return (self.apart if change.is_of_steady else self.judged).error_squares

    def _sort_cosines(self) -> list[float]:
        """Returns the cosines of the samples in order; 0 for noise where nothing should be."""
        middle = sorted(self.powers)[len(self.powers) // 2] if self.powers else 0.0
        loud = sum(not noise <= _SILENT_NOISE * middle for noise in self.silent)
        return sorted([*self.cosines, *[0.0] * (loud if self.powers else 0)])


def _compare_change(spread: float | None, noise: float) -> float | None:
    return _to_decibels(spread, noise) if spread and noise > 0 and math.isfinite(noise) else None


def _as_vectors(equal: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns vectors of two, flat, for all values: the same where these are equal, else at right angles."""
    ours = np.stack([equal, ~equal], axis=-1).astype(np.float64)
    theirs = np.stack([np.ones_like(equal), np.zeros_like(equal)], axis=-1).astype(np.float64)
    return ours.reshape(-1), theirs.reshape(-1)


def holds_probabilities(output: NDArray[Any]) -> bool:
    """Whether the last axis holds shares that sum to 1."""
    if not _has_scores(output) or not output.min() >= 0:
        return False
    return bool(np.allclose(output.sum(axis=-1, dtype=np.float64), 1, atol=0.01))


def _has_scores(output: NDArray[Any]) -> bool:
    """Whether the last axis may hold scores of classes: float, (N, C) or (N, T, C)."""
    is_table = output.ndim in (2, 3) and output.shape[-1] > 1 and output.size > 0
    return is_table and np.issubdtype(output.dtype, np.floating)


def _cosine(dot: float, first_squares: float, second_squares: float) -> float:
    if not (math.isfinite(dot) and math.isfinite(first_squares) and math.isfinite(second_squares)):
        return math.nan  # min and max would make it 1
    if first_squares == 0 and second_squares == 0:
        return 1.0
    if first_squares == 0 or second_squares == 0:
        return 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(first_squares) / math.sqrt(second_squares)))


def _to_decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal > 0 else -math.inf
