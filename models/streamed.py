"""Constants that are made and written a piece at a time, so that none is in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import is_read_late, iterate_values


class _File(Protocol):
    def write(self, content: bytes | memoryview, /) -> object:
        """Takes bytes."""


class StreamedTensor(ir.LazyTensor):
    """A constant that is written a piece at a time, and made as a whole only if it is read.

    Args:
        pieces: Gives its bytes, one array after another; each is used before the next is asked for.
        dtype: Of its values; several of fewer than 8 bits are one byte of the pieces.
        shape: Of its values.
        name: What it is called.
    """

    def __init__(
        self,
        pieces: Callable[[], Iterator[NDArray[Any]]],
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str | None = None,
    ) -> None:
        super().__init__(self.make, dtype, ir.Shape(shape), name=name)
        self._pieces = pieces

    def tofile(self, file: _File) -> None:
        """Writes its bytes to a binary file."""
        for piece in self._pieces():
            file.write(piece.view(np.uint8).data)

    def make(self) -> ir.TensorProtocol:
        """Returns the constant with all its values in memory."""
        content, done, shape = np.empty(self.nbytes, np.uint8), 0, tuple(self.shape.numpy())
        for piece in self._pieces():
            raw = piece.reshape(-1).view(np.uint8)
            content[done : done + raw.size] = raw
            done += raw.size
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(content, self.dtype, shape=shape, name=self.name)
        values = content.view(self.dtype.numpy()).reshape(shape)
        return ir.Tensor(values, dtype=self.dtype, name=self.name)


def cast_tensor(
    tensor: ir.TensorProtocol,
    dtype: ir.DataType,
    change: Callable[[NDArray[Any]], NDArray[Any]] = lambda values: values,
) -> ir.TensorProtocol:
    """Returns a constant in another dtype, made some values at a time when it is read if the old one is.

    Args:
        tensor: The constant.
        dtype: Of the new one, of whole bytes.
        change: From some values, shape (values,), to those that are cast.
    """

    def cast() -> Iterator[NDArray[Any]]:
        return (change(part).astype(dtype.numpy(), copy=False) for part in iterate_values(tensor))

    result = StreamedTensor(cast, dtype, tuple(tensor.shape.numpy()), tensor.name)
    return result if is_read_late(tensor) else result.make()
