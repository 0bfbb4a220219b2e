"""Which values share a scale, by example."""

from __future__ import annotations

import numpy as np
import pytest

from trtq.pipeline.formats.granularity import Granularity, PerBlock, PerChannel, PerTensor, PerToken

CASES = [
    (PerTensor(), (4, 6), (), {}),
    (PerChannel(0), (8, 3, 5, 5), (8,), {"axis": 0}),
    (PerChannel(1), (4, 6), (6,), {"axis": 1}),
    (PerBlock(0, 2), (4, 6), (2, 6), {"axis": 0, "block_size": 2}),
    (PerBlock(1, 3), (4, 6), (4, 2), {"axis": 1, "block_size": 3}),
    (PerToken(2), (2, 7, 64), (2, 7, 1), {"axis": 2, "block_size": 64}),
]


@pytest.mark.parametrize(("granularity", "shape", "scales", "attributes"), CASES, ids=str)
def test_the_shape_of_the_scales_and_what_onnx_is_told(
    granularity: Granularity, shape: tuple[int, ...], scales: tuple[int, ...], attributes: dict[str, int]
) -> None:
    assert granularity.scales_shape(shape) == scales
    assert granularity.attributes(shape) == attributes
    spread = granularity.spread(np.ones(scales), shape)
    assert np.broadcast_shapes(spread.shape, shape) == shape


@pytest.mark.parametrize(
    ("granularity", "wanted"),
    [
        (PerTensor(), [[5, 5, 5, 5], [5, 5, 5, 5]]),
        (PerChannel(0), [[0, 0, 0, 0], [1, 1, 1, 1]]),
        (PerChannel(1), [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (PerBlock(1, 2), [[0, 0, 1, 1], [2, 2, 3, 3]]),
        (PerToken(1), [[0, 0, 0, 0], [1, 1, 1, 1]]),
    ],
    ids=str,
)
def test_every_value_gets_its_own_scale(granularity: Granularity, wanted: list[list[int]]) -> None:
    shape = granularity.scales_shape((2, 4))
    scales = np.arange(int(np.prod(shape))).reshape(shape) if shape else np.array(5)
    assert np.broadcast_to(granularity.spread(scales, (2, 4)), (2, 4)).tolist() == wanted


def test_blocks_lie_along_the_axis() -> None:
    weight = np.arange(24).reshape(4, 6)
    assert PerBlock(0, 2).split(weight)[1, :, 5].tolist() == [17, 23]  # rows 2 and 3 of the last column
    assert PerBlock(1, 3).split(weight)[1, :, 0].tolist() == [3, 4, 5]  # the second half of the first row
