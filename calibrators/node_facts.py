"""What a graph says of a node without data: its constants, the sizes of its tensors, whether it is a norm."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.tensors import read_values

STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Norm:
    """What a quotient c / sqrt(mean(c * c) + epsilon) takes the mean over.

    Attributes:
        size: How many values; none of n values is larger than the root of the sum of their squares.
        axes: Along which axes, counted from the first.
    """

    size: int
    axes: Collection[int]


def read_constant(node: ir.Node, place: int) -> NDArray[np.float64] | None:
    """Returns the values of an input if they are constant."""
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    values: NDArray[Any] = read_values(value.const_value)
    return values.astype(np.float64)


def is_constant(node: ir.Node, place: int) -> bool:
    """Returns whether an input has the same values for all data."""
    value = node.inputs[place] if place < len(node.inputs) else None
    return value is not None and value.const_value is not None


def list_dims(value: ir.Value | None) -> Sequence[int | None] | None:
    """Returns the sizes of a tensor, None for those that are open; None if not even their number is known."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def count_elements(value: ir.Value | None, axes: Sequence[int] | None) -> int | None:
    """Returns the number of elements along some axes, or all; None if it is open."""
    dims = list_dims(value)
    if dims is None:
        return None
    chosen = range(len(dims)) if axes is None else axes
    if any(not -len(dims) <= axis < len(dims) for axis in chosen):
        return None
    return multiply([dims[axis] for axis in chosen])


def multiply(dims: Sequence[int | None]) -> int | None:
    """Returns the product of sizes; None if one is open."""
    sizes = [size for size in dims if size is not None]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def find_axes(node: ir.Node) -> Sequence[int] | None:
    """Returns the axes of a reduction; None for all, which bounds those that are computed, too."""
    axes = read_constant(node, 1)
    if axes is not None and axes.size:
        return [int(axis) for axis in axes.reshape(-1)]
    return node.attributes.get_ints("axes") or None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Returns the node that makes a value if it is of this type."""
    node = None if value is None else value.producer()
    is_standard = node is not None and node.domain in STANDARD
    return node if node is not None and is_standard and node.op_type == op_type else None


def find_norm(node: ir.Node) -> Norm | None:
    """Returns what a Div takes the mean over if it is a norm; None for other quotients."""
    divided, root = node.inputs[0], made_by(node.inputs[1], "Sqrt")
    total = root and made_by(root.inputs[0], "Add")
    means = [made_by(value, "ReduceMean") for value in total.inputs] if total else []
    mean = next((item for item in means if item is not None), None)
    square = mean and (made_by(mean.inputs[0], "Pow") or made_by(mean.inputs[0], "Mul"))
    if mean is None or square is None or square.inputs[0] is not divided:
        return None
    assert total is not None
    added = [read_constant(total, place) for place, item in enumerate(means) if item is not mean]
    is_positive = all(epsilon is not None and (epsilon > 0).all() for epsilon in added)
    if not is_positive or mean.attributes.get_int("keepdims", 1) != 1:
        return None
    is_square = (square.op_type == "Mul" and square.inputs[1] is divided) or (
        square.op_type == "Pow"
        and (exponent := read_constant(square, 1)) is not None
        and (exponent == 2).all()
    )
    axes, dims = find_axes(mean), list_dims(mean.inputs[0])
    size = count_elements(mean.inputs[0], axes)
    if not is_square or size is None or dims is None:
        return None
    if any(epsilon is None or epsilon.ndim > len(dims) for epsilon in added):  # which would move the axes
        return None
    return Norm(size, {axis % len(dims) for axis in (range(len(dims)) if axes is None else axes)})


def read_batch_norm(
    node: ir.Node,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns gain, mean and bias of a BatchNormalization, by channel; None if they are not constant."""
    constants = [read_constant(node, place) for place in range(1, 5)]
    if any(item is None for item in constants) or node.attributes.get_int("training_mode", 0) != 0:
        return None
    scale, bias, mean, var = (np.asarray(item) for item in constants)
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    return np.abs(scale) / np.sqrt(np.maximum(var + epsilon, 1e-38)), mean, bias
