"""A few samples with large numbers hide no others."""

from __future__ import annotations

import numpy as np
import pytest
from compared_arrays import compare_arrays
from numpy.typing import NDArray

_LOUD = np.arange(200) % 20 == 0


def _draw() -> NDArray[np.float64]:
    """Returns prices from 1 to 2, of which one in twenty is about a thousand times as high."""
    return (1 + np.random.default_rng(0).random(200))[:, None] * np.where(_LOUD, 1000, 1)[:, None]


def test_what_most_samples_lose_is_seen_beside_a_few_large_ones() -> None:
    reference = _draw()
    found = compare_arrays(np.where(_LOUD[:, None], reference, 1.5), reference, split=64)
    assert found.judged_cosine > 0.999
    assert found.change_db is not None
    assert found.change_db > 60
    assert found.quiet_change_db == pytest.approx(0, abs=0.5)


def test_what_most_samples_keep_is_told_too() -> None:
    reference = _draw()
    assert (compare_arrays(reference * 1.01, reference).quiet_change_db or 0) > 20


@pytest.mark.parametrize("case", ["few samples", "equal samples", "scores", "vectors"])
def test_where_nothing_tells_nothing_is_told(case: str) -> None:
    reference = {
        "few samples": _draw()[:15],
        "equal samples": np.where(_LOUD[:, None], _draw(), 1.0),
        "scores": _draw() / 4000,
        "vectors": np.repeat(_draw(), 2, axis=1),
    }[case]
    assert (
        compare_arrays(np.where(reference > 3, reference, reference * 0.9), reference).quiet_change_db is None
    )
