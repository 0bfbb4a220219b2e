"""INT8 weights against the definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.granularity import Granularity, PerChannel, PerTensor


def test_a_hand_worked_weight() -> None:
    weight = np.array([[1.27, -0.5, 0.005], [254, 3, -1]], np.float32)
    codes, scales = INT8.encode(weight, PerChannel(0), "float32")
    np.testing.assert_allclose(scales, [0.01, 2], rtol=1e-6)
    assert codes.tolist() == [[127, -50, 0], [127, 2, 0]]  # 0.5 and 1.5 steps go to the even neighbours


@pytest.mark.parametrize("granularity", [PerTensor(), *map(PerChannel, range(4))], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_value_is_within_half_a_step(granularity: Granularity, dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 6, 3, 4)).astype(np.float32)
    codes, scales = INT8.encode(weight, granularity, dtype)
    assert scales.shape == granularity.scales_shape(weight.shape)
    steps = granularity.spread(scales, weight.shape)
    np.testing.assert_array_equal(INT8.decode(codes, scales, granularity), codes * steps)
    assert (np.abs(codes * steps - weight) <= steps / 2 * 1.001).all()
    assert np.abs(codes).max() <= 127


def test_a_channel_of_zeros_has_a_positive_scale_and_zero_codes() -> None:
    codes, scales = INT8.encode(np.zeros((2, 3), np.float32), PerChannel(0), "float16")
    assert (scales > 0).all()
    assert not codes.any()


def test_a_large_weight_of_low_precision_is_worked_on_in_pieces() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 1000)).astype(ml_dtypes.bfloat16)
    codes, scales = INT8.encode(weight, PerChannel(1), "float32")
    wanted = np.abs(weight.astype(np.float32)).max(axis=0) / np.float32(127)
    np.testing.assert_array_equal(scales, wanted)
    np.testing.assert_array_equal(codes, np.rint(weight.astype(np.float32) / wanted))


def test_halves_get_the_scales_of_the_same_floats() -> None:
    halves = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float16)
    halves[0] = -0.0
    for axis in (0, 1):
        codes, scales = INT8.encode(halves, PerChannel(axis), "float16")
        other, wanted = INT8.encode(halves.astype(np.float32), PerChannel(axis), "float16")
        np.testing.assert_array_equal(scales, wanted)
        np.testing.assert_array_equal(codes, other)
