"""Outputs of one number a sample, of which a few large ones must not hide the others.

The cosine of one number with another is 1 or -1, so that only the sums over all samples tell how near they
are, and these are made of the largest. So what nine in ten samples show is looked at too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtq.pipeline.judge.entries import SCORE_NOISE

_SHARE = 0.9
"""Of the samples those that are nearest the middle one."""
_LEAST_SAMPLES = 20


def find_quiet_change(references: Sequence[float], errors: Sequence[float]) -> tuple[float, float] | None:
    """Returns the squares of what changes over nine in ten samples, and of their errors; None: none tells.

    Scores from 0 to 1 that are off by little are near, and of few samples or equal ones nothing is known.

    Args:
        references: One number for each sample.
        errors: The error of each.
    """
    if len(references) < _LEAST_SAMPLES:
        return None
    values, noise = np.array(references), np.array(errors)
    nearest = np.argsort(np.abs(values - np.median(values)), kind="stable")[: int(_SHARE * len(values))]
    values, noise = values[nearest], noise[nearest]
    change, squares = float(np.square(values - values.mean()).sum()), float(np.square(noise).sum())
    is_near = bool(values.min() >= 0 and values.max() <= 1 and squares <= SCORE_NOISE**2 * len(values))
    return None if is_near or not change else (change, squares)
