"""From what was seen of each tensor to its range."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators import list_parameters, name_method
from trtq.calibrators.levels import INT8_LEVELS
from trtq.calibrators.ranges import FP16_LEAST, FP16_LIMIT, Range, Ranges
from trtq.workers import Threads

if TYPE_CHECKING:
    from trtq.calibrators import Method
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram, Statistics
    from trtq.models.spec import Activations

_ALL_INT8: Mapping[str, Levels] = MappingProxyType({})
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def estimate(
    statistics: Statistics,
    method: Method,
    tensors: Collection[str] | None = None,
    activations: Activations = "symmetric",
    levels: Mapping[str, Levels] = _ALL_INT8,
) -> Ranges:
    """Returns the ranges of the observed tensors.

    Args:
        statistics: What was seen of them.
        method: Maps a histogram to an amax.
        tensors: Those that are wanted; None: all.
        activations: How they will be quantized.
        levels: Those of the number format that each tensor will be held in; of those not named, INT8's.
    """
    histograms = {
        name: histogram
        for name, histogram in statistics.histograms.items()
        if tensors is None or name in tensors
    }
    # A method is numpy, which lets go of the GIL in what takes long.
    forms = {name: levels.get(name, INT8_LEVELS) for name in histograms}
    amaxes = Threads().map(lambda name: _amax(method, histograms[name], forms[name]), histograms)
    ranges = {
        name: Range(
            amax,
            histogram.minimum if histogram.total else 0.0,
            histogram.maximum if histogram.total else 0.0,
        )
        for (name, histogram), amax in zip(histograms.items(), amaxes, strict=True)
    }
    beyond = {
        name: min(magnitude, _LARGEST_FLOAT32)
        for name, magnitude in sorted(statistics.magnitudes.items())
        if magnitude > FP16_LIMIT or 0 < magnitude < FP16_LEAST
    }
    source = statistics.source
    return Ranges(
        ranges,
        describe(method),
        source.model_sha256,
        source.data,
        statistics.num_samples,
        source.is_random,
        statistics.shapes,
        beyond,
        activations=activations,
        formats={name: item.name for name, item in forms.items() if item.name != INT8_LEVELS.name},
    )


def describe(method: Method) -> str:
    """Returns a method with its parameters: `percentile(percentile=99.99)`."""
    inside = ", ".join(f"{name}={getattr(method, name)}" for name in list_parameters(type(method)))
    return f"{name_method(method)}({inside})"


def _amax(method: Method, histogram: Histogram, levels: Levels) -> float:
    """Returns the amax as a float32 that is positive unless the tensor is dead."""
    if histogram.amax == 0:
        return 0.0
    smallest = float(np.finfo(np.float32).tiny)
    return float(np.float32(max(method.amax(histogram, levels), smallest)))
