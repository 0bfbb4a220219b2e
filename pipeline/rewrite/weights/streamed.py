"""Constants that are made and written a piece at a time, so that no weight is in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.layout import Form, Part, as_tensor, fill_scales, finish_codes
from trtq.pipeline.rewrite.weights.strips import iterate_codes


class _File(Protocol):
    def write(self, content: bytes | memoryview, /) -> object:
        """Takes bytes."""


class StreamedTensor(ir.LazyTensor):
    """A constant that is written a piece at a time, and made as a whole only if it is read.

    Args:
        pieces: Gives its bytes, one array after another; each is used before the next is asked for.
        part: Its dtype and shape.
    """

    def __init__(self, pieces: Callable[[], Iterator[NDArray[Any]]], part: Part) -> None:
        super().__init__(self._make, part.dtype, ir.Shape(part.shape))
        self._pieces = pieces
        self._part = part

    def tofile(self, file: _File) -> None:
        """Writes its bytes to a binary file."""
        for piece in self._pieces():
            file.write(piece.view(np.uint8).data)

    def _make(self) -> ir.TensorProtocol:
        return as_tensor(np.concatenate([piece.copy() for piece in self._pieces()]), self._part)


def stream_weight(
    values: ir.TensorProtocol,
    weight: ChosenWeight,
    dtype: str,
    method: str,
    parts: Sequence[Part],
    form: Form,
) -> tuple[ir.TensorProtocol, ...]:
    """Returns the constants of a weight in another file, which is encoded as the codes are written.

    The scales are known then, and forgotten as they are handed out. Whoever asks for them first has the
    weight encoded twice.

    Args:
        values: One that `can_strip` takes.
        weight: What is held.
        dtype: Which the scales must survive.
        method: One of the format's.
        parts: Of `plan_parts`.
        form: Of `choose_form`, not "bnb4".
    """
    finish, left = finish_codes(form, parts[0].dtype), dict[int, ir.TensorProtocol]()

    def encode() -> Iterator[NDArray[Any]]:
        scales = np.empty(weight.encoding.granularity.scales_shape(weight.shape), np.float32)
        for codes in iterate_codes(values, weight.encoding, dtype, method, weight.tensor, scales):
            yield finish(codes).reshape(-1)
        left.update(enumerate(fill_scales(scales, weight, parts[1:], form), 1))

    def take(index: int) -> ir.TensorProtocol:
        if index not in left:
            for _ in encode():
                pass
        return left.pop(index)

    return StreamedTensor(encode, parts[0]), *(
        ir.LazyTensor(partial(take, index), part.dtype, ir.Shape(part.shape))
        for index, part in enumerate(parts[1:], 1)
    )
