"""Which values of a tensor share a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PerTensor:
    """All values: the scales have the shape ()."""

    def scales_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the scales of a tensor."""
        return ()

    def spread(self, scales: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Returns the scales in a shape that divides a tensor."""
        return scales

    def attributes(self, shape: Shape) -> Mapping[str, int]:
        """Returns the attributes of QuantizeLinear and DequantizeLinear."""
        return {}


@dataclass(frozen=True, slots=True)
class PerChannel:
    """The values at one position of `axis`: (8, 3, 5, 5) along axis 0 has 8 scales."""

    axis: int

    def scales_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the scales of a tensor."""
        return (shape[self.axis],)

    def spread(self, scales: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Returns the scales in a shape that divides a tensor."""
        return scales.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])

    def attributes(self, shape: Shape) -> Mapping[str, int]:
        """Returns the attributes of QuantizeLinear and DequantizeLinear."""
        return {"axis": self.axis}


@dataclass(frozen=True, slots=True)
class PerBlock:
    """So many values in a row along `axis`: (128, 10) along axis 0 in blocks of 64 has (2, 10) scales."""

    axis: int
    size: int

    def scales_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the scales, as DequantizeLinear wants it since opset 21."""
        return (*shape[: self.axis], shape[self.axis] // self.size, *shape[self.axis + 1 :])

    def spread(self, scales: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Returns the scales in a shape that divides a tensor."""
        return np.repeat(scales, self.size, self.axis)

    def split(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns a view of shape (outer, block, inner); (outer, inner), multiplied out, are the scales."""
        return values.reshape(-1, self.size, int(np.prod(values.shape[self.axis + 1 :])))

    def attributes(self, shape: Shape) -> Mapping[str, int]:
        """Returns the attributes of QuantizeLinear and DequantizeLinear."""
        return {"axis": self.axis, "block_size": self.size}


@dataclass(frozen=True, slots=True)
class PerToken:
    """All values along `axis`: (2, 7, 64) along axis 2 has (2, 7, 1) scales."""

    axis: int

    def scales_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the scales of a tensor."""
        axis = self.axis % len(shape)  # -1 is the last
        return (*shape[:axis], 1, *shape[axis + 1 :])

    def spread(self, scales: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """Returns the scales in a shape that divides a tensor."""
        return scales

    def attributes(self, shape: Shape) -> Mapping[str, int]:
        """Returns the attributes of QuantizeLinear and DequantizeLinear: one block is a whole row."""
        return {"axis": self.axis, "block_size": shape[self.axis]}


Granularity = PerTensor | PerChannel | PerBlock | PerToken
