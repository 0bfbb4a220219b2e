"""The kinds of repairs: what each proposes to make of the ranges, from half of the data or from all of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Channels, Ranges
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.trials import LEAST_GAIN_DB
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.scales import HEADROOM, Strength, plan_scales
from trtq.pipeline.rewrite.channels.statistics import ChannelStats

RESCALING = ("equalize", "smooth", "shift")
_HEADROOM_WORTH_DB = 0.5
"""What a candidate without headroom must gain: the data held back is like the data that set the ranges."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What repairs are made from: the even feeds or all feeds.

    Attributes:
        model: The float graph.
        placement: Which inputs are quantized.
        batches: The calibration data, all of it.
        channels: Statistics of the channels over these feeds.
        reobserver: Observes rescaled tensors in these feeds; None: their ranges hold every value seen.
    """

    model: ir.Model
    placement: Placement
    batches: Batches
    channels: Mapping[str, ChannelStats]
    reobserver: Reobserver | None


class Repair(Protocol):
    """One kind of repair, tried as a whole: at most one of its proposals is applied."""

    @property
    def kind(self) -> str:
        """A repair replaces what the one before it made, if that is of the same kind."""
        ...

    @property
    def least_gain_db(self) -> float:
        """What a proposal must gain to be applied."""
        ...

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """Returns what the ranges may become, by name; the same names whatever the evidence."""
        ...


@dataclass(frozen=True, slots=True)
class Methods:
    """Ranges by other methods, which all data has made already."""

    others: Sequence[Ranges]
    kind: str = "method"
    least_gain_db: float = LEAST_GAIN_DB

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        return {re.sub(r"\(.*?\)", "", item.method): item for item in self.others}


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Channels brought nearer to one range: equalized, smoothed and shifted, each more or less."""

    allowed: Collection[str]
    headroom: float = HEADROOM
    kind: str = "rescaling"

    @property
    def least_gain_db(self) -> float:
        """See `Repair`."""
        return LEAST_GAIN_DB if self.headroom else _HEADROOM_WORTH_DB

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        model, placement, channels = evidence.model, evidence.placement, evidence.channels
        return {
            " + ".join(_describe(strength)): replace(
                ranges, channels=plan_scales(model, placement, channels, strength)
            )
            for strength in self._strengths()
        }

    def _strengths(self) -> Iterator[Strength]:
        """Yields the strengths, mildest first."""
        folds, inserts, shifts = (name in self.allowed for name in RESCALING)
        for exponent in (0.5, 0.75):
            yield Strength(exponent * folds, 0.0, (exponent + 0.25) * inserts, headroom=self.headroom)
        for shift in dict.fromkeys((False, shifts)):
            for exponent in (0.0, 0.25, 0.5, 0.75, 1.0) if inserts or folds else (0.0,):
                depthwise = max(exponent, 0.75) * inserts
                yield Strength(exponent * folds, exponent * inserts, depthwise, shift, self.headroom)


def _describe(strength: Strength) -> Iterator[str]:
    if strength.fold:
        yield f"equalize {strength.fold:g}"
    if strength.insert or strength.depthwise:
        yield f"smooth {strength.insert:g} (depthwise {strength.depthwise:g})"
    if strength.shift:
        yield "shift"
    if not strength.headroom:
        yield "no headroom"


@dataclass(frozen=True, slots=True)
class Reobservation:
    """Ranges of the rescaled tensors by each method, from another pass over the data."""

    kind: str = "reobservation"
    least_gain_db: float = LEAST_GAIN_DB

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        if (reobserver := evidence.reobserver) is None:
            return {}
        if not ranges.channels:
            return dict.fromkeys(reobserver.describe(), ranges)
        found = reobserver.observe_again(evidence.model, evidence.placement, ranges, evidence.batches)
        return dict(zip(reobserver.describe(), found, strict=True))


@dataclass(frozen=True, slots=True)
class BiasCorrection:
    """Biases that make up for what rounding does to the mean of each output."""

    kind: str = "bias"
    least_gain_db: float = LEAST_GAIN_DB

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        known = ranges.channels
        channels = {
            name: replace(known.get(name, Channels()), mean=tuple(seen.mean.tolist()))
            for name, seen in evidence.channels.items()
        }
        return {self.kind: replace(ranges, channels=channels)}


@dataclass(frozen=True, slots=True)
class WeightClipping:
    """Scales of weights that clip where the squared error is least."""

    kind: str = "weights"
    least_gain_db: float = LEAST_GAIN_DB

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        return {self.kind: replace(ranges, weight_scales="mse")}


@dataclass(slots=True)
class AdaRound:
    """Roundings of weights that lose least on the first even feeds, whatever the evidence."""

    kind: str = "adaround"
    least_gain_db: float = LEAST_GAIN_DB
    unscaled: Mapping[str, bytes] | None = None
    """Of weights that no channel rescales, found once: they are the same for both."""

    def propose(self, ranges: Ranges, evidence: Evidence) -> Mapping[str, Ranges]:
        """See `Repair`."""
        is_scaled = any(item.scale for item in ranges.channels.values())
        found = None if is_scaled else self.unscaled
        if found is None:
            found = find_roundings(evidence.model, evidence.placement, ranges, evidence.batches)
        if not is_scaled:
            self.unscaled = found
        return {self.kind: replace(ranges, roundings=found)}
