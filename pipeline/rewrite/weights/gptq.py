"""GPTQ: each row of a weight is rounded, and what is not rounded yet makes up for the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.int4 import INT4

_DAMPING, _MOST_DAMPING = 0.01, 1.0
_ROWS_PER_INPUT = 64
"""What the damping is for: the paper has 128 x 2048 rows for products of up to some 4096 inputs."""
_LAZY = 128  # rows after which the error reaches the rest of the weight


@dataclass(frozen=True, slots=True)
class Gram:
    """How the inputs of a product depend on each other.

    Attributes:
        products: X^T X of the data, shape (K, K), float32 or float64.
        num_rows: Of X.
        magnitudes: The mean of |X| by column, shape (K,), float64; only AWQ reads it.
    """

    products: NDArray[Any]
    num_rows: int
    magnitudes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def damped(self) -> NDArray[np.float64]:
        """Returns the products with more on the diagonal: the more, the less data there is for each input.

        What a few samples alone say of the inputs makes the product worse on others than rounding does. An
        input that is always zero gets a one: nothing depends on how its weights are rounded.
        """
        damped = self.products.astype(np.float64)
        share = _DAMPING * _ROWS_PER_INPUT * len(damped) / max(self.num_rows, 1)
        diagonal = np.einsum("ii->i", damped)  # a view
        diagonal[diagonal == 0] = 1
        diagonal += min(max(share, _DAMPING), _MOST_DAMPING) * diagonal.mean()
        return damped


def quantize_gptq(
    weight: NDArray[Any], gram: Gram, block_size: int, dtype: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns INT4 codes and block scales that keep the product with the data, not the weight itself.

    GPTQ (arXiv 2210.17323), algorithm 1, with the rows in their own order. The scales of a block are found
    when its first row is reached, on the weight as it is corrected so far, by the clip of least error.
    With less data than in the paper the damping is larger: see `Gram.damped`.

    Args:
        weight: Any float dtype, shape (K, N): the axis that is summed over first.
        gram: Of the data.
        block_size: Rows to a scale; divides K. The scales have the shape (K / block_size, N).
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".
    """
    rest = weight.astype(np.float32)
    length, width = rest.shape
    inverse = np.linalg.cholesky(np.linalg.inv(gram.damped())).T.astype(np.float32)
    codes = np.empty(rest.shape, np.int8)
    scales = np.empty((length // block_size, width), np.float32)
    lazy = max(_LAZY, block_size)  # whole blocks: the others see errors only afterwards
    for start in range(0, length, lazy):
        stop = min(start + lazy, length)
        errors = np.empty((stop - start, width), np.float32)
        for row in range(start, stop):
            block = row // block_size
            if row % block_size == 0:
                scales[block] = INT4.block_scales(rest[None, row : row + block_size], dtype, "mse")[0]
            codes[row] = INT4.codes_of(rest[row], scales[block])
            error = (rest[row] - codes[row] * scales[block]) / inverse[row, row]
            errors[row - start] = error
            rest[row + 1 : stop] -= np.outer(inverse[row, row + 1 : stop], error)
        rest[stop:] -= inverse[start:stop, stop:].T @ errors
    return codes, scales
