"""What tensors hold: weights that lie in another file, read one at a time, and codes."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trtq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import BufferedReader

    from numpy.typing import NDArray

_INFINITE = np.uint16(0x7C00)
"""The exponent that infinities and NaN of FP16 have."""
FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""The dtypes that networks compute in on a GPU."""

PIECE = 1 << 18
"""So many elements of a large tensor are looked at at a time: they fit the cache of a processor."""


def read_values(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Returns values of whole bytes; those of a tensor in another file are a copy, freed with its last use.

    `tensor.numpy()` maps the file and keeps what was read in memory as long as the tensor lives.

    Raises:
        ModelError: The file is gone, or shorter than it was.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    with _open(tensor) as file:
        raw = np.fromfile(file, np.uint8, tensor.nbytes)
    if raw.size != tensor.nbytes:
        raise _tell_of_end(tensor)
    return raw.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())


def open_values(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Returns values of whole bytes; of a tensor in another file pages are read as they are looked at.

    The kernel may drop these pages at any time, and the array lets go of the file with its last use.

    Raises:
        ModelError: The file is gone, or shorter than it was.
    """
    if not isinstance(tensor, ir.ExternalTensor) or not tensor.nbytes:
        return tensor.numpy()
    dtype, shape = tensor.dtype.numpy(), tuple(tensor.shape.numpy())
    with _open(tensor) as file:
        try:
            return np.memmap(file, dtype, "r", tensor.offset or 0, shape).view(np.ndarray)
        except ValueError as error:
            raise _tell_of_end(tensor) from error


def iterate_rows(tensor: ir.TensorProtocol, rows: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yields so many rows of a tensor at a time, and where they lie in it.

    Those of a tensor in another file are read into the same memory again and again: take what is needed of
    them before the next.

    Args:
        tensor: Values of whole bytes, at least one axis.
        rows: At the most; a row is all of one index of the first axis.

    Raises:
        ModelError: The file is gone, or shorter than it was.
    """
    shape = tuple(tensor.shape.numpy())
    places = [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
    if not isinstance(tensor, ir.ExternalTensor):
        values = read_values(tensor)
        yield from ((place, values[place]) for place in places)
        return
    dtype, size = tensor.dtype.numpy(), tensor.nbytes // max(shape[0], 1)
    buffer = np.empty(min(rows, shape[0]) * size, np.uint8)
    with _open(tensor) as file:
        for place in places:
            part = buffer[: (place.stop - place.start) * size]
            if file.readinto(part.data) != part.size:
                raise _tell_of_end(tensor)
            yield place, part.view(dtype).reshape(-1, *shape[1:])


def iterate_values(tensor: ir.TensorProtocol) -> Iterator[NDArray[Any]]:
    """Yields the values of a tensor in their order, some at a time: shape (values,), none of an empty one.

    Those of a tensor in another file are read into the same memory again and again, as by `iterate_rows`.

    Raises:
        ModelError: The file is gone, or shorter than it was.
    """
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth % 8:
        flat = tensor.numpy().reshape(-1)
        yield from (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
        return
    dtype = tensor.dtype.numpy()
    buffer = np.empty(min(PIECE * dtype.itemsize, tensor.nbytes), np.uint8)
    with _open(tensor) as file:
        for start in range(0, tensor.nbytes, max(buffer.size, 1)):
            part = buffer[: tensor.nbytes - start]
            if file.readinto(part.data) != part.size:
                raise _tell_of_end(tensor)
            yield part.view(dtype)


@contextmanager
def _open(tensor: ir.ExternalTensor) -> Iterator[BufferedReader]:
    try:
        with Path(tensor.path).open("rb") as file:
            file.seek(tensor.offset or 0)
            yield file
    except OSError as error:
        raise ModelError(
            f"cannot read the weights of {tensor.name!r} from {tensor.path}: {error.strerror}"
        ) from error


def _tell_of_end(tensor: ir.ExternalTensor) -> ModelError:
    return ModelError(f"the weights of {tensor.name!r} end early in {tensor.path}; it has been changed")


def is_read_late(tensor: ir.TensorProtocol | None) -> bool:
    """Returns whether a constant is not in memory: it lies in another file, or is made when it is read."""
    return isinstance(tensor, ir.ExternalTensor | ir.LazyTensor)


def map_tensor(
    tensor: ir.TensorProtocol,
    change: Callable[[NDArray[Any]], NDArray[Any]],
) -> ir.TensorProtocol:
    """Returns a constant of the same shape with changed values, made when it is read if the old one is.

    Args:
        tensor: The constant.
        change: From its values to those of the new one, which are cast to its dtype.
    """
    dtype = tensor.dtype

    def make() -> ir.TensorProtocol:
        return ir.tensor(
            np.asarray(change(read_values(tensor))).astype(dtype.numpy(), copy=False), name=tensor.name
        )

    if is_read_late(tensor):
        return ir.LazyTensor(make, dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
    return make()


def scale_tensor(tensor: ir.TensorProtocol, factor: NDArray[np.float64]) -> ir.TensorProtocol:
    """Returns a constant times a factor of a shape that multiplies it, worked out in float64.

    It is made when it is read if the constant is, so that one weight is in memory at a time, and of float64
    some rows.
    """

    def multiply(values: NDArray[Any]) -> NDArray[Any]:
        made, factors = np.empty_like(values), np.broadcast_to(factor, values.shape)
        for rows in list_rows(values):
            made[rows] = values[rows].astype(np.float64) * factors[rows]
        return made

    shape = tuple(tensor.shape.numpy())
    if np.broadcast_shapes(shape, factor.shape) == shape:
        return map_tensor(tensor, multiply)
    return ir.tensor((read_values(tensor).astype(np.float64) * factor).astype(tensor.dtype.numpy()))


def list_rows(values: NDArray[Any]) -> Sequence[Any]:
    """Returns the indices of some rows each, a piece together; of a number without axes that of all."""
    if not values.ndim:
        return (...,)
    step = max(1, PIECE // max(1, math.prod(values.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def require_finite(values: NDArray[Any], name: str) -> None:
    """Refuses a float weight that has no scale.

    Raises:
        ModelError: One of the values is infinite or not a number.
    """
    if not _are_finite(values):
        bad = ~np.isfinite(values)
        raise ModelError(
            f"weight {name!r} has {int(bad.sum())} values that are infinite or not a number, such as "
            f"{values[bad][0]}; a weight that is quantized must be finite: export the model again"
        )


def _are_finite(values: NDArray[Any]) -> bool:
    """Returns whether all values are, a piece at a time; of FP16 the bits are read, four times as fast."""
    flat = np.ravel(values, order="K")
    pieces = (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
    if values.dtype != np.float16:
        return all(np.isfinite(piece).all() for piece in pieces)
    return all((piece.view(np.uint16) & _INFINITE).max() < _INFINITE for piece in pieces)


def find_largest_code(dtype: ir.DataType | None) -> float:
    """Returns the largest magnitude of a code: 127 of int8, 448 of float8e4m3fn; infinite if not known."""
    if dtype is None:
        return math.inf
    if dtype.is_floating_point():
        return float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    return float(2 ** (dtype.bitwidth - int(dtype.is_signed())) - 1)
