"""A rare class that is lost fails, though nearly all places are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compared_arrays import compare_arrays
from numpy.typing import NDArray

from trtq.records import LostClass


def _draw(rare: int, dtype: type[np.integer[Any]] = np.int64) -> NDArray[Any]:
    """Returns maps of two classes, one in these places of all."""
    found = np.asarray(np.random.default_rng(0).integers(0, 2, (16, 32, 32)), dtype)
    found.reshape(-1)[5 : 5 + 7 * rare : 7] = 2
    return found


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_rare_class_that_is_lost_is_named(dtype: type[np.integer[Any]]) -> None:
    reference = _draw(100, dtype)
    candidate = np.where(reference == 2, 0, reference)
    candidate.reshape(-1)[5 : 5 + 7 * 30 : 7] = 2
    found = compare_arrays(candidate, reference, split=5)
    assert found.cosine > 0.99
    assert found.lost == LostClass(2, 30, 100)


@pytest.mark.parametrize(("rare", "kept"), [(31, 0), (100, 50)])
def test_few_places_and_half_of_them_are_no_proof(rare: int, kept: int) -> None:
    reference = _draw(rare)
    candidate = np.where(reference == 2, 0, reference)
    candidate.reshape(-1)[5 : 5 + 7 * kept : 7] = 2
    assert compare_arrays(candidate, reference).lost is None


@pytest.mark.parametrize("other", [-1, 5000])
def test_places_and_tokens_are_no_classes(other: int) -> None:
    reference = _draw(100)
    reference[9, 0, 0] = other
    assert compare_arrays(np.where(reference == 2, 0, reference), reference).lost is None


def test_a_mask_that_is_never_true_is_lost() -> None:
    reference = _draw(100) == 2
    assert compare_arrays(np.zeros_like(reference), reference).lost == LostClass(1, 0, 100)
