"""Tests of the step from what was seen of each tensor to its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from counted import counted

from trtq.calibrators import METHODS, Method
from trtq.calibrators.cosine import Cosine
from trtq.calibrators.entropy import Entropy
from trtq.calibrators.estimate import describe, estimate
from trtq.calibrators.levels import INT8_LEVELS, Levels
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.mse import Mse
from trtq.calibrators.percentile import Percentile
from trtq.calibrators.ranges import Range, Ranges, Shapes, ranges_to_json
from trtq.calibrators.statistics import Histogram, Statistics, StatisticsSource

SOURCE = StatisticsSource("abc", "calib.npz", "digest", is_random=True)
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Constant:
    """A method without parameters that answers one number."""

    value: ClassVar[float] = 1 / 3

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        return self.value


class Zero(Constant):
    value: ClassVar[float] = 0.0


def _estimate(
    values: Mapping[str, object], method: Method, magnitudes: Mapping[str, float] | None = None
) -> Ranges:
    histograms = {name: counted(np.asarray(array, np.float32)) for name, array in values.items()}
    inputs: dict[str, dict[tuple[int, ...], int]] = {"x": {(1,): 1, (2,): 2, (3,): 1}}
    return estimate(Statistics(histograms, magnitudes or {}, inputs, 8, SOURCE), method)


def test_the_provenance_is_kept() -> None:
    ranges = _estimate({}, Percentile(99.9))
    assert ranges == Ranges(
        {}, "percentile(percentile=99.9)", "abc", "calib.npz", 8, True, {"x": Shapes((1,), (2,), (3,))}
    )


def test_a_range_has_the_amax_of_the_method_and_the_exact_extremes() -> None:
    ranges = _estimate({"a": [-2.5, 1.0], "b": [0.0, 4.0]}, MinMax())
    assert ranges.tensors == {"a": Range(2.5, -2.5, 1.0), "b": Range(4.0, 0.0, 4.0)}


def test_the_amax_is_a_float32() -> None:
    found = _estimate({"a": [1.0]}, Constant()).tensors["a"].amax
    assert found == float(np.float32(1 / 3)) != 1 / 3


def test_a_dead_tensor_has_amax_0_whatever_the_method_says() -> None:
    assert _estimate({"a": [0.0, -0.0]}, Constant()).tensors["a"] == Range(0.0, 0.0, 0.0)


def test_a_tensor_without_any_value_is_dead() -> None:
    assert _estimate({"a": []}, MinMax()).tensors["a"] == Range(0.0, 0.0, 0.0)


def test_the_amax_of_a_living_tensor_is_positive_whatever_the_method_says() -> None:
    assert _estimate({"a": [1e-44]}, Zero()).tensors["a"].amax == float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("value", [1e-44, 1e-30, 1e30, LARGEST])
def test_the_smallest_and_largest_numbers_have_a_range(name: str, value: float) -> None:
    ranges = _estimate({"a": [value, -value]}, METHODS[name]())
    assert 0 < ranges.tensors["a"].amax <= LARGEST
    assert ranges_to_json(ranges)


def test_magnitudes_near_the_end_of_fp16_are_kept() -> None:
    magnitudes = {"a": 32752.0, "a2": 32752.25, "b": 32753.0, "c": 1e6, "d": float("inf")}
    assert _estimate({}, MinMax(), magnitudes).beyond_fp16 == {
        "a2": 32752.25,
        "b": 32753.0,
        "c": 1e6,
        "d": LARGEST,
    }


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (MinMax(), "minmax()"),
        (Percentile(), "percentile(percentile=99.99)"),
        (Percentile(99.999999), "percentile(percentile=99.999999)"),
        (Entropy(), "entropy(num_bins=2048, num_levels=128, max_clipped=0.0001)"),
        (Mse(), "mse(num_candidates=120, smallest=0.02)"),
        (Cosine(), "cosine(num_candidates=120, smallest=0.02)"),
        (Constant(), "constant()"),
    ],
)
def test_a_method_is_described_with_its_parameters(method: Method, text: str) -> None:
    assert describe(method) == text


def test_every_method_is_named_for_its_class() -> None:
    assert [describe(method()).partition("(")[0] for method in METHODS.values()] == list(METHODS)
