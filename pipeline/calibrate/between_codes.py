"""What is quantized for kernels that read and write codes: all that would else end a chain of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate.data import place_layers
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import ATTENTION, Placement
from trtq.pipeline.graph.worth import explain_distorted
from trtq.progress import Watcher


def place_between_codes(
    graph: Graph,
    spec: ModelSpec,
    target: Target,
    watcher: Watcher,
    kept: Mapping[str, str],
    backend: Backend | None = None,
    forms: Mapping[str, CodeFormat] | None = None,
) -> Placement:
    """Returns the layers of a graph of `part_for_codes` that are quantized, and why the rest is not.

    A layer left float costs more than it saves, since the codes around it end there. So those that are small,
    and products of two activations, take codes as well. For the arguments see `place_layers`.
    """
    products = (ATTENTION,) if "MatMul" in target.op_types else ()
    target = replace(target, op_types=tuple(dict.fromkeys((*target.op_types, *products))))
    return place_layers(graph, spec, target, watcher, kept, backend, forms=forms, explain=explain_distorted)
