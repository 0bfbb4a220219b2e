"""How near the outputs of one model are to those of another, added up batch by batch."""

from __future__ import annotations

import heapq
import math
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask
from trtq.records import OutputComparison, WorstSample

_NUM_WORST = 5
_LOW_SHARE = 0.05
"""Of the samples, so many may be worse than the low one."""
_MASKED = -5e3
"""Below it a score is that of a class that is ruled out: -10000, -65504, -1e9, the least of float32."""
_MASKED_GAP = 0.1
"""Such values are so far from all others: none lies between a tenth of theirs and them."""


@dataclass(slots=True)
class Sums:
    """The running sums of products; float64."""

    dot: float = 0.0
    candidate_squares: float = 0.0
    reference_squares: float = 0.0
    error_squares: float = 0.0
    count: int = 0

    def add(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        """Takes in values, flat."""
        self.dot += float(ours @ theirs)
        self.candidate_squares += float(ours @ ours)
        self.reference_squares += float(theirs @ theirs)
        error = ours - theirs
        self.error_squares += float(error @ error)
        self.count += ours.size

    @property
    def cosine(self) -> float:
        """The cosine of all that was taken in."""
        return _cosine(self.dot, self.candidate_squares, self.reference_squares)


@dataclass(slots=True)
class OutputMetrics:
    """The running sums of one output.

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
    worst: list[tuple[float, int]] = field(default_factory=list)
    first: NDArray[Any] | None = None
    varies: bool = False
    cosines: array[float] = field(default_factory=lambda: array("d"))

    def add(
        self,
        candidate: NDArray[Any],
        reference: NDArray[Any],
        num_samples: int,
        *,
        steady: Mask | None = None,
        is_scores: bool = True,
    ) -> None:
        """Takes in one batch of outputs of the same shape.

        Places where the reference is not finite count nothing.

        Args:
            candidate: What is judged.
            reference: What it is judged by.
            num_samples: How many samples it has.
            steady: Which values hardly change between samples; of the shape of a sample or of its last axis.
            is_scores: Whether a float table of it holds scores of classes, as an embedding does not.
        """
        if is_scores and _has_scores(reference):
            same = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
            self.rows += same.size
            self.rows_equal += int(same.sum())
        parts = num_samples if reference.ndim and reference.shape[0] == num_samples else 1
        self._see_change(reference if parts == num_samples and reference.ndim else reference[np.newaxis])
        ours, theirs = candidate.astype(np.float64), reference.astype(np.float64)
        fine = np.isfinite(theirs)
        self.nonfinite += int((fine & ~np.isfinite(ours)).sum())
        apart = _find_apart(theirs, fine, parts, steady).reshape(parts, -1)
        ours, theirs = np.where(fine, ours, 0.0), np.where(fine, theirs, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            self._add_samples(ours.reshape(parts, -1), theirs.reshape(parts, -1), apart)
            error = np.abs(ours - theirs)
            self.absolute += float(error.sum())
        self.largest = float(np.fmax(self.largest, error.max(initial=0.0)))
        self.samples += num_samples
        self.count += int(fine.sum())
        self.size += fine.size

    def _see_change(self, rows: NDArray[Any]) -> None:
        if self.varies or not rows.size:
            return
        if self.first is None:
            self.first = rows[0].copy()
        is_same = self.first.shape == rows.shape[1:] and np.array_equal(
            np.broadcast_to(self.first, rows.shape), rows, equal_nan=rows.dtype.kind == "f"
        )
        self.varies = not is_same

    def _add_samples(self, ours: NDArray[np.float64], theirs: NDArray[np.float64], apart: Mask) -> None:
        if apart.any():
            self.apart.add(ours[apart], theirs[apart])
            ours, theirs = np.where(apart, 0.0, ours), np.where(apart, 0.0, theirs)
        self.judged.add(ours.reshape(-1), theirs.reshape(-1))
        dots = (ours * theirs).sum(axis=1)
        ours_squares, theirs_squares = (ours**2).sum(axis=1), (theirs**2).sum(axis=1)
        for index, (dot, mine, other) in enumerate(zip(dots, ours_squares, theirs_squares, strict=True)):
            cosine = _cosine(float(dot), float(mine), float(other))
            rank = -cosine if math.isfinite(cosine) else 2.0  # not finite is worse than opposite
            entry = (rank, -self.samples - index)  # of equals, the first stay
            self.worst = heapq.nlargest(_NUM_WORST, [*self.worst, entry])
            if other > 0:  # of nothing, no share can be lost
                self.cosines.append(cosine if math.isfinite(cosine) else -1.0)

    def result(self, candidate: str, reference: str, output: str) -> OutputComparison:
        """Returns the comparison of all that was taken in."""
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
        ordered = sorted(self.cosines)
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
            low_cosine=ordered[int(_LOW_SHARE * len(ordered))] if ordered else 1.0,
            apart=self.apart.count,
            apart_cosine=apart,
            varies=self.varies,
        )


def _find_apart(theirs: NDArray[np.float64], fine: Mask, parts: int, steady: Mask | None) -> Mask:
    """Returns which values are not judged with the others; none if no other would be left."""
    found = _find_masked(theirs.reshape(parts, -1), fine.reshape(parts, -1)).reshape(theirs.shape)
    if steady is not None and theirs.shape[-steady.ndim :] == steady.shape:
        found = found | steady
    found = found & fine
    return np.asarray(found if (fine & ~found).any() else np.zeros_like(found))


def _find_masked(theirs: NDArray[np.float64], fine: Mask) -> Mask:
    """Returns the scores that rule a class out: in each sample very low, and far below all others."""
    low = fine & (theirs <= _MASKED)
    if not low.any():
        return low
    highest = np.where(low, theirs, -np.inf).max(axis=1, keepdims=True)
    least = np.where(fine & ~low, theirs, np.inf).min(axis=1, keepdims=True)
    return np.asarray(low & (least > _MASKED_GAP * highest) & np.isfinite(least))


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
