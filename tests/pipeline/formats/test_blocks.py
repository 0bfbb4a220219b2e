"""Blocks, pieces, packed codes and scales."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trtq.pipeline.formats.blocks import (
    choose_block_size,
    iterate_pieces,
    pack_nibbles,
    reshape_scales,
    shape_of_scales,
    split_in_blocks,
    swap_nibbles,
)


@pytest.mark.parametrize(
    ("length", "wanted", "size"),
    [
        (256, 64, 64),
        (96, 64, 32),
        (48, 128, 16),
        (64, 128, 64),
        (100, 64, None),
        (8, 64, None),
        (24, 16, None),
    ],
)
def test_a_block_size_that_does_not_divide_is_halved_down_to_16(
    length: int, wanted: int, size: int | None
) -> None:
    assert choose_block_size(length, wanted) == size


def test_blocks_lie_along_the_axis() -> None:
    weight = np.arange(24).reshape(4, 6)
    assert split_in_blocks(weight, 0, 2)[1, :, 5].tolist() == [17, 23]  # rows 2 and 3 of the last column
    assert split_in_blocks(weight, 1, 3)[1, :, 0].tolist() == [3, 4, 5]  # the second half of the first row
    assert shape_of_scales((4, 6), 0, 2) == (2, 6)
    assert shape_of_scales((4, 6), 1, 3) == (4, 2)


@pytest.mark.parametrize("shape", [(1, 16, 1), (3, 64, 5000), (9000, 64, 1), (2, 4096, 100), (7, 32, 33)])
def test_the_pieces_cover_everything_once_and_are_small(shape: tuple[int, int, int]) -> None:
    seen = np.zeros(shape, np.int8)
    for piece in iterate_pieces(shape):
        assert seen[piece].size <= max(1 << 17, shape[1])
        seen[piece] += 1
    assert (seen == 1).all()


@given(arrays.arrays(np.int8, st.integers(1, 50), elements=st.integers(-8, 7)))
def test_codes_are_packed_as_onnx_stores_them(codes: np.ndarray) -> None:
    wanted = ir.tensor(codes.astype(ml_dtypes.int4)).tobytes()
    assert pack_nibbles(codes).tobytes() == wanted


def test_the_first_code_lies_in_the_low_half_and_bitsandbytes_wants_it_in_the_high_one() -> None:
    packed = pack_nibbles(np.array([1, 2, 15, 0], np.uint8))
    assert packed.tolist() == [0x21, 0x0F]
    assert swap_nibbles(packed).tolist() == [0x12, 0xF0]


@given(
    arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(0, 2.0**100, width=32)),
    st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_scales_are_positive_exact_and_rounded_up(wanted: np.ndarray, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    found = reshape_scales(wanted, dtype)
    assert (found > 0).all()
    assert (found.astype(kind).astype(np.float32) == found).all()
    held = wanted <= {"float32": 3e38, "float16": 65504.0, "bfloat16": 3e38}[dtype]
    assert (found[held] >= wanted[held]).all()
    near = held & (wanted > 2.0**-14)
    assert (found[near] <= wanted[near] * np.float32(1.01)).all()
