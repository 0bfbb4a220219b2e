"""The inputs of a PyTorch module, as `--input x:Nx3x224x224:float32` gives them, and examples of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import UsageError
from trtq.models.signature import fits_dims

_TEXT = re.compile(r"(?P<name>[^:\s]+):(?P<dims>[A-Za-z0-9_]+?)(?::(?P<dtype>\w+))?")
_DIM = re.compile(r"[1-9]\d*|[A-Z][A-Za-wyz0-9_]*|batch")
FLOATS = ("float32", "float16", "bfloat16", "float64")
_DTYPES = (*FLOATS, "int64", "int32", "int8", "uint8", "bool")
_BATCH, _OTHER = 2, 64
"""Sizes of open dims in the example: 1 would be taken for a constant by PyTorch."""


@dataclass(frozen=True, slots=True)
class ModuleInput:
    """An input of a module.

    Attributes:
        name: In the exported model.
        dims: Sizes; an open one is a name such as "N", or a sum of these such as "past+sequence".
        dtype: numpy's name.
        below: What integers in examples lie below: ids and masks all hold 0 and 1.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: str = "float32"
    below: int = 2

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise UsageError(f"input {self.name!r} has dtype {self.dtype!r}; use one of {', '.join(_DTYPES)}")

    @property
    def open_axes(self) -> dict[int, str]:
        """The names of the open dims by axis; that of a sum too."""
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape with these sizes of the open dims.

        Args:
            sizes: By name; one that is missing is 2 on axis 0 and 64 on others.
        """
        return tuple(
            dim
            if isinstance(dim, int)
            else sum(sizes.get(part, _OTHER if axis else _BATCH) for part in dim.split("+"))
            for axis, dim in enumerate(self.dims)
        )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether an array of this shape may be fed."""
        return fits_dims(shape, self.dims)

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.dims))}:{self.dtype}"

    def example(self, sizes: Mapping[str, int], seed: int = 0) -> NDArray[Any]:
        """Returns random values: normal for floats, of 0 to `below` for integers."""
        generator = np.random.default_rng(seed)
        kind = np.dtype(self.dtype)
        shape = self.shape(sizes)
        if kind.kind == "f":
            return generator.standard_normal(shape).astype(kind)
        return generator.integers(0, self.below, shape).astype(kind)


def parse_input(text: str) -> ModuleInput:
    """Returns the input that a text such as `x:Nx3x224x224:float32` describes.

    Letters are open dims; the same letter is the same size. Without a dtype it is float32.

    Raises:
        UsageError: The text is none.
    """
    found = _TEXT.fullmatch(text.strip())
    dims = found["dims"].split("x") if found else []
    if found is None or not all(_DIM.fullmatch(dim) for dim in dims):
        raise UsageError(
            f"{text!r} is not an input; write name:Nx3x224x224:float32, with a capital letter for a "
            "dynamic dim"
        )
    sizes = tuple(int(dim) if dim.isdecimal() else dim for dim in dims)
    return ModuleInput(found["name"], sizes, found["dtype"] or "float32")


def check_sizes(sizes: Mapping[str, int], inputs: Sequence[ModuleInput]) -> None:
    """Raises UsageError if a size is given for something that is not an open dim of these inputs."""
    dims = sorted({part for item in inputs for dim in item.open_axes.values() for part in dim.split("+")})
    for name in sizes:
        if name not in dims:
            raise UsageError(
                f"a size is given for {name!r}, but the dynamic dims are {', '.join(dims) or 'none'} "
                f"of {' and '.join(map(str, inputs))}"
            )


def parse_sizes(texts: tuple[str, ...]) -> dict[str, int]:
    """Returns the sizes of open dims that texts such as `H=256` give.

    Raises:
        UsageError: A text gives none.
    """
    sizes = {}
    for text in texts:
        name, _, size = text.partition("=")
        if not (name.isidentifier() and size.isdecimal() and int(size) > 0):
            raise UsageError(f"{text!r} is not a size; write NAME=SIZE, such as H=256")
        sizes[name] = int(size)
    return sizes
