"""NF4 against the paper's codebook, against codes of bitsandbytes, and against bitsandbytes itself."""

from __future__ import annotations

import hashlib
import importlib

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from reference_nf4 import dequantize_absmax

from trtq.pipeline.formats import NF4
from trtq.pipeline.formats.blocks import pack_nibbles, swap_nibbles
from trtq.pipeline.formats.double import build_dynamic_map, quantize_absmax
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.nf4 import CODEBOOK

BLOCK = np.sin(np.arange(64) * 0.7).astype(np.float32) * np.float32(0.3)
BITSANDBYTES = "7effb30017efeb30017efeb30028efea30028efea30028efea30028efea30028"
"""What bitsandbytes 0.50 (CPU) makes of BLOCK: packed codes, the first in the high half."""

MAGNITUDES = ((np.arange(300) * 7919) % 1021 + 256).astype(np.float32) / np.float32(1024)
MAGNITUDE_CODES = (
    "01dead2704e2be2b08e5c22e0be9c6320fecc93512f0cd3916f3d03c19f7d4411dfad75320fedb942401deae2704e2bf2b08"
    "e5c22e0be9c6320fecc93512f0cd3916f3d03c19f7d4421dfad75420fedb972401deaf2704e2bf2b08e5c22f0be9c6320fec"
    "c93612f0cd3916f4d03d1af7d4431dfbd75421fedb9b2401dfaf2805e2bf2b08e6c32f0ce9c6320fedca3613f0cd3916f4d1"
    "3d1af7d4431dfbd85521fedb9e2401dfb02805e2bf2b08e6c32f0ce9c6320fedca3613f0cd3916f4d13d1af7d4441dfbd856"
    "21ffdb9f2401dfb12805e2bf2b08e6c32f0ce9c6320fedca3613f0cd3a16f4d13d1af7d4451dfbd85621ffdba02501dfb128"
    "05e2bf2c08e6c32f0ce9c63310edca3613f0cd3a17f4d13d1af7d4461efbd85721ffdca12502dfb22805e3c02c09e6c32f0c"
)
"""What bitsandbytes 0.50.2 (CPU, torch 2.13) makes of MAGNITUDES with `compress_statistics`: the codes of
`quantize_blockwise(magnitudes - magnitudes.mean(), blocksize=256)`, as its reference kernel has them."""
MAGNITUDE_SCALES, MAGNITUDE_OFFSET = (0.4931184649467468, 0.4940950274467468), 0.7353971600532532
DEQUANTIZED = "4fd405d29acbfaaac3b41bb355af6e6c492267660f8ff416764984776e4f6545"
"""The SHA-256 of the float32 magnitudes that its `dequantize_blockwise`, plus the mean, makes of these."""


def test_the_levels_themselves_are_kept() -> None:
    block = np.resize(CODEBOOK, 64) * np.float32(3)
    codes, absmax = NF4.encode(block, PerBlock(0, 64))
    assert codes[:16].tolist() == list(range(16))
    assert absmax.tolist() == [3]
    np.testing.assert_array_equal(NF4.decode(codes, absmax, PerBlock(0, 64)), block)


def test_every_value_gets_its_nearest_level() -> None:
    weight = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    codes, absmax = NF4.encode(weight, PerBlock(1, 64))
    scaled = weight.reshape(32, 2, 64) / absmax[:, :, None]
    nearest = np.abs(scaled[..., None] - CODEBOOK).argmin(axis=-1).reshape(32, 128)
    assert (codes == nearest).mean() > 0.9999  # of a value in the middle either will do


def test_a_block_of_zeros_is_kept() -> None:
    codes, absmax = NF4.encode(np.zeros(64, np.float32), PerBlock(0, 64))
    assert set(codes.tolist()) == {7}
    assert absmax.tolist() == [0]
    assert not NF4.decode(codes, absmax, PerBlock(0, 64)).any()


def test_a_weight_of_in_out_has_the_codes_of_its_transpose() -> None:
    weight = np.random.default_rng(1).standard_normal((128, 1100)).astype(np.float32)
    codes, absmax = NF4.encode(weight, PerBlock(0, 64))
    other, other_absmax = NF4.encode(np.ascontiguousarray(weight.T), PerBlock(1, 64))
    np.testing.assert_array_equal(codes.T, other)
    np.testing.assert_array_equal(absmax.T, other_absmax)


def test_bfloat16_weights_are_taken() -> None:
    weight = BLOCK.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(
        NF4.encode(weight, PerBlock(0, 64))[0], NF4.encode(weight.astype(np.float32), PerBlock(0, 64))[0]
    )


def test_codes_and_magnitude_are_those_that_bitsandbytes_gave() -> None:
    codes, absmax = NF4.encode(BLOCK, PerBlock(0, 64))
    assert swap_nibbles(pack_nibbles(codes)).tobytes().hex() == BITSANDBYTES
    assert absmax[0] == np.float32(np.abs(BLOCK).max())


def cases() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    return {
        "normal": rng.standard_normal((96, 256)).astype(np.float32),
        "tiny": (rng.standard_normal((8, 128)) * 1e-30).astype(np.float32),
        "denormal": (rng.standard_normal((4, 128)) * 1e-40).astype(np.float32),
        "heavy tails": rng.standard_t(2, (64, 512)).astype(np.float32),
        "zeros": np.zeros((4, 128), np.float32),
        "a grid": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(32, 128),
    }


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("name", cases())
def test_codes_and_magnitudes_are_those_of_bitsandbytes(name: str, block_size: int) -> None:
    torch = importlib.import_module("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = cases()[name]
    packed, state = functional.quantize_4bit(torch.from_numpy(weight), blocksize=block_size, quant_type="nf4")
    codes, absmax = NF4.encode(weight, PerBlock(1, block_size))
    np.testing.assert_array_equal(swap_nibbles(pack_nibbles(codes)), packed.numpy().reshape(-1))
    np.testing.assert_array_equal(absmax.reshape(-1), state.absmax.numpy())
    np.testing.assert_array_equal(build_dynamic_map(), functional.create_dynamic_map().numpy())


def test_the_dynamic_map_has_seven_decades() -> None:
    levels = build_dynamic_map()
    assert len(levels) == 256
    assert (np.diff(levels) > 0).all()
    assert levels[127] == 0
    assert levels[255] == 1
    assert float(levels[128]) == pytest.approx(5.5e-7)
    np.testing.assert_array_equal(-levels[:127][::-1], levels[128:255])
    assert float(levels[254]) == pytest.approx(0.1 + 0.9 * 127 / 128)


@pytest.mark.parametrize("size", [1, 255, 256, 1000])
def test_magnitudes_in_8_bits_are_near(size: int) -> None:
    absmax = np.random.default_rng(2).uniform(0.5, 2, size).astype(np.float32)
    again = quantize_absmax(absmax)
    assert again.scales.shape == (-(-size // 256),)
    assert again.offset == pytest.approx(absmax.mean(), rel=1e-6)
    found = dequantize_absmax(again)
    assert np.abs(found - absmax).max() <= 0.008 * np.abs(absmax - again.offset).max() + 1e-6


def test_magnitudes_in_8_bits_are_those_that_bitsandbytes_gave() -> None:
    found = quantize_absmax(MAGNITUDES)
    assert found.codes.tobytes().hex() == MAGNITUDE_CODES
    assert found.scales.tolist() == list(MAGNITUDE_SCALES)
    assert float(found.offset) == MAGNITUDE_OFFSET
    assert hashlib.sha256(dequantize_absmax(found).tobytes()).hexdigest() == DEQUANTIZED


def test_equal_magnitudes_in_8_bits_are_their_mean() -> None:
    again = quantize_absmax(np.full((3, 100), 0.25, np.float32))
    np.testing.assert_array_equal(dequantize_absmax(again), np.full(300, 0.25, np.float32))
