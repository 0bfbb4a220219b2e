"""Tests of what is shown of statistics, against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.estimate import estimate
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.percentile import Percentile
from trtq.calibrators.statistics import Histogram, Statistics, find_bins
from trtq.pipeline.deliver.html.page_data import TensorSummary
from trtq.pipeline.deliver.html.tensors import summarize_tensors
from trtq.pipeline.formats import NVFP4


def histogram_of(values: NDArray[np.float32]) -> Histogram:
    bins, counts = np.unique(find_bins(values), return_counts=True)
    return Histogram(bins, counts.astype(np.int64), float(values.min()), float(values.max()))


def seen_with(values: NDArray[np.float32], method: Percentile | MinMax) -> TensorSummary:
    statistics = Statistics({"x": histogram_of(values)}, {}, {}, 1)
    (tensor,) = summarize_tensors(statistics, estimate(statistics, method), method).tensors
    return tensor


@pytest.fixture
def values() -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    found = (rng.standard_normal(20_000) * np.exp(rng.standard_normal(20_000))).astype(np.float32)
    found[:500] = 0
    return found


def sqnr_of(values: NDArray[np.float32], amax: float) -> float:
    exact = values.astype(np.float64)
    error = exact - np.clip(np.rint(exact / (amax / 127)), -127, 127) * (amax / 127)
    return float(10 * np.log10((exact**2).sum() / (error**2).sum()))


def test_ratios_and_shares_are_those_of_the_values(values: NDArray[np.float32]) -> None:
    tensor = seen_with(values, Percentile(99.0))
    assert tensor.methods.keys() == METHODS.keys()
    for clip in (tensor.used, *tensor.methods.values()):
        assert clip.sqnr_db == pytest.approx(sqnr_of(values, clip.amax), abs=0.05)
        assert clip.clipped == pytest.approx(float((np.abs(values) > clip.amax).mean()), abs=2e-4)


def test_of_blocks_with_own_scales_a_histogram_tells_no_ratio_and_no_method_clips(
    values: NDArray[np.float32],
) -> None:
    statistics = Statistics({"x": histogram_of(values)}, {}, {}, 1)
    ranges = estimate(statistics, Percentile(99.0), levels={"x": NVFP4})
    (tensor,) = summarize_tensors(statistics, ranges, Percentile(99.0)).tensors
    largest = np.abs(values).max()
    for clip in (tensor.used, *tensor.methods.values()):
        assert (clip.amax, clip.clipped, clip.sqnr_db) == (largest, 0.0, None)


def test_the_method_that_was_used_has_its_own_parameters(values: NDArray[np.float32]) -> None:
    tensor = seen_with(values, Percentile(99.0))
    assert tensor.methods["percentile"].amax == pytest.approx(tensor.used.amax, rel=1e-6)
    assert tensor.used.amax == pytest.approx(float(np.quantile(np.abs(values), 0.99)), rel=0.01)


def test_counts_are_of_all_magnitudes_but_zeros(values: NDArray[np.float32]) -> None:
    tensor = seen_with(values, MinMax())
    edges = np.arange(len(tensor.counts) + 1) * tensor.width
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    assert list(tensor.counts) == np.histogram(magnitudes, edges)[0].tolist()
    assert 64 < len(tensor.counts) <= 128
    assert (tensor.total, tensor.zeros) == (20_000, 500)
    assert (tensor.minimum, tensor.maximum) == (values.min(), values.max())


def test_methods_are_described_with_their_parameters(values: NDArray[np.float32]) -> None:
    statistics = Statistics({"x": histogram_of(values)}, {}, {}, 1)
    methods = summarize_tensors(statistics, estimate(statistics, MinMax()), Percentile(97.5)).methods
    assert methods["percentile"] == "percentile(percentile=97.5)"
    assert methods["minmax"] == "minmax()"


@pytest.mark.parametrize("histogram", [Histogram(), histogram_of(np.zeros(8, np.float32))])
def test_a_tensor_without_values_has_no_ratio(histogram: Histogram) -> None:
    statistics = Statistics({"x": histogram}, {}, {}, 1)
    (tensor,) = summarize_tensors(statistics, estimate(statistics, MinMax()), MinMax()).tensors
    assert (tensor.minimum, tensor.maximum, sum(tensor.counts)) == (0.0, 0.0, 0)
    assert tensor.used.amax == 1.0
    assert tensor.used.sqnr_db is None
