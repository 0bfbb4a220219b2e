"""FP8 weights against all the numbers of the format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trtq.pipeline.formats import FP8
from trtq.pipeline.formats.granularity import Granularity, PerChannel, PerTensor

NUMBERS = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def test_a_hand_worked_channel() -> None:
    weight = np.array([[448, -224, 17, 19, 0.0009], [0.5, 0, 0, 0, -1]], np.float32)
    codes, scales = FP8.encode(weight, PerChannel(0), "float32")
    assert scales.tolist() == [1, pytest.approx(1 / 448)]
    assert codes[0].astype(np.float32).tolist() == [448, -224, 16, 20, 0]  # to even
    assert codes[1].astype(np.float32).tolist() == [224, 0, 0, 0, -448]


@pytest.mark.parametrize("granularity", [*map(PerChannel, range(3)), PerTensor()], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_codes_are_the_nearest_numbers_of_the_format(granularity: Granularity, dtype: str) -> None:
    weight = np.random.default_rng(0).standard_t(3, (8, 6, 10)).astype(np.float32)
    codes, scales = FP8.encode(weight, granularity, dtype)
    others = tuple(index for index in range(3) if granularity != PerChannel(index))
    amax = np.abs(weight).max(axis=others)
    assert scales.shape == amax.shape
    assert (scales >= amax / 448 * 0.9999).all()
    assert (scales <= amax / 448 * 1.01).all()
    scaled = weight / granularity.spread(scales, weight.shape)
    least = np.nanmin(np.abs(scaled[..., None] - NUMBERS), axis=-1)
    np.testing.assert_array_equal(np.abs(codes.astype(np.float32) - scaled), least)


def test_zeros_and_the_largest_stay_finite() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1], weight[2] = 3e38, 1e6
    for dtype in ("float32", "float16"):
        codes, scales = FP8.encode(weight, PerChannel(0), dtype)
        assert np.isfinite(codes.astype(np.float32)).all()
        assert (scales > 0).all()


def test_values_are_rounded_to_the_nearest_level() -> None:
    steps = np.random.default_rng(1).normal(size=20_000) * 200
    wanted = np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(FP8.round_steps(steps), wanted)
    assert FP8.magnitudes.tolist() == sorted({*np.abs(NUMBERS[np.isfinite(NUMBERS)]).tolist()})


def test_the_other_level_lies_on_the_other_side() -> None:
    steps = np.array([17.0, 16.5, -17.0, 0.0004, -0.0004, 450.0, 448.0, 0.0, -2.0])
    nearest = FP8.round_steps(steps)
    wanted = [18.0, 18.0, -18.0, 2**-9, -(2**-9), 448.0, 448.0, 0.0, -2.0]
    assert FP8.round_away(steps, nearest).tolist() == wanted


@pytest.mark.parametrize("seed", range(3))
def test_every_value_lies_between_its_two_levels(seed: int) -> None:
    steps = np.clip(np.random.default_rng(seed).standard_t(2, 5000) * 100, -448, 448)
    nearest = FP8.round_steps(steps)
    other = FP8.round_away(steps, nearest)
    assert ((np.minimum(nearest, other) <= steps) & (steps <= np.maximum(nearest, other))).all()
    assert (np.abs(steps - nearest) <= np.abs(steps - other)).all()
