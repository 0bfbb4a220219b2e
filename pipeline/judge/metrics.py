"""How near the outputs of one model are to those of another, added up batch by batch."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.records import OutputComparison, WorstSample

_NUM_WORST = 5


@dataclass(slots=True)
class OutputMetrics:
    """The running sums of one output; float64."""

    dot: float = 0.0
    candidate_squares: float = 0.0
    reference_squares: float = 0.0
    error_squares: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    count: int = 0
    nonfinite: int = 0
    rows: int = 0
    rows_equal: int = 0
    samples: int = 0
    size: int = 0
    worst: list[tuple[float, int]] = field(default_factory=list)

    def add(self, candidate: NDArray[Any], reference: NDArray[Any], num_samples: int) -> None:
        """Takes in one batch of outputs of the same shape.

        Places where the reference is not finite count nothing.
        """
        if _has_scores(reference):
            same = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
            self.rows += same.size
            self.rows_equal += int(same.sum())
        ours, theirs = candidate.astype(np.float64), reference.astype(np.float64)
        fine = np.isfinite(theirs)
        self.nonfinite += int((fine & ~np.isfinite(ours)).sum())
        ours, theirs = np.where(fine, ours, 0.0), np.where(fine, theirs, 0.0)
        parts = num_samples if theirs.ndim and theirs.shape[0] == num_samples else 1
        with np.errstate(invalid="ignore", over="ignore"):
            self._add_samples(ours.reshape(parts, -1), theirs.reshape(parts, -1))
            error = np.abs(ours - theirs)
            self.error_squares += float((error**2).sum())
            self.absolute += float(error.sum())
        self.largest = float(np.fmax(self.largest, error.max(initial=0.0)))
        self.samples += num_samples
        self.count += int(fine.sum())
        self.size += fine.size

    def _add_samples(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        dots = (ours * theirs).sum(axis=1)
        ours_squares, theirs_squares = (ours**2).sum(axis=1), (theirs**2).sum(axis=1)
        self.dot += float(dots.sum())
        self.candidate_squares += float(ours_squares.sum())
        self.reference_squares += float(theirs_squares.sum())
        for index, (dot, mine, other) in enumerate(zip(dots, ours_squares, theirs_squares, strict=True)):
            cosine = _cosine(float(dot), float(mine), float(other))
            rank = -cosine if math.isfinite(cosine) else 2.0  # not finite is worse than opposite
            entry = (rank, -self.samples - index)  # of equals, the first stay
            self.worst = heapq.nlargest(_NUM_WORST, [*self.worst, entry])

    def result(self, candidate: str, reference: str, output: str) -> OutputComparison:
        """Returns the comparison of all that was taken in."""
        cosine, sqnr_db, largest, mean = (
            _cosine(self.dot, self.candidate_squares, self.reference_squares),
            _to_decibels(self.reference_squares, self.error_squares),
            self.largest,
            self.absolute / max(self.count, 1),
        )
        if self.nonfinite > 0 or (self.size > 0 and self.count == 0):
            cosine = sqnr_db = largest = mean = math.nan
        agreement = self.rows_equal / self.rows if self.rows else None
        worst = tuple(WorstSample(-rank if rank <= 1 else math.nan, -place) for rank, place in self.worst)
        return OutputComparison(
            candidate, reference, output, cosine, sqnr_db, largest, mean, agreement, self.nonfinite, worst
        )


def _has_scores(output: NDArray[Any]) -> bool:
    """Whether the last axis holds scores of classes: float, (N, C) or (N, T, C)."""
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
