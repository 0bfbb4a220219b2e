"""Which scale of a TensorRT calibration cache belongs to which tensor of the graph that trtq quantizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from trtq.calibrators.cache import SMALLEST_SCALE, CalibrationCache
from trtq.calibrators.ranges import FP16_LIMIT, QMAX, Range, Ranges
from trtq.errors import ArtifactError
from trtq.pipeline.graph.edit import map_values
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.onnx_file import read_proto
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, Placement, place

_LARGEST_SCALE = float(np.finfo(np.float32).max) / QMAX
_REARRANGING = frozenset({
    "DepthToSpace", "Dropout", "Flatten", "Identity", "Reshape", "SpaceToDepth", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
_KEEPS_SCALE = _REARRANGING | {"MaxPool"}
_FOLDED = ("BatchNormalization", "Add")

How = Literal["name", "other name", "same scale"]


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A quantized tensor with its scale.

    Attributes:
        tensor: In the graph that is quantized.
        key: In the cache.
        scale: As in the cache.
        how: "name": both are called alike; "other name": the file calls this tensor so, before
            BatchNormalization, bias or Identity were folded away; "same scale": the key is a tensor that is
            only rearranged into or out of this one, or of which this one is the MaxPool.
    """

    tensor: str
    key: str
    scale: float
    how: How


@dataclass(frozen=True, slots=True)
class UnmappedKey:
    """A key of the cache that is no tensor of the model."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class UncoveredTensor:
    """A tensor for which the cache has no scale, and the nodes that stay as they are for that."""

    tensor: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Migration:
    """What became of every key of a cache and of every tensor that needs a scale.

    Attributes:
        mapped: The quantized tensors, in graph order.
        unused: Keys of tensors of the model that no quantized layer reads.
        unmapped: Keys that are no tensors of the model.
        uncovered: Tensors without a scale.
        folded_names: Whether the keys are those of the graph after trtq's folding, not those of the file.
    """

    mapped: tuple[MappedTensor, ...]
    unused: tuple[str, ...]
    unmapped: tuple[UnmappedKey, ...]
    uncovered: tuple[UncoveredTensor, ...]
    folded_names: bool = False


def place_from_cache(
    graph: Graph,
    cache: CalibrationCache,
    source: str,
    *,
    skip: Sequence[str] = (),
    op_types: Sequence[str] = DEFAULT_OP_TYPES,
    force: Sequence[str] = (),
) -> tuple[Placement, Ranges, Migration]:
    """Returns what can be quantized with the scales of a cache, their ranges, and what became of each key.

    Amax is 127 times the scale, exactly, so that quantizing in FP32 gives the cache's scale again, bit for
    bit. A layer whose input has no scale stays float, with the reason.

    Args:
        graph: The float model.
        cache: As TensorRT wrote it for that model.
        source: Where the cache came from, for messages.
        skip: Regular expressions of nodes that keep their precision.
        op_types: The types of nodes to quantize.
        force: Regular expressions of nodes that are quantized although a rule finds it not worth it.

    Raises:
        ArtifactError: The cache is for another model: no key is a tensor of it, or of one that is quantized.
    """
    names, folded_names = _names(graph, cache.scales)
    file = read_proto(graph.path).graph
    tensors = dict.fromkeys((*_tensors(file), *names))
    if tensors.keys().isdisjoint(cache.scales):
        raise ArtifactError(
            f"{source} is a cache for another model: it has scales for {_some(cache.scales)}, "
            f"the tensors of {graph.path} are {_some(tensors)}"
        )
    found = {name: _find(value, names, cache.scales) for name, value in _computed(graph).items()}
    placement, uncovered = _covered(graph, found, skip, op_types, force)
    if uncovered and not placement.activations:
        raise ArtifactError(
            f"{source} has no scale for any tensor of {graph.path} that quantized layers read: "
            f"{_some(item.tensor for item in uncovered)}; is it for another model?"
        )
    mapped = tuple(item for name in placement.activations if isinstance(item := found[name], MappedTensor))
    used, constants = {item.key for item in mapped}, _constants(file)
    migration = Migration(
        mapped,
        tuple(key for key in cache.scales if key in tensors and key not in used),
        tuple(UnmappedKey(key, _why(key, constants)) for key in cache.scales if key not in tensors),
        uncovered,
        folded_names,
    )
    amaxes = {item.tensor: item.scale * QMAX for item in found.values() if isinstance(item, MappedTensor)}
    ranges = Ranges(
        tensors={item.tensor: Range(amax := amaxes[item.tensor], -amax, amax) for item in mapped},
        method=f"calibration cache by {cache.origin}",
        model_sha256=graph.sha256,
        data=source,
        num_samples=0,
        beyond_fp16={name: amax for name, amax in amaxes.items() if amax > FP16_LIMIT},
    )
    return placement, ranges, migration


def rename_as_in_file(cache: CalibrationCache, graph: Graph) -> CalibrationCache:
    """Returns a cache of trtq's own graph with the names that its tensors have in the ONNX file.

    Raises:
        ArtifactError: The cache holds no tensor of the graph.
    """
    names = map_names_in_file(graph)
    if cache.scales and names.keys().isdisjoint(cache.scales):
        raise ArtifactError(
            f"these ranges are for another model than {graph.path}: they hold {_some(cache.scales)}, "
            f"the model has {_some(names)}"
        )
    scales = {own: scale for tensor, scale in cache.scales.items() for own in names.get(tensor, (tensor,))}
    return replace(cache, scales=scales)


def map_names_in_file(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Returns the names that the ONNX file, and so TensorRT, has for each tensor of the graph.

    Loading removes Identity nodes and folds BatchNormalization and bias additions into the convolution before
    them. What a convolution then computes has the name of its output, but the values of what was folded: that
    tensor's names are the ones returned.
    """
    file = read_proto(graph.path).graph
    roots = _roots(file)
    members: dict[str, list[str]] = defaultdict(list)
    for name in _tensors(file):
        members[roots.get(name, name)].append(name)
    after, loaded = _after_folding(file, roots), _computed(graph).keys()
    result = {}
    for name in loaded:
        root = roots.get(name, name)
        while root in after and loaded.isdisjoint(members[after[root]]):
            root = after[root]
        own = members.get(root, [name])
        result[name] = tuple(sorted(own, key=lambda other: other != name))  # its own name first
    return result


def _roots(file: onnx.GraphProto) -> dict[str, str]:
    """Returns the tensor that each output of an Identity is a copy of, in the end."""
    roots: dict[str, str] = {}
    for node in file.node:  # in topological order, as ONNX demands
        if node.op_type == "Identity":
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    return roots


def _after_folding(file: onnx.GraphProto, roots: Mapping[str, str]) -> dict[str, str]:
    """Returns what each tensor would become if the only node that reads it were folded into its producer."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    outputs = {roots.get(value.name, value.name) for value in file.output}
    for node in file.node:
        for name in dict.fromkeys(roots.get(name, name) for name in _read_by(node)):
            if node.op_type != "Identity":
                readers[name].append(node)
    return {
        name: roots.get(nodes[0].output[0], nodes[0].output[0])
        for name, nodes in readers.items()
        if len(nodes) == 1 and nodes[0].op_type in _FOLDED and name not in outputs
    }


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yields what a node reads, also inside its bodies."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from _read_by(inner)


def _tensors(file: onnx.GraphProto) -> list[str]:
    """Returns the names of all tensors that are no constants."""
    weights = {item.name for item in file.initializer}
    computed = (name for node in file.node if node.op_type != "Constant" for name in node.output if name)
    return [*(value.name for value in file.input if value.name not in weights), *computed]


def _constants(file: onnx.GraphProto) -> set[str]:
    """Returns the names of all constants, also those that TensorRT gives them."""
    names = {item.name for item in file.initializer}
    names |= {name for node in file.node if node.op_type == "Constant" for name in node.output}
    return names | {f"{name}_output" for name in names}


def _computed(graph: Graph) -> dict[str, ir.Value]:
    """Returns the tensors of the loaded graph that are no constants, by name."""
    values = map_values(graph.model.graph)
    return {name: value for name, value in values.items() if not value.is_initializer()}


def _names(graph: Graph, scales: Mapping[str, float]) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Returns the keys to look for by tensor, and whether they are those of the folded graph.

    A cache that TensorRT wrote for the file knows what was folded by its name in the file. One without any
    such name was written for the graph that trtq quantizes: by trtq, or by TensorRT when it built from that.
    """
    names = map_names_in_file(graph)
    folded = {name: own for name, own in names.items() if name not in own}
    if scales.keys().isdisjoint(folded) or any(other in scales for own in folded.values() for other in own):
        return names, False
    return names | {name: (name,) for name in folded}, True


def _find(
    start: ir.Value, names: Mapping[str, tuple[str, ...]], scales: Mapping[str, float]
) -> MappedTensor | str:
    """Returns the nearest scale for a tensor, or why there is none."""
    name = str(start.name)
    reason = f"the cache has no scale for {names.get(name, (name,))[0]!r}"
    queue, seen = [start], {start}
    for value in queue:
        for key in names.get(str(value.name), (str(value.name),)):
            if key in scales and SMALLEST_SCALE <= scales[key] <= _LARGEST_SCALE:
                own: How = "name" if key == name else "other name"
                return MappedTensor(name, key, scales[key], own if value is start else "same scale")
            if key in scales:
                reason = (
                    f"the cache gives {key!r} the scale {scales[key]:g}, with which nothing can be quantized"
                )
        near = [other for other in _neighbours(value) if other not in seen]
        queue += near
        seen.update(near)
    return reason


def _neighbours(value: ir.Value) -> Iterator[ir.Value]:
    """Yields the tensors that have the same scale: made by rearranging this one, or this one by that."""
    producer = value.producer()
    if producer is not None and producer.op_type in _KEEPS_SCALE and producer.inputs[0] is not None:
        yield producer.inputs[0]
    for node, place_ in value.uses():
        if node.op_type in _REARRANGING and place_ == 0:
            yield node.outputs[0]


def _covered(
    graph: Graph,
    found: Mapping[str, MappedTensor | str],
    skip: Sequence[str],
    op_types: Sequence[str],
    force: Sequence[str],
) -> tuple[Placement, tuple[UncoveredTensor, ...]]:
    """Returns the placement without the nodes that read a tensor without a scale, and those tensors."""
    reasons: dict[str, str] = {}
    nodes: dict[str, list[str]] = defaultdict(list)
    while True:
        placement = place(graph.model, skip=skip, op_types=op_types, force=force, kept=reasons)
        layers = [(node.name, tensor) for node in placement.quantized for _, tensor in node.activations]
        bare = [(name, tensor) for name, tensor in layers if isinstance(found[tensor], str)]
        if not bare:
            break
        for name, tensor in bare:  # and again: where a Conv stays float, the Add after it is not quantized
            reasons[name] = str(found[tensor])
            nodes[tensor].append(name)
    uncovered = (UncoveredTensor(tensor, str(found[tensor]), tuple(names)) for tensor, names in nodes.items())
    return placement, tuple(uncovered)


def _why(key: str, constants: set[str]) -> str:
    if key.startswith("(Unnamed Layer*"):
        return "a tensor that TensorRT made itself"
    if key.startswith("ONNXTRT_"):
        return "a tensor that TensorRT's ONNX parser made"
    return "a constant" if key in constants else "the model has no tensor of this name"


def _some(names: Iterable[str]) -> str:
    """Returns the first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return (", ".join(repr(name) for name in islice(every, 3)) or "nothing") + more
