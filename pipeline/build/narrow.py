"""A job with fewer layers in INT8 than its placement says, as `--skip` with their names would give it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from trtq.calibrators.ranges import Ranges
from trtq.kept import Fallback, KeptNode
from trtq.models.spec import ModelSpec
from trtq.pipeline.build.job import Job
from trtq.pipeline.calibrate.data import place_layers
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, Placement
from trtq.progress import Silent

NO_KERNEL = "no-kernel: "
"""Begins the reason of a layer that was quantized first, and that the builder ran in float all the same."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What is quantized if some layers are kept.

    Attributes:
        kept: The names of these layers, and of Adds that must be kept with them.
        patterns: For `--skip`.
        spec: The settings with these patterns.
        placement: What is quantized then.
    """

    kept: tuple[str, ...]
    patterns: tuple[str, ...]
    spec: ModelSpec
    placement: Placement

    @property
    def names(self) -> Collection[str]:
        """The nodes that are quantized."""
        return {node.name for node in self.placement.quantized}


def place_without(job: Job, ranges: Ranges, kept: Sequence[str]) -> Placed:
    """Returns the placement that `--skip` with these names gives.

    A layer that is kept can make another tensor of an Add the one to quantize. Where that has no range, the
    Add is kept as well.
    """
    while True:
        patterns = tuple(f"^{re.escape(name)}$" for name in kept)
        layers = replace(job.spec.layers, skip=(*job.spec.layers.skip, *patterns))
        spec = replace(job.spec, layers=layers)
        placement = place_layers(job.graph, spec, job.target, Silent())
        unknown = [
            node.name
            for node in placement.quantized
            if any(tensor not in ranges.tensors for _, tensor in node.activations)
        ]
        if not unknown:
            return Placed(tuple(kept), patterns, spec, placement)
        kept = (*kept, *unknown)


def find_float_fallbacks(job: Job, fallbacks: Sequence[Fallback]) -> dict[str, str]:
    """Returns the layers that are better built in float, with the reason: INT8 only costs accuracy there.

    What the user asked for by name or type stays, and so does what the builder removed, or does not tell of.

    Args:
        job: Whose Q/DQ model was built.
        fallbacks: The layers that have Q/DQ and do not run in INT8.
    """
    forced = [re.compile(pattern) for pattern in job.spec.layers.force]
    quantized = {node.name for node in job.placement.layers}
    return {
        item.node: f"{NO_KERNEL}the builder ran it as {item.runs_as} behind Q/DQ"
        for item in fallbacks
        if item.node in quantized
        and item.op_type in DEFAULT_OP_TYPES
        and item.runs_as not in ("none", "unknown")
        and not any(pattern.search(item.node) for pattern in forced)
    }


def keep_layers(job: Job, ranges: Ranges, reasons: dict[str, str]) -> Job:
    """Returns the job with these layers kept out of INT8 too, for these reasons; others keep theirs."""
    placed = place_without(job, ranges, tuple(reasons))
    known = {node.name: node.reason for node in job.placement.kept} | reasons
    kept = tuple(
        KeptNode(node.name, node.op_type, known.get(node.name, node.reason)) for node in placed.placement.kept
    )
    return replace(job, spec=placed.spec, placement=replace(placed.placement, kept=kept))
