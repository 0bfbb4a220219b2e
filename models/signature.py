"""The inputs and outputs of a model: names, dtypes, shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

_OF_SAMPLES = re.compile(
    r"(?!.*(seq|len|tok|step|frame|time))[a-z0-9_]*batch[a-z0-9_]*|n|b|bs|((num|n)_)?samples?", re.IGNORECASE
)
_NO_NAME = re.compile(
    r"|\?|-1|none|[su]\d+|unk__\d+|(.*_)?dim_?\d+|.*dynamic_axes_\d+|dynamicdimension\.\d+", re.IGNORECASE
)

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. `dtype` is numpy's name; a dim is its size, its symbol, or None if unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether a dimension is left open."""
        return not all(isinstance(dim, int) for dim in self.shape)

    def fits(self, shape: Sequence[int]) -> bool:
        """Returns whether an array of this shape may be fed."""
        return fits_dims(shape, self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {show_shape(self.shape)}"


def fits_dims(shape: Sequence[int], dims: Sequence[int | str | None]) -> bool:
    """Returns whether a shape has these dims; what is not a number is open."""
    return len(shape) == len(dims) and all(
        not isinstance(want, int) or want == have for want, have in zip(dims, shape, strict=True)
    )


def names_samples(dim: str | None) -> bool | None:
    """Returns whether the name of an open axis says that samples lie along it, such as "batch_size" or "N".

    None if it is no name, or one that exporters and loading make up, such as "s0" or "x_dim0".
    """
    if dim is None or _NO_NAME.fullmatch(dim):
        return None
    return _OF_SAMPLES.fullmatch(dim) is not None


def show_shape(shape: Sequence[int | str | None]) -> str:
    """Returns a shape as text: `(N, 3, 224, 224)`."""
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"


def require_same_inputs(
    reference: str, wanted: Sequence[TensorSpec], other: str, given: Sequence[TensorSpec]
) -> None:
    """Refuses a model that takes other inputs than the one that it is put beside.

    Raises:
        ModelError: Their names or dtypes differ; both are shown.
    """
    if {item.name: item.dtype for item in wanted} != {item.name: item.dtype for item in given}:
        theirs, ours = (", ".join(f"{item.name} {item.dtype}" for item in each) for each in (given, wanted))
        raise ModelError(
            f"{other} takes {theirs}, {reference} takes {ours}; give models with the same inputs"
        )


def match_floats(given: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Returns the inputs of a model with the float dtypes of another's: what runs it casts what it is fed."""
    floats = {item.name: item.dtype for item in wanted if item.dtype in _FLOATS}
    return [
        replace(item, dtype=floats.get(item.name, item.dtype)) if item.dtype in _FLOATS else item
        for item in given
    ]


def read_inputs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Returns the inputs that a caller must feed.

    Raises:
        ModelError: An input is not a tensor, or a tensor of strings.
    """
    return tuple(_spec_of(value, "input") for value in model.graph.inputs)


def outputs_of(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Returns the outputs.

    Raises:
        ModelError: An output is not a tensor, or a tensor of strings.
    """
    return tuple(_spec_of(value, "output") for value in model.graph.outputs)


def _spec_of(value: ir.Value, kind: str) -> TensorSpec:
    if value.name is None or not isinstance(value.type, ir.TensorType):
        raise ModelError(
            f"{kind} {value.name!r} is {value.type or 'of unknown type'}; trtq and TensorRT take tensors only"
        )
    if value.dtype is ir.DataType.STRING:
        raise ModelError(
            f"{kind} {value.name!r} is a tensor of strings, which TensorRT cannot take; "
            f"cut the string processing off the model"
        )
    if value.dtype is None or value.dtype is ir.DataType.UNDEFINED:
        raise ModelError(f"{kind} {value.name!r} has no element type; export the model again")
    if value.shape is None:
        raise ModelError(f"{kind} {value.name!r} has no shape, not even a rank; export the model with shapes")
    shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)
