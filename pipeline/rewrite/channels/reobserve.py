"""The ranges of rescaled and rotated tensors, taken again from what they have become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import describe, estimate
from trtq.calibrators.observe import PassControl
from trtq.calibrators.parts import observe_by
from trtq.calibrators.ranges import Range, Ranges
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.workers import Workers

if TYPE_CHECKING:
    from trtq.calibrators import Method


@dataclass(frozen=True, slots=True)
class Reobserver:
    """How rescaled and rotated tensors are observed.

    Attributes:
        methods: Each gives ranges of its own.
        control: How the pass is made.
        workers: Who make it; None: this process.
        step: They are observed in every so many-th feed, from the first on.
        trial_step: The same for what is only tried; it is even, as trials are judged on odd feeds.
    """

    methods: Sequence[Method]
    control: PassControl
    workers: Workers | None = None
    step: int = 1
    trial_step: int = 2

    def observe_again(
        self, model: ir.Model, placement: Placement, ranges: Ranges, batches: Batches
    ) -> list[Ranges]:
        """Returns the ranges with those of every rescaled or rotated tensor, by each of the methods.

        Rescaling knows of each channel how far it reaches, not how often, so that its amax holds everything;
        of a rotation nothing is known. One pass over the changed model tells the rest.

        Args:
            model: The float graph; it is not changed.
            placement: Which inputs are quantized.
            ranges: With the scales of some channels, or the rotation.
            batches: The calibration data.

        Raises:
            DataError: The data does not fit.
            ModelError: ONNX Runtime cannot run the model.
        """
        made = rescale(model, placement, ranges)
        feeds = batches if self.step == 1 else batches.take_every(0, self.step)
        tensors = [name for name in made.names.values() if name in made.placement.activations]
        control = replace(self.control, guards=False)  # the graph computes the same as before
        seen = observe_by(self.workers, without_fp4(made.model), tensors, feeds, control)
        before = {renamed: name for name, renamed in made.names.items()}
        return [
            _take(ranges, estimate(seen, method, levels=made.placement.formats).tensors, before)
            for method in self.methods
        ]

    def for_trials(self) -> Reobserver:
        """Returns the same over no feed that trials are judged on."""
        return replace(self, step=self.trial_step)

    def describe(self) -> list[str]:
        """Returns the names of the methods, for people."""
        return [describe(method).partition("(")[0] for method in self.methods]


def _take(ranges: Ranges, seen: Mapping[str, Range], before: Mapping[str, str]) -> Ranges:
    """Returns the ranges with what was seen of changed tensors.

    Args:
        ranges: Those before.
        seen: By the names that the tensors have now; of those rescaled, the range is known by their channels.
        before: What each was called before.
    """
    channels, tensors = dict(ranges.channels), dict(ranges.tensors)
    beyond, formats = dict(ranges.beyond_fp16), dict(ranges.formats)
    for name, item in seen.items():
        old, largest = before[name], max(-item.minimum, item.maximum)
        if old in channels and channels[old].scale:
            if item.amax > 0:
                channels[old] = replace(channels[old], amax=item.amax, largest=largest)
            continue
        tensors[name] = item
        if old in beyond:
            beyond[name] = beyond[old]
        if old in formats:
            formats[name] = formats[old]
    return replace(ranges, channels=channels, tensors=tensors, beyond_fp16=beyond, formats=formats)
