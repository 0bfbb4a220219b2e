"""Blocks, pieces and packed codes."""

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
