"""Float formats, and scales that are rounded up to them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trtq.pipeline.formats import BF16, FP16, FP32, WEIGHT_FORMATS
from trtq.pipeline.formats.floats import FloatFormat, find_most, round_scales_up
from trtq.pipeline.formats.granularity import PerBlock, PerChannel


@given(
    arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(0, 2.0**100, width=32)),
    st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_scales_are_positive_exact_and_rounded_up(wanted: np.ndarray, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    found = round_scales_up(wanted, dtype, find_most(dtype, 1))
    assert (found > 0).all()
    assert (found.astype(kind).astype(np.float32) == found).all()
    held = wanted <= {"float32": 3e38, "float16": 65504.0, "bfloat16": 3e38}[dtype]
    assert (found[held] >= wanted[held]).all()
    near = held & (wanted > 2.0**-14)
    assert (found[near] <= wanted[near] * np.float32(1.01)).all()


@pytest.mark.parametrize("name", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("form", [FP32, FP16, BF16], ids=str)
def test_the_largest_weights_of_a_dtype_stay_finite(form: FloatFormat, name: str, method: str) -> None:
    codes = WEIGHT_FORMATS[name]
    values = np.linspace(-form.largest, form.largest, 64, dtype=form.array_dtype)[:, None]
    granularity = PerBlock(0, 16) if codes.block_sizes else PerChannel(1)
    found = codes.decode(*codes.encode(values, granularity, form.array_dtype.name, method), granularity)
    held = found.astype(form.array_dtype)
    assert np.isfinite(held.astype(np.float32)).all()
    wide = values.astype(np.float64)
    assert np.linalg.norm(held.astype(np.float64) - wide) < 0.1 * np.linalg.norm(wide)


@pytest.mark.parametrize("form", [FP32, FP16, BF16], ids=str)
def test_the_largest_number_and_the_bits_are_those_of_the_dtype(form: FloatFormat) -> None:
    largest = np.asarray(form.largest, form.array_dtype)
    with np.errstate(over="ignore"):
        assert np.isinf(np.nextafter(largest, np.asarray(np.inf, form.array_dtype)))
    assert form.bits == 8 * form.array_dtype.itemsize == form.dtype.bitwidth
