"""NVFP4 against all the numbers of E2M1, and the search for the scales of blocks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from counted import counted

from trtq.calibrators import METHODS
from trtq.calibrators.estimate import estimate
from trtq.calibrators.statistics import Statistics, StatisticsSource
from trtq.pipeline.formats import FORMATS, FP8, LAYER_FORMATS, NVFP4, WEIGHT_FORMATS
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.rewrite.qparams import choose_block_qparams, quantize_array

E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_it_is_a_format_of_layers_and_of_no_weight_alone() -> None:
    assert LAYER_FORMATS["nvfp4"] is NVFP4
    assert not {"nvfp4"} & {*FORMATS, *WEIGHT_FORMATS}
    assert (NVFP4.largest, NVFP4.compute_capability, NVFP4.otherwise) == (6 * 448, (12, 0), FP8)


def test_codes_are_the_nearest_numbers_and_saturate() -> None:
    values = np.linspace(-9, 9, 3001)
    codes = NVFP4.codes_of(values, np.ones(()))
    assert codes.dtype == E2M1
    least = np.abs(np.abs(np.clip(values, -6, 6))[:, None] - NUMBERS).min(axis=1)
    np.testing.assert_array_equal(np.abs(NVFP4.levels_of(codes) - np.clip(values, -6, 6)), least)


def test_levels_are_what_a_value_can_be_in_units_of_the_scale_of_scales() -> None:
    scales = np.arange(0x7F, dtype=np.uint8).view(E4M3).astype(np.float64)
    np.testing.assert_array_equal(NVFP4.magnitudes, np.unique(NUMBERS[:, None] * scales))
    steps = np.random.default_rng(0).standard_normal(500) * 700
    nearest = np.abs(np.abs(steps)[:, None] - NVFP4.magnitudes).min(axis=1)
    rounded = NVFP4.round_steps(steps)
    np.testing.assert_allclose(np.abs(rounded - steps), nearest, rtol=1e-12)
    assert (np.sign(rounded) == np.sign(steps)).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_scale_of_a_block_errs_least_of_all_numbers_of_8_bits(axis: int, dtype: str) -> None:
    weight = np.random.default_rng(axis).standard_t(4, (64, 48)).astype(np.float32)
    qparams = choose_block_qparams(weight, Encoding(NVFP4, PerBlock(axis, 16)), dtype)
    assert (qparams.scale.dtype, qparams.scale.shape) == (E4M3, [(4, 48), (64, 3)][axis])
    assert qparams.shared is not None
    assert (qparams.shared.dtype, qparams.shared.shape) == (np.dtype(dtype), ())
    assert np.abs(weight).max() <= float(qparams.shared) * 6 * 448
    found = qparams.decode(quantize_array(weight, qparams))
    blocks, ours = (np.moveaxis(item, axis, -1).reshape(-1, 16) for item in (weight, found))
    least = np.full(len(blocks), np.inf)
    for scale in np.arange(1, 0x7F, dtype=np.uint8).view(E4M3).astype(np.float64) * float(qparams.shared):
        numbers = np.clip(blocks / scale, -6, 6).astype(E2M1).astype(np.float64) * scale
        least = np.minimum(least, np.square(numbers - blocks).sum(axis=1))
    np.testing.assert_allclose(np.square(ours - blocks).sum(axis=1), least, rtol=1e-5)


def test_blocks_of_zeros_and_of_very_small_numbers_stay_finite() -> None:
    weight = np.zeros((48, 2), np.float32)
    weight[16:32], weight[32:] = 1e-20, 5.0
    qparams = choose_block_qparams(weight, Encoding(NVFP4, PerBlock(0, 16)), "float32")
    found = qparams.decode(quantize_array(weight, qparams))
    assert (qparams.steps > 0).all()
    assert (found[:32] == 0).all()
    np.testing.assert_allclose(found[32:], 5, rtol=0.07)
    nothing = choose_block_qparams(weight[:16], Encoding(NVFP4, PerBlock(0, 16)), "float16")
    assert not nothing.decode(quantize_array(weight[:16], nothing)).any()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "minmax"])
def test_every_method_takes_the_largest_value_since_a_clip_makes_no_step_finer(name: str) -> None:
    histogram = counted(np.random.default_rng(0).standard_t(3, 20000).astype(np.float32))
    statistics = Statistics({"x": histogram}, {}, {}, 1, StatisticsSource("", "", ""))
    plain = estimate(statistics, METHODS[name]()).amax("x")
    ranges = estimate(statistics, METHODS[name](), levels={"x": NVFP4})
    assert ranges.amax("x") == np.float32(histogram.amax) > plain
    assert ranges.formats == {"x": "nvfp4"}
