"""Clips on a geometric grid, the best of which a method takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trtq.errors import UsageError

if TYPE_CHECKING:
    from trtq.calibrators.statistics import Histogram

"""The largest code of symmetric INT8."""
_POINTS_PER_OCTAVE = 512

Score = Callable[[NDArray[np.float64], NDArray[np.float64], float], float]
"""Of magnitudes, shape (n,), with how often each occurs, shape (n,), and an amax."""


def check_grid(method: str, num_candidates: int, smallest: float) -> None:
    """Refuses a grid of which nothing can be chosen.

    Raises:
        UsageError: It has less than two candidates, or does not end between 0 and 1.
    """
    if num_candidates < 2 or not 0 < smallest < 1:
        raise UsageError(
            f"{method} needs at least 2 candidates and 0 < smallest < 1, "
            f"got {num_candidates} and {smallest:g}"
        )


def search_grid(histogram: Histogram, num_candidates: int, smallest: float, score: Score) -> float:
    """Returns the amax with the highest score, the largest of equals; 0 for a dead tensor.

    The candidates go from the largest magnitude down to `smallest` times it, in equal ratios.
    """
    values, weights = histogram.points(_POINTS_PER_OCTAVE)
    if not values.size:
        return histogram.amax
    candidates = histogram.amax * np.geomspace(1.0, smallest, num_candidates)
    scores = [score(values, weights, float(candidate)) for candidate in candidates]
    return float(candidates[int(np.argmax(scores))])
