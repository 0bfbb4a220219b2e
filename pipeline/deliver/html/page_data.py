"""What the page shows of tensors and layers, kept as a file of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtq.json import FileKind

NAME = "tensors.json"
_MOST = 2**63 - 1
"""As many values as an int64 counts."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A range of one tensor, and what it costs.

    Attributes:
        amax: The magnitude that the largest code stands for.
        clipped: The share of the values that lie beyond it, 0 to 1.
        sqnr_db: Signal to quantization noise of the quantized tensor, of all the values that were seen:
            10 log10(sum x^2 / sum (x - q(x))^2) in dB; None if there is no error, or no signal, or if it
            hangs on which values lie in a block.
    """

    amax: float
    clipped: float
    sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One quantized tensor, as the calibration data had it.

    Attributes:
        name: In the graph that is quantized.
        minimum: The smallest value seen.
        maximum: The largest value seen.
        total: How many values were seen.
        zeros: How many of them were zero (below 2**-40 in magnitude).
        counts: How many magnitudes lie in each bin of equal width from 0 on, zeros left out; at most 128.
        width: Of a bin.
        used: The range that the model is quantized with.
        methods: The range that each method takes, by the method's name.
    """

    name: str
    minimum: float
    maximum: float
    total: int
    zeros: int
    counts: tuple[int, ...]
    width: float
    used: Clip
    methods: Mapping[str, Clip]

    def __post_init__(self) -> None:
        """Refuses counts that no data has."""
        if wrong := [count for count in (self.total, self.zeros, *self.counts) if not 0 <= count <= _MOST]:
            raise ValueError(f"{str(wrong[0])[:40]} is not a number of values")


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A quantized node.

    Attributes:
        name: Of the node.
        op_type: Its type.
        rule: By which it was placed.
        tensors: The quantized activations that it reads.
        weight_sqnr_db: Signal to quantization noise of its quantized weight, in dB; None if it has none, or
            if the weight is the same in its format.
    """

    name: str
    op_type: str
    rule: str
    tensors: tuple[str, ...]
    weight_sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of the graph that is quantized.

    Attributes:
        name: Of the node; of the tensor where it stands for an input or output of the model.
        op_type: Its type; "input" or "output".
        inputs: The tensors that it reads; weights and constants are left out.
        outputs: The tensors that it computes.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PageData:
    """What was seen of a model; without tensors no data was: the ranges were given, or are TensorRT's affair.

    Attributes:
        tensors: All quantized ones, in graph order.
        methods: With their parameters, by name.
        method: The name of the one that was asked for; empty if it is none of them.
        layers: All quantized nodes, in graph order.
        thumbnails: JPEGs in base64 of the pictures among the worst samples, by their names.
        graph: All nodes, in graph order, with the model's inputs first and its outputs last; none if no layer
            is quantized.
    """

    tensors: tuple[TensorSummary, ...] = ()
    methods: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    layers: tuple[LayerSummary, ...] = ()
    thumbnails: Mapping[str, str] = field(default_factory=dict)
    graph: tuple[GraphNode, ...] = ()


FILE = FileKind(PageData, "file of tensors", "trtq build", "tensors")


def to_json(seen: PageData) -> bytes:
    """Returns the tensors as JSON."""
    return FILE.encode(seen, compact=True)


def read_page_data(folder: Path) -> PageData:
    """Returns the tensors of a build folder; none if it has no such file, since nothing was observed.

    Raises:
        ArtifactError: The file is broken, of another kind or of a newer schema.
    """
    path = folder / NAME
    return FILE.read(path) if path.exists() else PageData()
