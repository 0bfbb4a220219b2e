"""Tests of what the channels of a tensor are like, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import random_array

from trtq.calibrators.channels import NUM_PARTS, ChannelHalves, ChannelLayout, ChannelStats, ChannelTally


def _seen(value: float, num_samples: int = 1) -> ChannelStats:
    return ChannelStats(np.array([value]), np.array([value]), np.array([value]), num_samples)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((3, 5, 4, 2), ChannelLayout(5, is_second=True), (0, 2, 3)),
        ((3, 5, 7), ChannelLayout(5, is_second=True), (0, 2)),
        ((3, 4, 5), ChannelLayout(5, is_second=False), (0, 1)),
        ((6, 5), ChannelLayout(5, is_second=False), (0,)),
    ],
)
def test_each_channel_has_its_own_extremes_and_mean(
    shape: tuple[int, ...], layout: ChannelLayout, axes: tuple[int, ...], dtype: type[np.floating]
) -> None:
    values = random_array(*shape).astype(dtype)
    seen = layout.measure(values, 3)
    np.testing.assert_array_equal(seen.minimum, values.min(axes))
    np.testing.assert_array_equal(seen.maximum, values.max(axes))
    np.testing.assert_allclose(seen.mean, values.mean(axes, dtype=np.float64), rtol=1e-6, atol=1e-7)
    assert seen.num_samples == 3


def test_statistics_merge_by_the_number_of_samples() -> None:
    one = ChannelStats(np.array([-1.0, 0]), np.array([2.0, 3]), np.array([1.0, 1.0]), 3)
    two = ChannelStats(np.array([-4.0, 1]), np.array([1.0, 9]), np.array([5.0, 1.0]), 1)
    both = one.merged(two)
    assert both.minimum.tolist() == [-4.0, 0.0]
    assert both.maximum.tolist() == [2.0, 9.0]
    assert both.mean.tolist() == [2.0, 1.0]
    assert both.num_samples == 4


def test_a_half_has_the_runs_of_its_own_feeds() -> None:
    tally = ChannelTally()
    for index in range(2 * NUM_PARTS + 1):
        tally.add(index, {"x": _seen(index)})
        tally.add(index, {"x": _seen(-index, 2)})
    found = tally.halves()
    assert found.even["x"].maximum.tolist() == [2 * NUM_PARTS]
    assert found.odd["x"].minimum.tolist() == [1 - 2 * NUM_PARTS]
    assert (found.even["x"].num_samples, found.odd["x"].num_samples) == (27, 24)
    assert found.whole["x"].num_samples == 51


def test_the_whole_has_what_both_halves_have() -> None:
    halves = ChannelHalves({"x": _seen(1), "y": _seen(2)}, {"x": _seen(3), "z": _seen(4)})
    assert [*halves.whole] == ["x"]
