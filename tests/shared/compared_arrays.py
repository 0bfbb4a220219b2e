"""The comparison of two arrays, fed in parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from trtq.pipeline.judge.change import OutputChange, measure_change
from trtq.pipeline.judge.metrics import OutputMetrics, measure_batch
from trtq.records import OutputComparison


def compare_arrays(
    candidate: ArrayLike, reference: ArrayLike, *, split: int | None = None
) -> OutputComparison:
    """Compares float32 arrays with a leading sample axis, `split` samples at a time."""
    ours, theirs = np.asarray(candidate), np.asarray(reference)
    ours, theirs = (a.astype(np.float32) if a.dtype == np.float64 else a for a in (ours, theirs))
    metrics, change, answers = OutputMetrics(), OutputChange(), OutputChange()
    size = split or len(theirs)
    for start in range(0, len(theirs), size):
        part = slice(start, start + size)
        metrics.add(measure_batch(ours[part], theirs[part], len(theirs[part])))
        change.add(measure_change(theirs[part], len(theirs[part])))
        answers.add(measure_change(ours[part], len(theirs[part])))
    return metrics.result("int8", "fp32", "y", change=change, answers=answers)
