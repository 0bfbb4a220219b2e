"""Tests of methods that choose a range for a format whose levels are not equally far apart."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from counted import counted
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.cosine import Cosine, find_cosines
from trtq.calibrators.cross_entropy import CrossEntropy, cross_entropy
from trtq.calibrators.entropy import Entropy, find_edges, measure_divergences
from trtq.calibrators.estimate import estimate
from trtq.calibrators.grid import RoundedSums, sum_rounded
from trtq.calibrators.levels import INT8_LEVELS, are_even
from trtq.calibrators.minmax import MinMax, RoomyMinMax
from trtq.calibrators.mse import Mse, find_squared_errors
from trtq.calibrators.statistics import Statistics, StatisticsSource
from trtq.pipeline.formats import FP8, INT8


def _sum(values: NDArray[np.float64], amax: float) -> RoundedSums:
    return sum_rounded(np.sort(values), np.ones(values.size), np.array([amax]), FP8)


def _in_fp8(values: NDArray[np.float64], amax: float) -> NDArray[np.float64]:
    """Quantizes as the engine will, by ml_dtypes."""
    steps = np.clip(values * 448 / amax, -448, 448)
    return steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * amax / 448


def test_the_levels_of_int8_are_those_of_its_format() -> None:
    np.testing.assert_array_equal(INT8_LEVELS.magnitudes, INT8.magnitudes)
    steps = np.linspace(-140, 140, 3001)
    np.testing.assert_array_equal(INT8_LEVELS.round_steps(steps), INT8.round_steps(steps))
    assert (INT8_LEVELS.name, INT8_LEVELS.largest) == (INT8.name, INT8.largest)


@pytest.mark.parametrize("amax", [0.4, 1.0, 3.3])
def test_errors_and_cosines_in_fp8_are_those_of_brute_force(amax: float) -> None:
    values = np.abs(np.random.default_rng(0).standard_t(4, 500))
    copies = _in_fp8(values, amax)
    sums = _sum(values, amax)
    assert find_squared_errors(sums)[0] == pytest.approx(np.square(values - copies).sum(), rel=1e-9)
    cosine = values @ copies / np.linalg.norm(values) / np.linalg.norm(copies)
    assert find_cosines(sums)[0] == pytest.approx(cosine, rel=1e-12)


def test_the_loss_of_a_softmax_in_fp8_is_that_of_brute_force() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 7)) * 4
    wanted = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    copies = _in_fp8(rows, 5.0)
    logs = copies - np.log(np.exp(copies).sum(1, keepdims=True))
    assert cross_entropy(rows, wanted, 5.0, FP8) == pytest.approx(-(wanted * logs).sum(1).mean())
    assert CrossEntropy().amax(rows, FP8) > 0


@pytest.mark.parametrize("method", [Mse(), Cosine()])
def test_a_grid_method_takes_the_clip_that_is_best_in_the_format(method: Mse | Cosine) -> None:
    values = np.random.default_rng(2).laplace(size=20_000).astype(np.float32).astype(np.float64)
    grid = np.abs(values).max() * np.geomspace(1, 0.02, 120)

    def loss(amax: float) -> float:
        copies = _in_fp8(values, amax)
        if isinstance(method, Mse):
            return float(np.square(values - copies).sum())
        return -float(values @ copies / np.linalg.norm(copies))

    best = min(map(float, grid), key=loss)
    assert method.amax(counted(values.astype(np.float32)), FP8) == pytest.approx(best, rel=1e-9)


def test_the_levels_of_fp8_meet_in_the_middle() -> None:
    edges = find_edges(FP8, 128) * 448
    assert edges[:3].tolist() == pytest.approx([0, 2**-10, 3 * 2**-10])
    assert edges[-3:].tolist() == pytest.approx([400, 432, 448])
    assert find_edges(INT8, 4).tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_the_divergence_of_unequal_levels_by_hand() -> None:
    counts = np.array([1.0, 3.0, 2.0, 2.0])
    edges = np.array([0.0, 0.25, 0.5, 1.0])  # the last two bins share a level, which errs in neither
    assert measure_divergences(counts, edges, 4).tolist() == pytest.approx([0.0])
    edges = np.array([0.0, 0.5, 0.75, 1.0])  # the first two do: 2 and 2 stand for 1 and 3
    wanted = (1 * math.log(1 / 2) + 3 * math.log(3 / 2)) / 8
    assert measure_divergences(counts, edges, 4).tolist() == pytest.approx([wanted])


def test_entropy_clips_no_normal_values_in_fp8() -> None:
    values = np.random.default_rng(3).normal(size=100_000)
    histogram = counted(values.astype(np.float32))
    assert Entropy().amax(histogram, FP8) > 0.9 * histogram.amax  # the levels there are far apart anyway


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_gives_a_range_for_fp8(name: str) -> None:
    values = np.random.default_rng(4).normal(size=10_000).astype(np.float32)
    amax = METHODS[name]().amax(counted(values), FP8)
    assert 0 < amax <= np.abs(values).max()


def test_ranges_say_for_which_formats_they_were_chosen() -> None:
    values = np.random.default_rng(5).normal(size=5000).astype(np.float32)
    histograms = {"a": counted(values), "b": counted(values)}
    statistics = Statistics(histograms, {}, {}, 8, StatisticsSource("abc", "calib.npz", "digest"))
    found = estimate(statistics, Mse(), levels={"b": FP8})
    assert found.formats == {"b": "fp8"}
    assert found.tensors["a"].amax == pytest.approx(Mse().amax(histograms["a"]))
    assert found.tensors["b"].amax == pytest.approx(Mse().amax(histograms["b"], FP8))
    assert estimate(statistics, MinMax()).formats == {}


def test_headroom_of_a_power_of_two_costs_fp8_nothing() -> None:
    values = np.abs(np.random.default_rng(6).normal(size=2000)) + 0.01
    amax = float(values.max())
    histogram = counted(values.astype(np.float32))
    roomy = RoomyMinMax().amax(histogram, FP8)
    assert roomy == 2 * histogram.amax
    found = [find_squared_errors(_sum(values, item))[0] for item in (amax, 2 * amax)]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert RoomyMinMax().amax(counted(np.array([3e38], np.float32)), FP8) == float(np.finfo(np.float32).max)
    assert are_even(INT8)
    assert not are_even(FP8)
