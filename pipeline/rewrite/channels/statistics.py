"""What the channels of the quantized activations are like: one pass that takes three numbers of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.models.packed import PackedModel, pack
from trtq.models.session import Session, open_session, run
from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.opset import read_opset
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.rewrite.channels.operands import has_input_channels, num_input_channels
from trtq.workers import Shared, Workers, make_once

_FLOAT32 = ir.DataType.FLOAT
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean")
_AXES_AS_INPUT = 18
_NUM_PARTS = 8
"""Even, so that a part holds even feeds alone, or odd ones."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """The extremes and the mean of each channel of one tensor.

    Attributes:
        minimum: float64, shape (channels,).
        maximum: float64, shape (channels,).
        mean: float64, shape (channels,); of the means of the feeds, by how many samples each has.
        num_samples: How many samples they are of.
    """

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    num_samples: int = 1

    def merged(self, other: ChannelStats) -> ChannelStats:
        """Returns the statistics of both."""
        total = self.num_samples + other.num_samples
        return ChannelStats(
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            (self.mean * self.num_samples + other.mean * other.num_samples) / total,
            total,
        )


def find_channel_readers(
    model: ir.Model, placement: Placement
) -> dict[str, tuple[tuple[QuantizedNode, ir.Node], ...]]:
    """Returns the quantized layers of each activation whose channels may be treated apart.

    Every quantized reader must be a layer with a weight that can be scaled by the same channels, and that
    weight may meet no other activation: else it would be needed twice.
    """
    nodes = {node.name: node for node in model.graph}
    found: dict[str, list[tuple[QuantizedNode, ir.Node]]] = {}
    refused: set[str] = set()
    for layer in placement.quantized:
        node = nodes[layer.name]
        for _, tensor in layer.activations:
            if has_input_channels(layer, node) and _is_own(node.inputs[1], tensor):
                found.setdefault(tensor, []).append((layer, node))
            else:
                refused.add(tensor)
    return {
        tensor: tuple(readers)
        for tensor, readers in found.items()
        if tensor not in refused
        and len({(node.op_type == "Conv", num_input_channels(node)) for _, node in readers}) == 1
    }


def _is_own(weight: ir.Value | None, tensor: str) -> bool:
    assert weight is not None
    return all(user.inputs[0] is not None and user.inputs[0].name == tensor for user, _ in weight.uses())


def observe_channels(
    model: ir.Model, placement: Placement, batches: Batches, workers: Workers | None = None
) -> tuple[Mapping[str, ChannelStats], Mapping[str, ChannelStats]]:
    """Returns the statistics of the channels over the even and over the odd feeds, by tensor.

    The reductions run inside the session: no tensor leaves it. The sums are made in the same order, whoever
    makes them: those of every eighth feed first, then those of the parts.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        batches: The data.
        workers: Who share it; None: this process does all in one pass.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    readers = find_channel_readers(model, placement)
    tapped, outputs = _tapped(model, {name: found[0][1] for name, found in readers.items()})
    tapped = without_fp4(tapped)
    if workers is None:
        work = _ChannelPass(open_session(tapped, optimize=True), outputs)
        parts: list[dict[str, ChannelStats]] = [{} for _ in range(_NUM_PARTS)]
        for index, feed in enumerate(batches):
            work.add(parts[index % _NUM_PARTS], feed)
    else:
        shared = workers.share((pack(tapped), outputs, batches))
        parts = list(workers.map(partial(_observe_part, shared), range(_NUM_PARTS)))
    return _merge(parts[0::2]), _merge(parts[1::2])


@dataclass(frozen=True, slots=True)
class _ChannelPass:
    """A session with the reductions of each tensor as its outputs."""

    session: Session
    outputs: Mapping[str, tuple[str, ...]]

    def add(self, stats: dict[str, ChannelStats], feed: Feed) -> None:
        """Adds what a feed shows."""
        wanted = [name for group in self.outputs.values() for name in group]
        arrays = {port.name: feed.arrays[port.name] for port in self.session.get_inputs()}
        found = dict(zip(wanted, run(self.session, wanted, arrays), strict=True)) if wanted else {}
        for name, group in self.outputs.items():
            low, high, mean = (found[output].astype(np.float64).reshape(-1) for output in group)
            seen = ChannelStats(low, high, mean, feed.num_samples)
            stats[name] = stats[name].merged(seen) if name in stats else seen


def _observe_part(
    shared: Shared[tuple[PackedModel, Mapping[str, tuple[str, ...]], Batches]], part: int
) -> dict[str, ChannelStats]:
    """Returns what every eighth feed shows; this runs on a worker."""
    work, batches = make_once(_open_pass, shared)
    stats: dict[str, ChannelStats] = {}
    for feed in batches.every(part, _NUM_PARTS):
        work.add(stats, feed)
    return stats


def _open_pass(
    work: tuple[PackedModel, Mapping[str, tuple[str, ...]], Batches],
) -> tuple[_ChannelPass, Batches]:
    model, outputs, batches = work
    return _ChannelPass(open_session(model.unpack(), optimize=True), outputs), batches


def _merge(parts: Sequence[Mapping[str, ChannelStats]]) -> dict[str, ChannelStats]:
    merged: dict[str, ChannelStats] = {}
    for part in parts:
        for name, seen in part.items():
            merged[name] = merged[name].merged(seen) if name in merged else seen
    return merged


def _tapped(model: ir.Model, readers: Mapping[str, ir.Node]) -> tuple[ir.Model, dict[str, tuple[str, ...]]]:
    """Returns a clone whose only outputs are the reductions of the tensors, three each."""
    tapped = model.clone()
    edit, values = GraphEditor(tapped), map_values(tapped.graph)
    tapped.graph.outputs.clear()
    outputs: dict[str, tuple[str, ...]] = {}
    for name, reader in readers.items():
        prefix = f"trtq_channels_{len(outputs)}"
        flat = _flatten(edit, values[name], reader, prefix)
        reduced = [_reduce(edit, kind, flat, reader, f"{prefix}_{kind}") for kind in _REDUCTIONS]
        tapped.graph.outputs.extend(reduced)
        outputs[name] = tuple(str(value.name) for value in reduced)
    return tapped, outputs


def _flatten(edit: GraphEditor, value: ir.Value, reader: ir.Node, prefix: str) -> ir.Value:
    """Returns the tensor in FP32, and as a matrix with the channels last unless a Conv reads it."""
    floats = edit.cast(value, _FLOAT32, output=f"{prefix}_float", name=f"{prefix}_Cast")
    if reader.op_type == "Conv":
        return floats
    shape = edit.add_constant(f"{prefix}_shape", np.array([-1, num_input_channels(reader)], np.int64))
    like = ir.val(None, _FLOAT32)
    return edit.insert("Reshape", [floats, shape], like=like, output=f"{prefix}_matrix")


def _reduce(edit: GraphEditor, kind: str, value: ir.Value, reader: ir.Node, name: str) -> ir.Value:
    """Returns the minimum, maximum or mean over all axes but that of the channels."""
    like = ir.val(None, _FLOAT32)
    axes = [0]
    if reader.op_type == "Conv":
        axes += range(2, read_constant(reader.inputs[1]).ndim)
    if read_opset(edit.model) < _AXES_AS_INPUT:
        return edit.insert(kind, [value], {"axes": axes, "keepdims": 0}, like=like, output=name)
    given = edit.add_constant(f"{name}_axes", np.array(axes, np.int64))
    return edit.insert(kind, [value, given], {"keepdims": 0}, like=like, output=name)
