"""Whether weights of few bits lose less in rotated streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import iterate_rows
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.rewrite.rotation.rotate import is_folded, turn_axis
from trtq.pipeline.rewrite.rotation.streams import Constant, Stream, StreamNorm, find_streams, read_scale
from trtq.pipeline.rewrite.weights.choose import ChosenWeight

_LEAST_GAIN = 0.1
"""The share of the noise that a rotation must save, half a decibel: less may be none in the outputs."""
_MOST_VECTORS = 128
"""Of a weight, that are looked at; one is like another."""
_MOST_WEIGHTS = 32
"""That are looked at, drawn at random: a large model is not read a second time for a hint."""
_Rotated = tuple[Constant, NDArray[np.float32] | None, Encoding]


def measure_gain(model: ir.Model, chosen: Sequence[ChosenWeight], dtype: str) -> float | None:
    """Returns how many times the noise is lower that weights of few bits make if the streams are rotated.

    It is that of the nearest codes in what each weight makes of an input whose elements are alike and
    independent before the scale of the norm, relative to the power, in the mean of the weights that are
    rotated, or of 32 of them. None: there are none, or less than a tenth is saved.

    Args:
        model: The float graph.
        chosen: Its weights of few bits.
        dtype: Which the scales must survive.
    """
    plain, turned = [], []
    for constant, scale, encoding in _draw(_list_rotated(model, chosen)):
        assert isinstance(encoding.granularity, PerBlock)
        values = _sample(constant, encoding.granularity)
        rotated = turn_axis(values, constant.axis, scale)
        plain.append(_lose(values, encoding, dtype, constant.axis, scale))
        turned.append(_lose(rotated, encoding, dtype, constant.axis, None))
    if not plain or sum(turned) > (1 - _LEAST_GAIN) * sum(plain):
        return None
    return float(sum(plain) / max(sum(turned), 1e-12))


def _list_rotated(model: ir.Model, chosen: Sequence[ChosenWeight]) -> list[_Rotated]:
    """Returns the weights of blocks that are rotated, with the scales that are folded into them before."""
    encodings = {weight.tensor: weight.encoding for weight in chosen}
    found = (
        (constant, scale, encodings.get(str(constant.value.name)))
        for constant, scale in _list_folded(find_streams(model.graph))
    )
    return [
        (constant, scale, encoding)
        for constant, scale, encoding in found
        if encoding is not None and isinstance(encoding.granularity, PerBlock)
    ]


def _draw(rotated: Sequence[_Rotated]) -> list[_Rotated]:
    """Returns all, or as many as are looked at, in their order; the same are drawn each time."""
    if len(rotated) <= _MOST_WEIGHTS:
        return list(rotated)
    drawn = np.random.default_rng(0).choice(len(rotated), _MOST_WEIGHTS, replace=False)
    return [rotated[index] for index in sorted(drawn)]


def _list_folded(streams: Sequence[Stream]) -> Iterator[tuple[Constant, NDArray[np.float32] | None]]:
    """Yields the constants that are rotated, with the scales that are folded into them before."""
    for stream in streams:
        yield from ((writer, None) for writer in stream.writers if is_folded(writer, stream.writers))
        for norm in stream.norms:
            if _is_folded(norm):
                yield from ((reader, read_scale(norm, stream.width)) for reader in norm.readers)


def _is_folded(norm: StreamNorm) -> bool:
    return all(is_folded(reader, norm.readers) for reader in norm.readers)


def _sample(constant: Constant, blocks: PerBlock) -> NDArray[np.float32]:
    """Returns a part of a weight of two axes: all channels, and whole blocks of some of the other axis."""
    assert constant.value.const_value is not None
    tensor, other = constant.value.const_value, -1 if constant.axis == -2 else -2
    count = _MOST_VECTORS - _MOST_VECTORS % blocks.size if blocks.axis - 2 == other else _MOST_VECTORS
    count = max(count, blocks.size)
    if other == -2:
        return next(iterate_rows(tensor, count))[1].astype(np.float32)
    return np.concatenate([values[:, :count].astype(np.float32) for _, values in iterate_rows(tensor, count)])


def _lose(
    values: NDArray[Any], encoding: Encoding, dtype: str, axis: int, scale: NDArray[np.float32] | None
) -> float:
    """Returns the power of what codes lose, relative to that of the weight, with the rows scaled."""
    found = encoding.format.encode(values, encoding.granularity, dtype, "rtn")
    error = encoding.format.decode(*found, encoding.granularity) - values
    if scale is not None:
        column = scale if axis == -1 else scale[:, None]
        values, error = values * column, error * column
    return float(np.square(error).sum() / max(float(np.square(values).sum()), 1e-30))
