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
