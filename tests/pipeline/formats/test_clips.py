"""The search for the clips of INT4: the compiled one and the one in numpy find the same, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.kernel import load_function
from trtq.pipeline.formats.clips import CLIPS, choose_search, search_with_numpy


def _steps_of(*shape: int) -> NDArray[np.float32]:
    values = np.random.default_rng(sum(shape)).standard_t(3, shape).astype(np.float32)
    values[0, :, 0] = 0
    largest = np.abs(values).max(axis=1, keepdims=True)
    return (values / np.where(largest > 0, largest, 1) * 7).astype(np.float32)


@pytest.mark.skipif(
    load_function("trtq_search_clips") is None, reason="the installation found no compiler, or is older"
)
@pytest.mark.parametrize("shape", [(3, 64, 130), (200, 32, 1), (1, 256, 7), (1, 16, 1), (2, 512, 3)])
def test_both_searches_find_the_same_bit_for_bit(shape: tuple[int, ...]) -> None:
    steps = _steps_of(*shape)
    units = np.random.default_rng(1).uniform(0.5, 2, (shape[0], shape[2])).astype(np.float32)
    values = steps / units[:, None]
    for own in (values, values.astype(np.float16), np.repeat(values, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(choose_search()(own, units), search_with_numpy(own, units))


def test_whole_numbers_lose_no_more_than_exact_sums() -> None:
    steps = _steps_of(1, 64, 4000)[0]
    explained, exact = np.zeros(4000), np.zeros(4000)
    for clip in CLIPS:
        codes = np.clip(np.rint(steps * (np.float32(1) / clip)), -8, 7).astype(np.float64)
        product, square = (steps * codes).sum(axis=0), np.maximum((codes * codes).sum(axis=0), 1)
        better = product**2 / square > explained
        exact = np.where(better, product / square, exact)
        explained = np.where(better, product**2 / square, explained)
    found = search_with_numpy(steps[None], np.ones((1, 4000), np.float32))[0].astype(np.float64)
    errors = [
        np.square(steps - np.clip(np.rint(steps / np.maximum(scale, 1e-9)), -8, 7) * scale).sum()
        for scale in (found, exact)
    ]
    assert np.median(np.abs(found - exact)) < 2e-5
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_steps_in_float64_find_the_same() -> None:
    steps = _steps_of(2, 32, 3)
    wide: NDArray[Any] = steps.astype(np.float64)
    ones = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(choose_search()(wide, ones), search_with_numpy(steps, ones))


def test_a_block_of_zeros_has_no_scale_and_one_of_whole_steps_has_its_own() -> None:
    steps = np.zeros((1, 16, 2), np.float32)
    steps[0, :8, 1] = np.arange(8)
    for search in (choose_search(), search_with_numpy):
        assert search(steps, np.ones((1, 2), np.float32)).tolist() == [[0, 1]]


def test_a_library_without_the_function_is_none() -> None:
    assert load_function("trtq_nothing") is None
