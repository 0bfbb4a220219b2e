"""Tests of roundings: which weights go to the farther code, and how that is kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.rewrite.rounding import choose_roundings, hash_weight, pack, round_to, unpack


def _loss(steps: NDArray[np.float64], rows: NDArray[np.float64], moved: NDArray[np.bool_]) -> float:
    return float(np.square((round_to(steps, moved) - steps)[0] @ rows.T).sum())


def test_two_equal_inputs_share_the_error_by_hand() -> None:
    """0.4 and 0.4 of inputs that are always the same: 0 and 0 lose 0.8, 0 and 1 only 0.2."""
    steps = np.array([[[0.4, 0.4]]])
    moved = choose_roundings(steps, np.ones((1, 2, 2)), 3)
    assert moved.sum() == 1
    assert round_to(steps, moved).sum() == 1


def test_inputs_that_do_not_depend_on_each_other_are_rounded_to_the_nearest() -> None:
    steps = np.random.default_rng(0).uniform(-127, 127, (2, 5, 8))
    assert not choose_roundings(steps, np.stack([np.eye(8), 3 * np.eye(8)]), 3).any()


@given(seed=st.integers(0, 999))
def test_the_error_is_never_above_that_of_the_nearest_and_no_single_change_lowers_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, rows = rng.uniform(-4, 4, (1, 1, 6)), rng.standard_normal((9, 6))
    gram = (rows.T @ rows)[None]

    moved = choose_roundings(steps, gram, 50)
    assert _loss(steps, rows, moved) <= _loss(steps, rows, np.zeros_like(moved)) + 1e-9
    for place in range(6):
        other = moved.copy()
        other[..., place] ^= True
        assert _loss(steps, rows, moved) <= _loss(steps, rows, other) + 1e-9


def test_it_gains_much_of_what_trying_all_ways_gains() -> None:
    rng = np.random.default_rng(3)
    gained = most = 0.0
    for _ in range(20):
        steps, rows = rng.uniform(-4, 4, (1, 1, 8)), rng.standard_normal((5, 8))
        every = [np.array(bits).reshape(1, 1, 8) for bits in itertools.product((False, True), repeat=8)]
        losses = [_loss(steps, rows, moved) for moved in every]
        gained += losses[0] - _loss(steps, rows, choose_roundings(steps, (rows.T @ rows)[None], 50))
        most += losses[0] - min(losses)
    assert gained > 0.4 * most


def test_no_code_leaves_int8() -> None:
    steps = np.array([[[126.6, 127.4, -127.4, 3.0]]])
    gram = np.ones((1, 4, 4)) + np.eye(4) * 1e-3
    codes = round_to(steps, choose_roundings(steps, gram, 5))
    assert np.abs(codes.astype(int)).max() <= 127
    assert codes[0, 0, 3] == 3  # a weight that is a code has no other


def test_groups_are_rounded_apart() -> None:
    rng = np.random.default_rng(0)
    steps, rows = rng.uniform(-9, 9, (3, 4, 5)), rng.standard_normal((3, 20, 5))
    gram = rows.transpose(0, 2, 1) @ rows
    apart = [choose_roundings(steps[i : i + 1], gram[i : i + 1], 3)[0] for i in range(3)]
    np.testing.assert_array_equal(choose_roundings(steps, gram, 3), np.stack(apart))


@pytest.mark.parametrize("shape", [(3, 5), (8,), (2, 3, 1, 1), (0, 4)])
def test_what_is_packed_comes_back(shape: tuple[int, ...]) -> None:
    moved = np.random.default_rng(0).random(shape) < 0.3
    np.testing.assert_array_equal(unpack(pack(moved), shape), moved)


def test_a_rounding_that_is_damaged_or_of_another_weight_is_refused() -> None:
    packed = pack(np.ones((3, 5), np.bool_))
    with pytest.raises(ArtifactError, match=r"a rounding in the ranges is damaged: .* calibrate again"):
        unpack(packed[:-6], (3, 5))
    with pytest.raises(ArtifactError, match=r"holds 16 bits, the weight of shape \(9, 9\) has 81 values"):
        unpack(packed, (9, 9))


def test_a_digest_is_of_values_shape_and_kind() -> None:
    weight = np.arange(6, dtype=np.float32)
    others = (
        hash_weight(weight + 1),
        hash_weight(weight.reshape(2, 3)),
        hash_weight(weight.astype(np.float64)),
    )
    assert hash_weight(weight) == hash_weight(weight.copy())
    assert len({hash_weight(weight), *others}) == 4
