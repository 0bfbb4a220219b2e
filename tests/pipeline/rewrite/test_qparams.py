"""Tests of scales, zero points and codes: by hand, by a slow reference, and in every dtype."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_encodings import int8_along
from numpy.typing import NDArray

from trtq.models import tensors as module
from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.rewrite.qparams import (
    QParams,
    choose_activation_qparams,
    choose_asymmetric_qparams,
    choose_weight_qparams,
    choose_weight_qparams_mse,
    quantize_array,
    raise_scales,
)

DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.0, 0), (0.24, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (1.25, 2), (1.75, 4), (-0.25, 0),
        (-0.75, -2), (-1.25, -2), (63.2, 126), (63.5, 127), (64.0, 127), (1e30, 127), (-63.5, -127),
        (-64.0, -127), (-1e30, -127),
    ],
)  # fmt: skip
def test_codes_by_hand_with_the_scale_one_half(value: float, code: int) -> None:
    found = quantize_array(np.array([value], np.float32), QParams(np.array(0.5, np.float32)))
    assert found.dtype == np.int8
    assert found.tolist() == [code]


def test_codes_of_channels_by_hand() -> None:
    weight = np.array([[1.1, -2.0, 0.5], [127.0, 63.5, -0.5], [0.0, 0.0, 0.0]], np.float32)
    qparams = choose_weight_qparams(weight, int8_along(0), "float32")
    assert qparams.encoding == int8_along(0)
    assert qparams.scale[1] == 1.0
    assert quantize_array(weight, qparams).tolist() == [[70, -127, 32], [127, 64, 0], [0, 0, 0]]
    assert quantize_array(weight.T, QParams(qparams.scale, int8_along(1))).T.tolist() == [
        [70, -127, 32],
        [127, 64, 0],
        [0, 0, 0],
    ]


def _slow(values: NDArray[Any], scale: float) -> list[int]:
    """The definition, number by number: Python's round is half to even."""
    return [max(-127, min(127, round(float(value) / scale))) for value in values.reshape(-1)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    axis=st.sampled_from([None, 0, 1, 2]),
    size=st.integers(-6, 6),
    piece=st.sampled_from([1, 40, 1 << 20]),
)
def test_codes_are_those_of_a_slow_reference(seed: int, axis: int | None, size: int, piece: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((3, 4, 5)) * 10.0**size).astype(np.float32)
    qparams = choose_weight_qparams(weight, int8_along(axis), "float32")
    with patch.object(module, "PIECE", piece):
        codes = quantize_array(weight, qparams)
    assert qparams.scale.shape == (() if axis is None else (weight.shape[axis],))
    if axis is None:
        assert codes.reshape(-1).tolist() == _slow(weight, float(qparams.scale))
        return
    for channel in range(weight.shape[axis]):
        found = codes.take(channel, axis).reshape(-1).tolist()
        assert found == _slow(np.asarray(weight.take(channel, axis)), float(qparams.scale[channel]))
        assert max(map(abs, found)) == 127


@pytest.mark.parametrize(
    ("ends", "scale", "zero"),
    [
        ((0.0, 25.5), 0.1, 0),
        ((-25.5, 0.0), 0.1, 255),
        ((-12.8, 12.7), 0.1, 128),
        ((-0.375, 5.0), 5.375 / 255, 18),  # 17.79: HardSwish
    ],
)
def test_zero_points_by_hand(ends: tuple[float, float], scale: float, zero: int) -> None:
    found = choose_asymmetric_qparams(ends, "float32")
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert found.zero == zero
    assert found.zero_point.dtype == np.uint8
    assert (found.zero_point.shape, int(found.zero_point)) == ((), zero)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e8), st.floats(0, 1e8), st.sampled_from(DTYPES))
def test_asymmetric_codes_reach_both_ends(below: float, above: float, dtype: str) -> None:
    found = choose_asymmetric_qparams((-below, above), dtype)
    scale = float(found.scale)
    assert 0 < scale < math.inf
    assert 0 <= found.zero <= 255
    assert (-found.zero - 0.5) * scale <= -below * (1 - 1e-9)
    assert (255 - found.zero + 0.5) * scale >= above * (1 - 1e-9)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e8), st.sampled_from(DTYPES))
def test_scales_are_positive_finite_and_never_clip(amax: float, dtype: str) -> None:
    scale = choose_activation_qparams(amax, dtype).scale
    assert scale.shape == ()
    assert 0 < float(scale) < math.inf
    assert float(scale) * 127 >= amax * (1 - 1e-15)
    if float(scale) > 2.0**-14:  # where FP16 has all its digits: no larger than it has to be
        assert float(scale) * 127 <= amax * (1 + 2.0**-7)


@pytest.mark.parametrize(
    ("amax", "dtype", "wanted"),
    [
        (127.0, "float32", 1.0),
        (1.0, "float32", float(np.nextafter(np.float32(1 / 127), np.float32(1)))),
        (127.0, "float16", 1.0),
        (127.01, "float16", 1 + 2.0**-10),
        (0.0, "float16", 2.0**-24),
        (127.0 * 2.0**-24 * 1.5, "float16", 2.0**-23),
        (127.01, "bfloat16", 1 + 2.0**-7),
        (1e-44, "float32", 2.0**-126),
        (0.0, "bfloat16", 2.0**-126),
        (127.0 * 65504, "float16", 65504.0),
    ],
)
def test_scales_by_hand(amax: float, dtype: str, wanted: float) -> None:
    scale = choose_activation_qparams(amax, dtype).scale
    assert scale.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert float(scale) == wanted


@pytest.mark.parametrize("wanted", [1e6, 2.0**-25])
def test_a_scale_beyond_fp16_stays_fp32(wanted: float) -> None:
    scale = choose_activation_qparams(127 * wanted, "float16").scale
    assert scale.dtype == np.float32
    assert float(scale) == wanted


def test_a_scale_that_vanishes_beside_others_is_raised() -> None:
    weight = np.array([[127.0, 1e-9]], np.float32)
    scale = choose_weight_qparams(weight, int8_along(1), "float16").scale
    assert scale.dtype == np.float16
    assert scale.tolist() == [1.0, 2.0**-24]


@pytest.mark.parametrize(("encoding", "wanted"), [(int8_along(1), [0.5, 1.0]), (Encoding(INT8), 1.0)])
def test_scales_are_raised_to_the_least(encoding: Encoding, wanted: Any) -> None:
    weight = np.array([[12.7, 127.0]] * 3, np.float32)
    raised = raise_scales(choose_weight_qparams(weight, encoding, "float32"), np.array([0.5, 0.25]))
    assert raised.scale.dtype == np.float32
    assert raised.scale.tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_channels_of_zeros_have_positive_scales(dtype: str, axis: int | None) -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[0, 1] = 2.0
    qparams = choose_weight_qparams(weight, int8_along(axis), dtype)
    assert (qparams.scale.astype(np.float64) > 0).all()
    assert np.isfinite(qparams.scale.astype(np.float64)).all()
    codes = quantize_array(weight, qparams)
    assert codes[0, 1] == (127 if dtype == "float32" else codes[0, 1])
    assert np.count_nonzero(codes) == 1


def test_an_empty_weight_has_a_scale() -> None:
    assert float(choose_weight_qparams(np.zeros((0, 4), np.float32), int8_along(None), "float32").scale) > 0


def test_zero_points_have_the_shape_of_the_scales() -> None:
    qparams = QParams(np.ones(5, np.float32), int8_along(0))
    assert qparams.zero_point.dtype == np.int8
    assert qparams.zero_point.shape == (5,)
    assert not qparams.zero_point.any()


@pytest.mark.parametrize("shape", [(37, 16), (37, 3, 3, 3), (37, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_clips_are_the_same_when_a_large_weight_is_looked_at_in_pieces(
    shape: tuple[int, ...], dtype: str
) -> None:
    weight = np.random.default_rng(1).standard_t(3, shape).astype(np.float32)
    whole = choose_weight_qparams_mse(weight, int8_along(0), dtype)
    with (
        patch.object(module, "PIECE", 5 * math.prod(shape[1:])),
        patch.object(type(INT8), "codes_of", autospec=True, side_effect=type(INT8).codes_of) as codes_of,
    ):
        pieces = choose_weight_qparams_mse(weight, int8_along(0), dtype)
    assert max(len(call.args[1]) for call in codes_of.call_args_list) == 5
    np.testing.assert_array_equal(pieces.scale, whole.scale)
    assert pieces.scale.dtype == whole.scale.dtype
