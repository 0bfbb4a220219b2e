"""Weights in other files, encoded some rows at a time as they are read, so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import iterate_rows, read_values, require_finite
from trtq.pipeline.formats.codes import find_largest, split_channels
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock, PerChannel, PerTensor
from trtq.pipeline.formats.rounding import find_extremes

_STRIP = 1 << 19
"""Values, about: 1 MB of FP16, and codes of half a MB, which the cache of a core holds."""


def can_strip(tensor: ir.TensorProtocol) -> bool:
    """Returns whether a weight is worth it: it lies in another file, has two axes and is large."""
    return isinstance(tensor, ir.ExternalTensor) and len(tensor.shape) == 2 and tensor.size > _STRIP


def iterate_codes(
    tensor: ir.TensorProtocol,
    encoding: Encoding,
    dtype: str,
    method: str,
    name: str,
    scales: NDArray[np.float32],
) -> Iterator[NDArray[Any]]:
    """Yields the codes of some rows of a weight after another: those of `CodeFormat.encode`, bit for bit.

    Args:
        tensor: Any float dtype of whole bytes, shape (rows, columns).
        encoding: The format, and which values share a scale.
        dtype: Which the scales must survive.
        method: One of the format's.
        name: Of the weight, as it is told.
        scales: Takes the scales, in the shape of `Granularity.scales_shape`; it is full at the end.

    Raises:
        ModelError: The weight is not finite, or its file has changed.
    """
    granularity, shape = encoding.granularity, tuple(tensor.shape.numpy())
    block = granularity.size if isinstance(granularity, PerBlock) and granularity.axis == 0 else 1
    rows = block * max(1, _STRIP // (block * shape[1]))
    check = partial(_require_finite, tensor, name)
    is_shared = isinstance(granularity, PerTensor) or granularity == PerChannel(1)
    if is_shared:
        amax = _find_shared(tensor, encoding, rows)
        check(amax)
        scales[...] = encoding.format.scales_of(amax, dtype).reshape(scales.shape)
    for place, values in iterate_rows(tensor, rows):
        own = ... if is_shared else slice(place.start // block, place.stop // block)
        blocks = _split(values, encoding)
        if not is_shared:
            extremes = find_extremes(blocks)
            check(extremes[1])
            found = encoding.format.block_scales(blocks, dtype, method, extremes)
            scales[own] = found.reshape(scales[own].shape)
        yield encoding.format.codes_of_blocks(
            blocks, scales[own].reshape(blocks.shape[0], blocks.shape[2])
        ).reshape(values.shape)


def _find_shared(tensor: ir.TensorProtocol, encoding: Encoding, rows: int) -> NDArray[np.float32]:
    """Returns the largest magnitudes of what all rows share the scales of."""
    parts = (find_largest(values, encoding.granularity) for _, values in iterate_rows(tensor, rows))
    return reduce(np.maximum, parts)


def _split(values: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """Returns a view of shape (outer, block, inner); what shares a scale is all of one (outer, inner)."""
    granularity = encoding.granularity
    if isinstance(granularity, PerBlock):
        return granularity.split(values)
    return split_channels(values, granularity)


def _require_finite(tensor: ir.TensorProtocol, name: str, amax: NDArray[np.float32]) -> None:
    if not np.isfinite(amax).all():
        require_finite(read_values(tensor), name)
