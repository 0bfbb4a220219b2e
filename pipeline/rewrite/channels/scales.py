"""Which scale and shift each channel of an activation gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.channels import ChannelStats
from trtq.calibrators.ranges import QMAX, Channels
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.operands import find_input, find_padding, is_depthwise, is_padded
from trtq.pipeline.rewrite.channels.producers import find_ends, find_producer, is_constant_clip
from trtq.pipeline.rewrite.channels.statistics import find_channel_readers

HEADROOM = 0.125
"""The share of its range that is left free in each channel for data that is not seen."""
_NARROWEST = 0.05
"""Channels narrower than this share of the widest count as so wide: few samples say little of them."""
_PRODUCTS = ("Gemm", "MatMul")
_NARROWEST_OF_MANY = 0.75
"""Of the channels of a matrix product, this share count as wide as the next one. Some never fire in the data,
behind a GELU, and far in other data."""
_UNBOUNDED = (-np.inf, np.inf)
_LEAST_SPREAD = 0.01
"""A tensor that stays within this share of its largest magnitude has shown one value, which is no range."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How far the channels of an activation are brought to one range.

    Attributes:
        fold: Exponent of the scales, 0 (none) to 1 (all channels get the same range), where the layer before
            takes them.
        insert: The same where a node must be inserted.
        depthwise: The same for depthwise convolutions, whose weights lose nothing by it.
        shift: Whether channels are centred too, where no zeros are padded and a node is inserted, as it then
            is behind a Clip.
        headroom: The share of its range that is left free in each channel for data that is not seen.
        pad: Whether they are centred too where zeros are padded, alike for all that read the tensor.
    """

    fold: float = 0.0
    insert: float = 0.0
    depthwise: float = 0.0
    shift: bool = False
    headroom: float = HEADROOM
    pad: bool = False


def plan_scales(
    model: ir.Model,
    placement: Placement,
    statistics: Mapping[str, ChannelStats],
    strength: Strength,
) -> dict[str, Channels]:
    """Returns the channels to rescale, by tensor; empty ones are left out.

    Scales are r ** exponent, with r the largest magnitude of each channel after its shift (SmoothQuant,
    arXiv 2211.10438, section 4, with the exponent alone: the weights have scales of their own for each
    output channel). Shifts are the middles of the channels (Outlier Suppression+, arXiv 2304.09145, section
    4.1), but rounded so that zero keeps a code of its own: most values behind a ReLU are zero, and none
    of them may get an error.
    """
    found: dict[str, Channels] = {}
    layers = {layer.name for layer in placement.layers}
    given = {name for name, encoding in placement.encodings if encoding.is_given}
    for tensor, readers in find_channel_readers(model, placement).items():
        if tensor not in statistics or tensor in given:
            continue
        nodes = [node for _, node in readers]
        if (channels := _plan_tensor(tensor, nodes, statistics[tensor], strength, layers)) is not None:
            found[tensor] = channels
    return found


def _plan_tensor(
    tensor: str,
    readers: Sequence[ir.Node],
    seen: ChannelStats,
    strength: Strength,
    layers: Collection[str],
) -> Channels | None:
    source = find_input(readers, tensor)
    producer = find_producer(source, readers, layers)
    # What a Clip bounds on both sides gains a bit by a shift: that is worth a node where shifts are tried.
    can_shift = producer is None or bool(producer.clips)
    keeps_zeros = find_padding(readers) is not None if strength.pad else not any(map(is_padded, readers))
    shifts = can_shift and strength.shift and keeps_zeros and _varies(seen)
    exponent = strength.fold if producer is not None and not shifts else strength.insert
    if all(map(is_depthwise, readers)):
        exponent = max(exponent, strength.depthwise)
    widest = np.maximum(np.abs(seen.minimum), np.abs(seen.maximum)).max(initial=0.0)
    if widest <= 0 or (exponent == 0 and not shifts) or len(seen.minimum) < 2:
        return None
    node = source.producer()
    ends = find_ends(node) if node is not None and is_constant_clip(node) else _UNBOUNDED
    products = all(reader.op_type in _PRODUCTS for reader in readers)
    return choose_scales(
        seen, exponent, shifts=shifts, ends=ends, headroom=strength.headroom, products=products
    )


def _varies(seen: ChannelStats) -> bool:
    """Whether the data says how far a channel reaches from its middle, as one input in all feeds does not."""
    magnitude = np.maximum(np.abs(seen.minimum), np.abs(seen.maximum)).max(initial=0.0)
    spread = (seen.maximum - seen.minimum).max(initial=0.0)
    return bool(spread > 2 * _LEAST_SPREAD * magnitude)


def choose_scales(
    seen: ChannelStats,
    exponent: float,
    *,
    shifts: bool,
    ends: tuple[float, float] = _UNBOUNDED,
    headroom: float = HEADROOM,
    products: bool = False,
) -> Channels:
    """Returns scales of which the largest is 1, the shifts, and the amax of all channels after both.

    Args:
        seen: What the channels are like.
        exponent: How far they are brought to one range.
        shifts: Whether they are centred first.
        ends: What no value of the tensor lies beyond, whatever the data: those of a Clip.
        headroom: The share of its range that is left free in each channel.
        products: Whether matrix products alone read it.
    """
    low, high = _widened(seen, ends, headroom)
    middle = (low + high) / 2 if shifts else np.zeros_like(low)
    reach = np.maximum(high - middle, middle - low)
    narrowest = max(_NARROWEST * reach.max(), np.quantile(reach, _NARROWEST_OF_MANY) if products else 0.0)
    scale = np.maximum(reach, narrowest) ** exponent
    scale /= scale.max()
    if shifts:
        step = (reach / scale).max() / QMAX * scale
        middle = np.rint(middle / step) * step
    amax = float((np.maximum(high - middle, middle - low) / scale).max())
    shift = tuple(middle.tolist()) if shifts and middle.any() else ()
    return Channels(scale=tuple(scale.tolist()), shift=shift, amax=amax)


def _widened(
    seen: ChannelStats, ends: tuple[float, float], headroom: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the ends of each channel with room for data that is not seen; a ReLU's zero stays the end."""
    room = headroom * (seen.maximum - seen.minimum)
    low = np.where(seen.minimum < 0, seen.minimum - room, seen.minimum)
    high = np.where(seen.maximum > 0, seen.maximum + room, seen.maximum)
    return np.maximum(low, ends[0]), np.minimum(high, ends[1])
