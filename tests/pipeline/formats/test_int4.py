"""INT4 weights against the definition and a slow search."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.pipeline.formats import INT4
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.rewrite.weights.gptq import Gram, quantize_gptq


def weight_of(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def dequantized(codes: NDArray[np.int8], scales: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return INT4.decode(codes, scales, PerBlock(axis, codes.shape[axis] // scales.shape[axis]))


def test_a_hand_worked_block() -> None:
    weight = np.zeros((1, 16), np.float32)
    weight[0, :5] = [7, -3.5, 2.5, 1.5, -0.4]
    codes, scales = INT4.encode(weight, PerBlock(1, 16), "float32")
    assert scales.tolist() == [[1]]
    assert codes[0, :5].tolist() == [7, -4, 2, 2, 0]  # halves go to the even neighbour


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_the_same_block_gets_the_same_codes_along_either_axis(axis: int, method: str) -> None:
    weight = weight_of(64, 96)
    codes, scales = INT4.encode(weight if axis == 0 else weight.T, PerBlock(axis, 32), "float16", method)
    assert scales.shape == ((2, 96) if axis == 0 else (96, 2))
    other, other_scales = INT4.encode(np.ascontiguousarray(weight.T), PerBlock(1, 32), "float16", method)
    np.testing.assert_array_equal(codes if axis else codes.T, other)
    np.testing.assert_array_equal(scales if axis else scales.T, other_scales)


def test_rounding_to_nearest_stays_within_half_a_step() -> None:
    weight = weight_of(128, 40)
    codes, scales = INT4.encode(weight, PerBlock(0, 64), "float32")
    error = np.abs(dequantized(codes, scales, 0) - weight)
    assert (error <= np.repeat(scales, 64, 0) / 2 * 1.001).all()


@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_the_searched_scales_err_less_than_a_slow_search_of_26_clips(block_size: int) -> None:
    weight = weight_of(128, 64, seed=3)
    codes, scales = INT4.encode(weight, PerBlock(0, block_size), "float32", "mse")
    error = ((dequantized(codes, scales, 0) - weight) ** 2).sum()

    def least_of(block: NDArray[np.float32]) -> float:
        tried = (np.abs(block).max() / 7 * clip for clip in np.linspace(0.5, 1, 26))
        return min(float(((np.clip(np.rint(block / s), -8, 7) * s - block) ** 2).sum()) for s in tried)

    blocks = weight.T.reshape(-1, block_size)
    assert error <= sum(least_of(block) for block in blocks)


def test_what_four_bits_can_hold_is_kept_by_the_search() -> None:
    wanted = np.random.default_rng(0).integers(-7, 8, (64, 32)).astype(np.float32)
    wanted[0] = 7
    codes, scales = INT4.encode(wanted / 32, PerBlock(0, 64), "float16", "mse")
    np.testing.assert_array_equal(codes, wanted)
    assert (scales == 1 / 32).all()


def test_the_search_takes_blocks_of_zeros_and_extremes() -> None:
    weight = np.zeros((16, 3), np.float32)
    weight[:, 1], weight[:, 2] = 3e38, 1e-44
    codes, scales = INT4.encode(weight, PerBlock(0, 16), "float32", "mse")
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    np.testing.assert_allclose(dequantized(codes, scales, 0)[:, :2], weight[:, :2], rtol=1e-6)


def test_no_block_loses_by_the_search() -> None:
    weight = weight_of(256, 64)
    losses = []
    for method in ("rtn", "mse"):
        codes, scales = INT4.encode(weight, PerBlock(0, 64), "float16", method)
        losses.append(((dequantized(codes, scales, 0) - weight) ** 2).reshape(4, 64, 64).sum(axis=1))
    assert (losses[1] <= losses[0] * 1.0001).all()
    assert losses[1].sum() < 0.95 * losses[0].sum()


def correlated_inputs(length: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((512, 24)) @ rng.standard_normal((24, length))).astype(np.float32)


def gram_of(inputs: NDArray[np.float32]) -> Gram:
    return Gram(inputs.T @ inputs, len(inputs))


def test_gptq_takes_little_from_little_data() -> None:
    rng = np.random.default_rng(2)
    weight, width = weight_of(256, 48), np.geomspace(1, 0.3, 256)  # nothing to learn but the widths
    seen, unseen = ((rng.standard_normal((n, 256)) * width).astype(np.float32) for n in (200, 4000))

    def loss(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
        return float(((unseen @ (dequantized(codes, scales, 0) - weight)) ** 2).sum())

    nearest = loss(*INT4.encode(weight, PerBlock(0, 64), "float32", "mse"))
    undamped = loss(*quantize_gptq(weight, Gram(seen.T @ seen, 1 << 20), 64, "float32"))
    damped = loss(*quantize_gptq(weight, gram_of(seen), 64, "float32"))
    assert damped < 1.2 * nearest
    assert undamped > 3 * nearest


@pytest.mark.parametrize("block_size", [32, 256])
def test_gptq_keeps_the_product_better_than_any_rounding_of_the_weight(block_size: int) -> None:
    weight, inputs = weight_of(256, 48), correlated_inputs(256)
    wanted = inputs @ weight

    def loss(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> float:
        return float(((inputs @ dequantized(codes, scales, 0) - wanted) ** 2).sum())

    nearest = loss(*INT4.encode(weight, PerBlock(0, block_size), "float32", "mse"))
    assert loss(*quantize_gptq(weight, gram_of(inputs), block_size, "float32")) < 0.5 * nearest


def test_gptq_without_correlation_is_the_rounding_of_the_searched_clip() -> None:
    weight = weight_of(128, 8)
    codes, scales = quantize_gptq(weight, Gram(np.eye(128, dtype=np.float32), 1 << 20), 64, "float16")
    wanted, wanted_scales = INT4.encode(weight, PerBlock(0, 64), "float16", "mse")
    np.testing.assert_array_equal(scales, wanted_scales)
    np.testing.assert_array_equal(codes, wanted)


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    inputs = correlated_inputs(64)
    inputs[:, ::2] = 0
    codes, scales = quantize_gptq(weight_of(64, 8), gram_of(inputs), 32, "float32")
    assert np.isfinite(scales).all()
    assert codes.any()


def test_gptq_is_the_plain_algorithm() -> None:
    """Algorithm 1 of the paper row by row, without the lazy batches, must give the same codes."""
    weight, inputs = weight_of(192, 4).astype(np.float64), correlated_inputs(192)
    gram = (inputs.T @ inputs).astype(np.float64)
    codes, scales = quantize_gptq(weight, Gram(gram, 64 * 192), 64, "float32")
    gram += 0.01 * np.trace(gram) / 192 * np.eye(192)
    root = np.linalg.cholesky(np.linalg.inv(gram)).T
    steps = np.repeat(scales, 64, 0).astype(np.float64)
    found = np.empty_like(weight)
    for row in range(192):
        found[row] = np.clip(np.rint(weight[row] / steps[row]), -8, 7)
        error = (weight[row] - found[row] * steps[row]) / root[row, row]
        weight[row + 1 :] -= np.outer(root[row, row + 1 :], error)
    assert (codes == found).mean() > 0.99  # float32 against float64: a tie may fall to the other side
