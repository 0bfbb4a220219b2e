"""What the channels of the quantized activations are like, and which of them may be treated apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import NO_CHANNELS, NUM_PARTS, ChannelHalves, ChannelLayout, ChannelTally, Seen
from trtq.calibrators.observe import PassControl, PreparedPass, observe, prepare_pass
from trtq.models.packed import PackedModel, pack
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.rewrite.channels.operands import has_input_channels, num_input_channels
from trtq.workers import Shared, Workers, make_once


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


def find_channel_layouts(model: ir.Model, placement: Placement) -> dict[str, ChannelLayout]:
    """Returns where the channels are of each activation whose channels may be treated apart."""
    readers = find_channel_readers(model, placement)
    first = {name: found[0][1] for name, found in readers.items()}
    return {
        name: ChannelLayout(num_input_channels(node), node.op_type == "Conv") for name, node in first.items()
    }


def observe_channels(
    model: ir.Model,
    tensors: Sequence[str],
    layouts: Mapping[str, ChannelLayout],
    batches: Batches,
    control: PassControl,
    workers: Workers | None = None,
) -> ChannelHalves:
    """Returns the statistics of the channels over the even and over the odd feeds, by another pass.

    They are those, to the last bit, that a pass over the same tensors finds on its way. The sums are made in
    the same order, whoever makes them: those of every eighth feed first, then those of the parts.

    Args:
        model: The float graph; it is not changed.
        tensors: What is observed: other kernels may run, and round otherwise, where other tensors are.
        layouts: Those of them whose channels are wanted, and where these are.
        batches: The data.
        control: How the pass is made.
        workers: Who share it; None: this process does all of it.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    control = replace(control, channels=layouts)
    if not layouts:
        return NO_CHANNELS
    if workers is None:
        seen = observe(without_fp4(model), tensors, batches, control=control).channels
        assert seen is not None
        return seen
    shared = workers.share((pack(without_fp4(model)), tuple(tensors), batches, control))
    tally = ChannelTally()
    for part, found in enumerate(workers.map(partial(_observe_part, shared), range(NUM_PARTS))):
        tally.add(part, found)
    return tally.halves()


_Work = tuple[PackedModel, tuple[str, ...], Batches, PassControl]


def _observe_part(shared: Shared[_Work], part: int) -> Seen:
    """Returns what every eighth feed shows; this runs on a worker."""
    prepared = make_once(_prepare, shared)
    by_feed = replace(prepared, batches=replace(prepared.batches, files=()))  # else a part may be of files
    seen = by_feed.observe((part + 1, NUM_PARTS)).channels
    assert seen is not None
    return seen.odd if part % 2 else seen.even


def _prepare(work: _Work) -> PreparedPass:
    model, tensors, batches, control = work
    return prepare_pass(model.unpack(), tensors, batches, control)
