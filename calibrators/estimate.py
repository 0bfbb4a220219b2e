"""From what was seen of each tensor to its range."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators.ranges import Range, Ranges

if TYPE_CHECKING:
    from trtq.calibrators import Method
    from trtq.calibrators.batches import Batches
    from trtq.calibrators.observe import Observation
    from trtq.calibrators.statistics import Histogram

_FP16_LIMIT = 65504 / 2
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def estimate(observation: Observation, method: Method, batches: Batches, model_sha256: str) -> Ranges:
    """Returns the ranges of the observed tensors.

    Args:
        observation: What one pass over `batches` saw.
        method: Maps a histogram to an amax.
        batches: Where the data came from.
        model_sha256: Digest of the model that was observed.
    """
    tensors = {
        name: Range(
            _amax(method, histogram),
            histogram.minimum if histogram.total else 0.0,
            histogram.maximum if histogram.total else 0.0,
        )
        for name, histogram in observation.histograms.items()
    }
    beyond = {
        name: min(magnitude, _LARGEST_FLOAT32)
        for name, magnitude in observation.magnitudes.items()
        if magnitude > _FP16_LIMIT
    }
    return Ranges(
        tensors,
        describe(method),
        model_sha256,
        batches.origin,
        observation.num_samples,
        batches.is_random,
        observation.shapes,
        beyond,
    )


def describe(method: Method) -> str:
    """Returns a method with its parameters: `percentile(percentile=99.99)`."""
    parameters: dict[str, float] = (
        asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    )
    inside = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"{type(method).__name__.lower()}({inside})"


def _amax(method: Method, histogram: Histogram) -> float:
    """Returns the amax as a float32 that is positive unless the tensor is dead."""
    if histogram.amax == 0:
        return 0.0
    smallest = float(np.finfo(np.float32).tiny)
    return float(np.float32(max(method.amax(histogram), smallest)))
