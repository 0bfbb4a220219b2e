"""An orthogonal matrix that spreads every channel over all others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEED = 0


def rotate_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Returns x Q for each row x along the last axis; Q is orthogonal and depends on its length alone.

    Q is diag(s) (H x C): random signs s, the Hadamard matrix H of the largest power of two that divides the
    length, and the cosine transform C of what is left; QuaRot (Ashkboos et al., arXiv 2404.00456, section 3)
    looks for a Hadamard matrix there, too. No element is larger than sqrt(2 / length), so that no channel
    stays large. H is never made: it takes log2(length) sums of all rows.

    Args:
        rows: Shape (..., length).
    """
    length = rows.shape[-1]
    power = length & -length
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], length).astype(rows.dtype)
    values = (rows * signs).reshape(-1, power, length // power) @ _make_cosines(length // power, rows.dtype)
    step = 1
    while step < power:
        first, second = np.moveaxis(values.reshape(len(values), -1, 2, step, length // power), 2, 0)
        values = np.stack([first + second, first - second], axis=2)
        step *= 2
    return np.asarray(values.reshape(rows.shape) / np.sqrt(power), rows.dtype)


def make_matrix(length: int) -> NDArray[np.float64]:
    """Returns Q, shape (length, length)."""
    return np.asarray(rotate_rows(np.eye(length)), np.float64)


def _make_cosines(length: int, dtype: np.dtype[np.floating]) -> NDArray[Any]:
    """Returns the orthonormal cosine transform (DCT-II), shape (length, length); 1 for a length of 1."""
    place = np.arange(length)
    cosines = np.cos(np.pi * (2 * place[:, None] + 1) * place / (2 * length)) * np.sqrt(2 / length)
    cosines[:, 0] = np.sqrt(1 / length)
    return np.asarray(cosines, dtype)
