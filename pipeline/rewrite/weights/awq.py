"""AWQ: inputs that are large in the data have their weights enlarged, so that rounding these errs less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import iterate_pieces
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.formats.int4 import INT4

_STEPS = 20
"""Exponents that are tried, from 0 on, as in the paper."""
_LEAST_GAIN = 0.02
"""The share of the error that scales must save: less may be none on other data, and is not worth a Mul."""
_SMALLEST = 1e-4
"""Inputs smaller than this share of the largest count as so large."""
_MOST_COLUMNS = 128
"""Of a weight, that the search looks at: one is like another, and each costs the square of the inputs."""


def search_scales(
    weights: Iterable[tuple[NDArray[Any], int]],
    products: NDArray[np.float64],
    magnitudes: NDArray[np.float64],
    dtype: str,
) -> NDArray[np.float64] | None:
    """Returns by what to multiply the rows of weights that read the same inputs; None if nothing wins.

    AWQ (Lin et al., arXiv 2306.00978, section 3.2): the scales are the mean magnitude of each input to the
    power of an exponent of 0, 1/20 ... 19/20, that of the least squared error of the outputs, summed over all
    the weights. For the error E of a weight that is trace(E^T G E) with the Gram matrix G of the inputs, so
    no layer is run.

    Args:
        weights: Each of shape (K, N), the axis that is summed over first, with its block size; they are read
            one after another.
        products: The Gram matrix of the inputs, damped so that few samples do not decide alone.
        magnitudes: The mean magnitude of each input, shape (K,).
        dtype: Which the scales of the blocks must survive: "float32", "float16" or "bfloat16".

    Returns:
        float64, shape (K,), positive; the product of the largest and the smallest is 1.
    """
    importance, single = np.diag(products), products.astype(np.float32)
    samples = [(_sample_columns(weight), size) for weight, size in weights]

    def lose(scale: NDArray[np.float64]) -> float:
        return sum(_lose(weight, scale, single, importance, size, dtype) for weight, size in samples)

    start = lose(np.ones(len(products)))
    found = [(lose(scale), index, scale) for index, scale in enumerate(_list_scales(magnitudes))]
    best, _, scale = min(found, default=(start, 0, np.ones(0)))
    return scale if best < (1 - _LEAST_GAIN) * start else None


def encode_by_importance(
    weight: NDArray[Any], importance: NDArray[np.float64], block_size: int, dtype: str
) -> Codes:
    """Returns INT4 codes and scales, with the clip of each block by what its weights count.

    Args:
        weight: Any float dtype, shape (K, N): the axis that is summed over first.
        importance: What a squared error in each row counts, shape (K,), positive: the diagonal of the Gram
            matrix, with which AWQ searches its clips too (section 4).
        block_size: Rows to a scale; divides K. The scales have the shape (K / block_size, N).
        dtype: Which the scales must survive.
    """
    length, width = weight.shape
    blocks = weight.reshape(length // block_size, block_size, width)
    counts = (importance / importance.mean()).astype(np.float32).reshape(-1, block_size, 1)
    codes, scales = np.empty(blocks.shape, np.int8), np.empty((len(blocks), width), np.float32)
    for part in iterate_pieces((len(blocks), block_size, width)):
        values = blocks[part].astype(np.float32, copy=False)
        found = scales[part[0], part[2]] = INT4.block_scales(values, dtype, "awq", importance=counts[part[0]])
        codes[part] = INT4.codes_of(values, found[:, None])
    return codes.reshape(weight.shape), scales


def _list_scales(magnitudes: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yields the scales of all exponents but 0."""
    largest = magnitudes.max(initial=0.0)
    if largest <= 0:
        return
    shares = np.maximum(magnitudes / largest, _SMALLEST)
    for step in range(1, _STEPS):
        scale = shares ** (step / _STEPS)
        yield scale / np.sqrt(scale.max() * scale.min())


def _lose(
    weight: NDArray[np.float32],
    scale: NDArray[np.float64],
    products: NDArray[np.float32],
    importance: NDArray[np.float64],
    block_size: int,
    dtype: str,
) -> float:
    """Returns the squared error of the outputs."""
    column = scale.astype(np.float32)[:, None]
    codes, scales = encode_by_importance(weight * column, importance / scale**2, block_size, dtype)
    error = codes * np.repeat(scales, block_size, 0) / column - weight
    return float(np.vdot(error, products @ error))


def _sample_columns(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Returns columns of a weight, evenly spread; all of them if they are few."""
    width = weight.shape[1]
    columns = np.linspace(0, width - 1, min(width, _MOST_COLUMNS)).astype(np.int64)
    return np.ascontiguousarray(weight[:, columns], np.float32)
