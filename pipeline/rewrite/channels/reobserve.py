"""The ranges of rescaled tensors, taken again from what they have become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import describe, estimate
from trtq.calibrators.observe import PassControl
from trtq.calibrators.parts import observe_by
from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.workers import Workers

if TYPE_CHECKING:
    from trtq.calibrators import Method


@dataclass(frozen=True, slots=True)
class Reobserver:
    """How rescaled tensors are observed.

    Attributes:
        methods: Each gives ranges of its own.
        control: How the pass is made.
        workers: Who make it; None: this process.
        step: They are observed in every so many-th feed, from the first on.
    """

    methods: Sequence[Method]
    control: PassControl
    workers: Workers | None = None
    step: int = 1

    def observe_again(
        self, model: ir.Model, placement: Placement, ranges: Ranges, batches: Batches
    ) -> list[Ranges]:
        """Returns the ranges with another amax of every rescaled tensor, by each of the methods.

        Rescaling knows of each channel how far it reaches, not how often, so that its amax holds everything.
        One pass over the rescaled model tells the rest.

        Args:
            model: The float graph; it is not changed.
            placement: Which inputs are quantized.
            ranges: With the scales of some channels.
            batches: The calibration data.

        Raises:
            DataError: The data does not fit.
            ModelError: ONNX Runtime cannot run the model.
        """
        made = rescale(model, placement, ranges)
        feeds = batches if self.step == 1 else batches.take_every(0, self.step)
        tensors = list(made.names.values())
        seen = observe_by(self.workers, without_fp4(made.model), tensors, feeds, self.control)
        found = []
        for method in self.methods:
            estimated = estimate(seen, method, levels=made.placement.formats).tensors
            channels = {
                name: replace(
                    ranges.channels[name],
                    amax=estimated[renamed].amax,
                    largest=max(-estimated[renamed].minimum, estimated[renamed].maximum),
                )
                for name, renamed in made.names.items()
                if estimated[renamed].amax > 0
            }
            found.append(replace(ranges, channels={**ranges.channels, **channels}))
        return found

    def on_even_feeds(self) -> Reobserver:
        """Returns the same over the first, third, fifth ... feed."""
        return replace(self, step=2)

    def by(self, index: int) -> Reobserver:
        """Returns the same with one of the methods alone."""
        return replace(self, methods=self.methods[index : index + 1])

    def describe(self) -> list[str]:
        """Returns the names of what is tried, for people."""
        return [f"{describe(method).partition('(')[0]} of rescaled tensors" for method in self.methods]
