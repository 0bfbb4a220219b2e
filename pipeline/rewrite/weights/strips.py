"""Weights in other files, encoded some rows at a time as they are read, so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import iterate_rows, read_values, require_finite
from trtq.pipeline.formats.codes import Codes, find_largest
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock, PerChannel, PerTensor
from trtq.pipeline.formats.rounding import find_extremes

_STRIP = 1 << 19
"""Values, about: 1 MB of FP16, and codes of half a MB, which the cache of a core holds."""


def can_strip(tensor: ir.TensorProtocol) -> bool:
    """Returns whether a weight is worth it: it lies in another file, has two axes and is large."""
    return isinstance(tensor, ir.ExternalTensor) and len(tensor.shape) == 2 and tensor.size > _STRIP


def encode_strips(
    tensor: ir.TensorProtocol,
    encoding: Encoding,
    dtype: str,
    method: str,
    finish: Callable[[NDArray[Any]], NDArray[Any]],
    name: str,
) -> Codes:
    """Returns what `CodeFormat.encode` does for a weight of two axes, with its codes finished and flat.

    Args:
        tensor: Any float dtype of whole bytes, shape (rows, columns).
        encoding: The format, and which values share a scale.
        dtype: Which the scales must survive.
        method: One of the format's.
        finish: From the codes of whole rows to what is kept of them, in their order.
        name: Of the weight, as it is told.

    Raises:
        ModelError: The weight is not finite, or its file has changed.
    """
    granularity, shape = encoding.granularity, tuple(tensor.shape.numpy())
    block = granularity.size if isinstance(granularity, PerBlock) and granularity.axis == 0 else 1
    rows = block * max(1, _STRIP // (block * shape[1]))
    amax = _find_shared(tensor, encoding, rows)
    scales = np.empty(granularity.scales_shape(shape), np.float32)
    check = partial(_require_finite, tensor, name)
    codes: NDArray[Any] | None = None
    for place, values in iterate_rows(tensor, rows):
        made, found = _encode_rows(values, encoding, dtype, method, amax, check)
        kept = finish(made).reshape(-1)
        if codes is None:  # now it is known how much a row keeps
            codes = np.empty(kept.size * shape[0] // len(values), kept.dtype)
        size = codes.size // (shape[0] // block)
        codes[place.start // block * size : place.start // block * size + kept.size] = kept
        own = ... if amax is not None else slice(place.start // block, place.stop // block)
        scales[own] = found.reshape(scales[own].shape)
    assert codes is not None
    return codes, scales


def _find_shared(tensor: ir.TensorProtocol, encoding: Encoding, rows: int) -> NDArray[np.float32] | None:
    """Returns the largest magnitudes of what all rows share scales of; None where rows have their own."""
    granularity = encoding.granularity
    if not (isinstance(granularity, PerTensor) or granularity == PerChannel(1)):
        return None
    parts = (find_largest(values, granularity) for _, values in iterate_rows(tensor, rows))
    return np.asarray(np.maximum.reduce(list(parts)))


def _encode_rows(
    values: NDArray[Any],
    encoding: Encoding,
    dtype: str,
    method: str,
    amax: NDArray[np.float32] | None,
    check: Callable[[NDArray[np.float32]], None],
) -> Codes:
    """Returns codes and scales; the largest magnitudes, which tell what is not finite, are checked first."""
    form, granularity = encoding.format, encoding.granularity
    if not isinstance(granularity, PerBlock):
        amax = find_largest(values, granularity) if amax is None else amax
        check(amax)
        return form.encode(values, granularity, dtype, method, amax)
    blocks = granularity.split(values)
    extremes = find_extremes(blocks)
    check(extremes[1])
    scales = form.block_scales(blocks, dtype, method, extremes)
    return form.codes_of_blocks(blocks, scales), scales


def _require_finite(tensor: ir.TensorProtocol, name: str, amax: NDArray[np.float32]) -> None:
    if not np.isfinite(amax).all():
        require_finite(read_values(tensor), name)
