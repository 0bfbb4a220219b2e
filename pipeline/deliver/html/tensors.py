"""From the statistics of a calibration to what the page shows of each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from trtq.calibrators import METHODS, Method, name_method
from trtq.calibrators.estimate import describe, find_amax
from trtq.calibrators.grid import sum_rounded
from trtq.calibrators.mse import find_squared_errors
from trtq.pipeline.deliver.html.page_data import Clip, PageData, TensorSummary
from trtq.pipeline.formats import INT8, LAYER_FORMATS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.sums import sum_products
from trtq.workers import Threads

if TYPE_CHECKING:
    from trtq.calibrators.ranges import Ranges
    from trtq.calibrators.statistics import Histogram, Statistics

_MOST_BINS = 128
_POINTS_PER_OCTAVE = 512


def summarize_tensors(statistics: Statistics, ranges: Ranges, own: Method) -> PageData:
    """Returns what the page shows of statistics, for which no data is read again.

    Args:
        statistics: Of the calibration.
        ranges: Those that the model is quantized with.
        own: The method that found them; the others take their default parameters.
    """
    asked = name_method(own)
    methods = {**{name: method() for name, method in METHODS.items()}, asked: own}
    named = [(name, item) for name, item in statistics.histograms.items() if name in ranges.tensors]
    # A method is numpy, which lets go of the GIL in what takes long.
    tensors = Threads().map(lambda one: _seen(*one, ranges, methods), named)
    return PageData(tuple(tensors), {name: describe(method) for name, method in methods.items()}, asked)


def _seen(name: str, histogram: Histogram, ranges: Ranges, methods: Mapping[str, Method]) -> TensorSummary:
    counts, width = histogram.exact(_MOST_BINS)
    form = LAYER_FORMATS[ranges.formats.get(name, INT8.name)]
    clip = _clipping(histogram, form)
    has_values = bool(histogram.total)
    return TensorSummary(
        name=name,
        minimum=histogram.minimum if has_values else 0.0,
        maximum=histogram.maximum if has_values else 0.0,
        total=histogram.total,
        zeros=histogram.zeros,
        counts=tuple(round(count) for count in counts) if histogram.amax else (),
        width=width,
        used=clip(ranges.amax(name)),
        methods={key: clip(find_amax(method, histogram, form)) for key, method in methods.items()},
    )


def _clipping(histogram: Histogram, form: CodeFormat) -> Callable[[float], Clip]:
    """Returns what tells of an amax what it costs."""
    values, weights = histogram.points(_POINTS_PER_OCTAVE)
    signal, total = sum_products(weights, values**2), histogram.total

    def clip(amax: float) -> Clip:
        if not values.size or amax <= 0:
            return Clip(amax, 0.0, None)
        beyond = float(weights[values > amax].sum()) / total
        if not form.clips:  # each block has a scale of its own, and a histogram tells of none
            return Clip(amax, beyond, None)
        (noise,) = find_squared_errors(sum_rounded(values, weights, np.array([amax]), form))
        return Clip(amax, beyond, 10 * math.log10(signal / noise) if noise > 0 else None)

    return clip
