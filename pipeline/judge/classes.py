"""Which class of an output of classes is lost: where one is rare, all others outvote it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask
from trtq.records import LostClass

_MOST = 1024
"""Larger numbers are places, tokens and counts, of which each is rare."""
_LEAST = 32
"""A class in fewer places may be lost by chance."""
_FOUND = 0.5


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """In how many places each class is, and in how many of these it was found: int64, by class."""

    counts: NDArray[np.int64]
    found: NDArray[np.int64]

    def merge(self, other: ClassCounts) -> ClassCounts:
        """Returns the counts of both."""
        size = max(len(self.counts), len(other.counts))
        pairs = ((self.counts, other.counts), (self.found, other.found))
        counts, found = (sum(np.pad(item, (0, size - len(item))) for item in pair) for pair in pairs)
        return ClassCounts(np.asarray(counts), np.asarray(found))

    def find_lost(self) -> LostClass | None:
        """Returns the class of which most is lost; None if at least half of each was found."""
        missed = self.counts - self.found
        missed[(self.counts < _LEAST) | (self.found >= _FOUND * self.counts)] = 0
        if not missed.any():
            return None
        worst = int(missed.argmax())
        return LostClass(worst, int(self.found[worst]), int(self.counts[worst]))


def count_classes(reference: NDArray[np.float64], are_equal: Mask) -> ClassCounts | None:
    """Returns the counts of one sample; None if its numbers are no classes.

    Args:
        reference: What it should be, flat.
        are_equal: Where that was found, flat.
    """
    if not (reference.size and reference.min() >= 0 and reference.max() < _MOST):
        return None
    classes = reference.astype(np.intp)
    if not np.array_equal(classes, reference):
        return None
    counts = np.bincount(classes)
    return ClassCounts(counts, np.bincount(classes[are_equal], minlength=len(counts)))
