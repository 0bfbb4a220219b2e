"""How large a product with constant weights can get at most.

An output is bounded by the largest magnitude of the input times the sum of the magnitudes of its weights.
What a norm has made is bounded better: its vectors lie on a sphere, so an output is at most the radius times
the length of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.node_facts import (
    STANDARD,
    find_norm,
    list_dims,
    multiply,
    read_batch_norm,
    read_constant,
)
from trtq.calibrators.signs import list_deciding
from trtq.models.tensors import open_values

Step = Callable[[Sequence[float]], float]
"""From the bounds of the inputs of a node to that of its outputs."""
Array = NDArray[Any]
_MOST_TAPS = 1 << 22
"""Weights that are measured at a time, which takes their memory several times."""
_FURTHEST = 32
"""How many nodes may lie between a norm and a product."""


@dataclass(frozen=True, slots=True)
class ChannelBounds:
    """What the channels of a tensor are at most: `slope` times the magnitude of another tensor, and `offset`.

    Attributes:
        origin: The other tensor; empty where the slope is 0, so that the bounds hold for all data.
        slope: Of shape (n,).
        offset: Of shape (n,).
    """

    origin: str
    slope: Array
    offset: Array

    def reach(self, magnitude: float) -> float:
        """Returns what the largest channel is at most, given the magnitude of the origin."""
        if self.origin and math.isinf(magnitude):
            return math.inf
        return float((self.slope * (magnitude if self.origin else 0.0) + self.offset).max(initial=0.0))

    def changed(self, factor: Array | float, more: Array | float) -> ChannelBounds:
        """Returns the bounds times a factor, and something more."""
        return ChannelBounds(self.origin, self.slope * factor, self.offset * factor + more)


Channels = dict[tuple[str, int], ChannelBounds]
"""By the tensor's name, and the axis of the channels."""


@dataclass(frozen=True, slots=True)
class _Sphere:
    """Vectors `scale * z + shift`, z no longer than the radius; `scale` and `shift` have the shape (n,)."""

    radius: float
    scale: Array
    shift: Array


def bound_linear(node: ir.Node, channels: Channels) -> Step:
    """Bounds Conv, ConvTranspose and Gemm, with a bias."""
    weight = _read_weight(node, 1)
    if weight is None:
        return lambda given: math.inf
    group = node.attributes.get_int("group", 1) or 1
    if node.op_type == "Conv":
        taps = weight.reshape(*weight.shape[:2], -1).transpose(2, 1, 0)
    elif node.op_type == "ConvTranspose":
        parts = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        taps = parts.transpose(3, 1, 0, 2).reshape(parts.shape[3], parts.shape[1], -1)
    else:
        taps = (weight.T if node.attributes.get_int("transB", 0) else weight)[None]
    is_gemm = node.op_type == "Gemm"
    taps = taps * (abs(node.attributes.get_float("alpha", 1.0) or 0.0) if is_gemm else 1.0)
    beta = abs(node.attributes.get_float("beta", 1.0) or 0.0) if is_gemm else 1.0
    is_plain = group == 1 and not node.attributes.get_int("transA", 0)
    given = _Operand.find(node.inputs[0], 1, taps.shape[1], channels if is_plain else None)
    gain, most = _measure(taps, list(_list_meeting(node, weight)), given)
    bias = read_constant(node, 2)
    if is_plain and (len(node.inputs) < 3 or node.inputs[2] is None):
        channels[str(node.outputs[0].name), 1] = most
    elif is_plain and bias is not None and bias.ndim <= 1:
        channels[str(node.outputs[0].name), 1] = most.changed(1.0, beta * np.abs(bias))
    return lambda given: gain * given[0] + (beta * given[2] if len(given) > 2 else 0.0)


def bound_product(node: ir.Node, place: int, channels: Channels) -> Step:
    """Bounds a MatMul with a constant in one place: 0 or 1."""
    weight = _read_weight(node, place)
    assert weight is not None
    weight = weight if place else np.swapaxes(weight, -1, -2) if weight.ndim > 1 else weight
    inner = max(weight.ndim - 2, 0)
    taps = np.moveaxis(weight, inner, 0).reshape(1, weight.shape[inner], -1)
    other = node.inputs[1 - place]
    rank = len(list_dims(other) or ())
    axis = rank - 1 if place or rank < 2 else rank - 2
    is_plain = bool(rank) and weight.ndim <= 2
    given = _Operand.find(other, axis, taps.shape[1], channels if is_plain else None)
    gain, most = _measure(taps, [[0]], given)
    if is_plain and weight.ndim == 2:
        channels[str(node.outputs[0].name), axis] = most
    return lambda given: gain * given[1 - place]


def carry_channels(node: ir.Node, channels: Channels) -> None:
    """Notes the bounds of the channels that a node makes of others, by a Relu or constants by channel."""
    name = str(node.outputs[0].name)
    found = read_batch_norm(node) if node.op_type == "BatchNormalization" else None
    known = channels.get((_name(node.inputs[0]), 1)) if found is not None else None
    if found is not None and known is not None:
        gain, mean, bias = found
        channels[name, 1] = known.changed(gain, np.abs(mean) * gain + np.abs(bias))
    dims = list_dims(node.outputs[0]) or ()
    for axis, size in enumerate(dims):
        if node.op_type in ("Identity", "Relu"):
            known = channels.get((_name(node.inputs[0]), axis))
            if known is not None:
                channels[name, axis] = known
        elif node.op_type in ("Add", "Mul", "Sub") and size:
            operand = _read_vector(node, axis, dims)
            known = channels.get((_name(node.inputs[1 - operand[0]]), axis)) if operand else None
            if operand is not None and known is not None:
                change = np.abs(operand[1])
                channels[name, axis] = (
                    known.changed(change, 0.0) if node.op_type == "Mul" else known.changed(1.0, change)
                )


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _read_weight(node: ir.Node, place: int) -> NDArray[np.float32] | None:
    """Returns the values of a constant input, not copied if they are float32: weights are large."""
    value = node.inputs[place]
    if value is None or value.const_value is None:
        return None
    values: NDArray[Any] = open_values(value.const_value)
    return values.astype(np.float32, copy=False)


def _measure(taps: Array, meeting: Sequence[Sequence[int]], given: _Operand) -> tuple[float, ChannelBounds]:
    """Returns what an output is at most: times the largest input, and by channel.

    Of large weights some outputs are measured at a time.

    Args:
        taps: The weights, of shape (places of the kernel, inputs, outputs).
        meeting: The places that meet in one output, for every kind of output.
        given: What is known of the inputs.
    """
    num_outputs = max(1, _MOST_TAPS // max(1, taps[..., :1].size))
    if num_outputs < taps.shape[-1]:
        starts = range(0, taps.shape[-1], num_outputs)
        return _join([_measure(taps[..., start : start + num_outputs], meeting, given) for start in starts])
    signs = (np.maximum(taps, 0), np.maximum(-taps, 0)) if given.is_positive else (np.abs(taps),)
    sums = _meet([part.sum(axis=1) for part in signs], meeting)
    gain, sphere, known, none = (
        float(sums.max(initial=0.0)),
        given.sphere,
        given.channels,
        np.zeros_like(sums),
    )
    if sphere is not None:
        scale, shift = sphere.scale.astype(taps.dtype), sphere.shift.astype(taps.dtype)
        lengths = sphere.radius * np.sqrt(np.square(scale[:, None] * taps).sum(axis=1))
        return gain, ChannelBounds("", none, _meet([lengths + np.abs(shift @ taps)], meeting))
    if known is not None:
        slope, offset = (
            _meet([side.astype(taps.dtype) @ part for part in signs], meeting)
            for side in (known.slope, known.offset)
        )
        return gain, ChannelBounds(known.origin, slope, offset)
    return gain, ChannelBounds(given.name, sums, none)


def _join(parts: Sequence[tuple[float, ChannelBounds]]) -> tuple[float, ChannelBounds]:
    """Returns the bounds of all outputs from those of some each, which know the same of the inputs."""
    origin = parts[0][1].origin
    slope, offset = (
        np.concatenate([getattr(item, side) for _, item in parts]) for side in ("slope", "offset")
    )
    return max(gain for gain, _ in parts), ChannelBounds(origin, slope, offset)


def _meet(parts: Sequence[Array], meeting: Sequence[Sequence[int]]) -> Array:
    """Returns the largest sums of the places that meet, by output."""
    largest: Array = np.max([part[places].sum(axis=0) for part in parts for places in meeting], axis=0)
    return largest


def _list_meeting(node: ir.Node, weight: Array) -> Iterator[Sequence[int]]:
    """Yields the places of the kernel that meet in one output: of a ConvTranspose those a stride apart."""
    kernel = weight.shape[2:] if node.op_type != "Gemm" else (1,)
    places = np.arange(math.prod(kernel)).reshape(kernel)
    if node.op_type != "ConvTranspose":
        yield places.reshape(-1).tolist()
        return
    strides = node.attributes.get_ints("strides") or [1] * len(kernel)
    dilations = node.attributes.get_ints("dilations") or [1] * len(kernel)
    offsets = [
        np.arange(size) * dilation % stride
        for size, dilation, stride in zip(kernel, dilations, strides, strict=True)
    ]
    for phases in product(*map(range, strides)):
        chosen = [np.flatnonzero(offset == phase) for offset, phase in zip(offsets, phases, strict=True)]
        yield places[np.ix_(*chosen)].reshape(-1).tolist()


@dataclass(frozen=True, slots=True)
class _Operand:
    """What is known of the vectors that weights are multiplied with.

    Attributes:
        name: Of the tensor.
        sphere: Where they lie, if a norm made them.
        channels: What each of their values is at most.
        is_positive: Whether none is negative; then weights of different signs do not add up.
    """

    name: str
    sphere: _Sphere | None
    channels: ChannelBounds | None
    is_positive: bool

    @classmethod
    def find(cls, value: ir.Value | None, axis: int, size: int, channels: Channels | None) -> _Operand:
        """Returns what is known of a tensor along an axis; without channels only its sign."""
        is_positive = list_deciding(value) == set()
        if channels is None:
            return cls(_name(value), None, None, is_positive)
        known = channels.get((_name(value), axis))
        if known is not None and known.slope.size != size:
            known = None
        return cls(_name(value), _find_sphere(value, axis, size), known, is_positive)


def _find_sphere(value: ir.Value | None, axis: int, size: int) -> _Sphere | None:
    """Returns where the vectors along an axis of this size lie, if a norm made them."""
    scale, shift = np.ones(size), np.zeros(size)
    for _ in range(_FURTHEST):
        node = value.producer() if value is not None else None
        dims = list_dims(value)
        if node is None or value is not node.outputs[0] or node.domain not in STANDARD:
            return None
        if dims is None or dims[axis : axis + 1] != [size]:
            return None
        kind, is_last = node.op_type, axis == len(dims) - 1
        if kind in ("LayerNormalization", "RMSNormalization") and is_last:
            gamma, beta = read_constant(node, 1), read_constant(node, 2)
            if node.attributes.get_int("axis", -1) not in (-1, axis) or gamma is None or gamma.size != size:
                return None
            if len(node.inputs) > 2 and node.inputs[2] is not None and (beta is None or beta.size != size):
                return None
            shift = shift + scale * (beta.reshape(-1) if beta is not None else 0.0)
            return _Sphere(math.sqrt(size), scale * gamma.reshape(-1), shift)
        if kind == "Div" and (norm := find_norm(node)) is not None:
            return _Sphere(math.sqrt(norm.size), scale, shift) if axis in norm.axes else None
        if kind in ("Add", "Sub", "Mul", "Div"):
            found = _read_vector(node, axis, dims)
            if found is None:
                return None
            place, vector = found
            if kind == "Add":
                shift = shift + scale * vector
            elif kind == "Mul":
                scale = scale * vector
            elif place == 0:  # a constant minus something, or by something
                return None
            elif kind == "Sub":
                shift = shift - scale * vector
            else:
                scale = scale / vector
            if not np.isfinite(scale).all():
                return None
            value = node.inputs[1 - place]
            continue
        moved = _move_back(node, axis, dims)
        if moved is None:
            return None
        value, axis = node.inputs[0], moved
    return None


def _read_vector(node: ir.Node, axis: int, dims: Sequence[int | None]) -> tuple[int, Array] | None:
    """Returns the constant operand, and where it is, if it changes along the axis only."""
    for place in (0, 1):
        constant, other = read_constant(node, place), list_dims(node.inputs[1 - place])
        if constant is None or other is None or len(other) != len(dims):
            continue
        shape = (1,) * (len(dims) - constant.ndim) + constant.shape
        size = dims[axis] or 0
        if other[axis] == size and constant.size in (1, shape[axis]) and shape[axis] in (1, size):
            return place, np.broadcast_to(constant.reshape(-1), (size,))
    return None


def _move_back(node: ir.Node, axis: int, dims: Sequence[int | None]) -> int | None:
    """Returns the axis of the first input along which its vectors are those of the output, if there is."""
    before = list_dims(node.inputs[0]) if node.inputs else None  # RandomNormal reads nothing
    if before is None:
        return None
    if node.op_type == "Identity":
        return axis
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm") or range(len(dims))[::-1]
        return int(order[axis])
    if node.op_type == "Slice":
        axes = read_constant(node, 3)
        cut = None if axes is None else {int(item) % len(dims) for item in axes.reshape(-1)}
        return None if cut is None or axis in cut else axis
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        behind = multiply(dims[axis + 1 :])
        places = [place for place, size in enumerate(before) if size == dims[axis]]
        return next((place for place in places if behind and multiply(before[place + 1 :]) == behind), None)
    return None
