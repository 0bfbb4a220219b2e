"""Blocks of weights: the compiled functions and numpy give the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function
from trtq.pipeline.formats import INT8, NF4, blocks, rounding
from trtq.pipeline.formats.blocks import iterate_parts, pack_nibbles
from trtq.pipeline.formats.granularity import PerChannel, PerTensor
from trtq.pipeline.formats.nf4 import CODEBOOK
from trtq.pipeline.formats.rounding import count_bounds, find_extremes, round_blocks

BOUNDS = (CODEBOOK[:-1] + CODEBOOK[1:]) / np.float32(2)
SHAPES = [(3, 64, 130), (200, 32, 1), (1, 300, 7), (1, 5000, 1), (2, 16, 600)]
Compute = Callable[[], Any]

needs_compiler = pytest.mark.skipif(
    load_function("trtq_round") is None, reason="the installation found no compiler, or is older"
)


def _values_of(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_t(3, shape).astype(np.float32)


def _in_numpy(monkeypatch: pytest.MonkeyPatch, compute: Compute) -> Any:
    with monkeypatch.context() as patch:
        for module in (rounding, blocks):
            patch.setattr(module, "load_function", lambda *_: None)
        return compute()


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_find_the_same_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    whole = _values_of(shape[0], shape[1], shape[2] + 3).astype(dtype)
    scales = np.random.default_rng(0).uniform(0.01, 0.3, (shape[0], shape[2])).astype(np.float32)
    for values in (np.ascontiguousarray(whole[:, :, :-3]), whole[:, :, 1:-2], whole[:, ::-1, 3:]):
        for compute in (
            lambda values=values: find_extremes(values),
            lambda values=values: round_blocks(values, scales, -8, 7),
            lambda values=values: count_bounds(values, scales, BOUNDS),
        ):
            np.testing.assert_equal(compute(), _in_numpy(monkeypatch, compute))


@needs_compiler
def test_every_fp16_is_read_as_numpy_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for shape in ((1 << 16, 1, 1), (1, 1, 1 << 16)):
        values = bits.reshape(shape)
        least, most = find_extremes(values)
        np.testing.assert_array_equal(most.reshape(-1), np.abs(bits.astype(np.float32)))
        finite = np.isfinite(bits)
        np.testing.assert_array_equal(least.reshape(-1)[finite], bits[finite].astype(np.float32))
    finite_values = bits[np.isfinite(bits)].reshape(1, 1, -1)
    scales = np.full((1, finite_values.size), 3e-5, np.float32)

    def compute() -> NDArray[np.int8]:
        return round_blocks(finite_values, scales, -127, 127)

    np.testing.assert_array_equal(compute(), _in_numpy(monkeypatch, compute))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_what_is_not_finite_is_seen(monkeypatch: pytest.MonkeyPatch, value: float, is_compiled: bool) -> None:
    values = np.ones((1, 300, 4), np.float16)
    values[0, 299, 2] = value
    if is_compiled:
        most = find_extremes(values)[1]
    else:
        most = _in_numpy(monkeypatch, lambda: find_extremes(values))[1]
    assert np.isfinite(most).tolist() == [[True, True, False, True]]


def test_halves_go_to_the_even_code_and_large_steps_to_the_ends() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)[None, None]
    assert round_blocks(values, np.ones((1, 7), np.float32), -8, 7).tolist() == [[[0, 2, 2, 0, -2, 7, -8]]]


@pytest.mark.parametrize("size", [1, 2, 3, 70_001])
def test_codes_are_packed_and_turned_over_alike(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    codes = np.random.default_rng(size).integers(0, 16, size).astype(np.uint8)

    def compute() -> NDArray[np.uint8]:
        return pack_nibbles(codes, flip=8)

    np.testing.assert_array_equal(compute(), _in_numpy(monkeypatch, compute))
    np.testing.assert_array_equal(compute(), pack_nibbles(codes ^ 8))


@pytest.mark.parametrize("shape", [(2, 300_000, 1), (1, 3000, 700), (900, 2, 1)])
def test_long_blocks_are_cut_too(shape: tuple[int, int, int]) -> None:
    seen = np.zeros(shape, np.int8)
    for part in iterate_parts(shape):
        assert seen[part].size <= 1 << 17
        seen[part] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerChannel(2)])
def test_channels_of_any_axis_have_their_own_scales(granularity: PerTensor | PerChannel) -> None:
    values = _values_of(6, 5, 8)
    codes, scales = INT8.encode(values, granularity)
    spread = granularity.spread(scales, values.shape)
    np.testing.assert_array_equal(codes, np.clip(np.rint(values / spread), -127, 127))
    axes = tuple(axis for axis in range(3) if granularity != PerChannel(axis))
    np.testing.assert_array_equal(scales, np.abs(values).max(axis=axes) / np.float32(127))


def test_codes_of_one_block_and_of_many_are_the_same() -> None:
    values, scales = _values_of(4, 64, 3), np.full((4, 3), 2, np.float32)
    np.testing.assert_array_equal(NF4.codes_of_blocks(values, scales), NF4.codes_of(values, scales[:, None]))
