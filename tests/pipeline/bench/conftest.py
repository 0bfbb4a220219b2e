"""A model that is quick to build and to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    """One product, whose input takes any number of samples."""
    weights = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    return path_of("g (float[N, 4] x) => (float[N, 4] y) { [mm] y = MatMul (x, w) }", w=weights)
