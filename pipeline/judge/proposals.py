"""The kinds of repairs: what each proposes to make of the ranges, from half of the data or from all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import ChannelStats
from trtq.calibrators.ranges import Channels, Ranges
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.trials import LEAST_GAIN_DB
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.scales import HEADROOM, Strength, plan_scales
from trtq.pipeline.rewrite.rotation.rotate import rotate

FEWEST_SAMPLES = 16
"""Held back. With fewer, the extremes of single channels are not known well enough: nothing is rescaled."""
RESCALING = ("equalize", "smooth", "shift")
CHANNEL_REPAIRS = frozenset({*RESCALING, "bias"})
"""Those that look at channels."""
METHOD = "method"
_NO_HEADROOM = "no headroom"
_HEADROOM_WORTH_DB = 0.5
"""What a proposal without headroom must gain: data held back is like the data that the ranges come from."""


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


Proposals = Mapping[str, Ranges]
"""What the ranges may become, by name; the names do not depend on the evidence."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One kind of repair, of which at most one proposal is applied.

    Attributes:
        kind: A repair replaces the one before it if both are of the same kind.
        propose: Makes its proposals of the ranges.
        least_gain_db: What a proposal must gain to be applied.
        is_presumed: Whether it is applied unless it can hardly win: it is known to gain layer by layer.
        varies: By this suffix its proposals are named otherwise than those of the repair before, of which it
            varies the best; empty: it has its own.
    """

    kind: str
    propose: Callable[[Ranges, Evidence], Proposals]
    least_gain_db: float = LEAST_GAIN_DB
    is_presumed: bool = False
    varies: str = ""


def list_repairs(ranges: Sequence[Ranges], allowed: Collection[str], num_samples: int) -> Iterator[Repair]:
    """Yields the repairs to try, in order, where so many samples are held back."""
    methods = {re.sub(r"\(.*?\)", "", item.method): item for item in ranges[1:]}
    yield Repair(METHOD, lambda _ranges, _evidence: methods)
    if {*allowed} & {*RESCALING} and num_samples >= FEWEST_SAMPLES:
        yield Repair("rescaling", partial(_rescale, allowed, HEADROOM))
        yield Repair(
            "rescaling", partial(_rescale, allowed, 0.0), _HEADROOM_WORTH_DB, varies=f" + {_NO_HEADROOM}"
        )
        yield Repair("reobservation", _reobserve)
    if "rotate" in allowed:
        yield Repair("rotation", _rotate)
    rounding = Repair("adaround", _Rounding(), is_presumed=True)
    biases = Repair("bias", _correct_biases, is_presumed=True)
    last = biases, Repair("weights", _clip_weights), rounding
    yield from (repair for repair in last if repair.kind in allowed)


def _rescale(allowed: Collection[str], headroom: float, ranges: Ranges, evidence: Evidence) -> Proposals:
    """Brings channels nearer to one range: equalized, smoothed and shifted, each more or less."""
    model, placement, channels = evidence.model, evidence.placement, evidence.channels
    return {
        " + ".join(_describe(item)): replace(ranges, channels=plan_scales(model, placement, channels, item))
        for item in _list_strengths(allowed, headroom)
    }


def _list_strengths(allowed: Collection[str], headroom: float) -> Iterator[Strength]:
    """Yields the strengths, mildest first."""
    folds, inserts, shifts, pads = (name in allowed for name in (*RESCALING, "pad"))
    for exponent in (0.5, 0.75):
        yield Strength(exponent * folds, 0.0, (exponent + 0.25) * inserts, headroom=headroom)
    for shift in dict.fromkeys((False, shifts)):
        for exponent in (0.0, 0.25, 0.5, 0.75, 1.0) if inserts or folds else (0.0,):
            depthwise = max(exponent, 0.75) * inserts
            yield Strength(exponent * folds, exponent * inserts, depthwise, shift, headroom, shift and pads)


def _describe(strength: Strength) -> Iterator[str]:
    if strength.fold:
        yield f"equalize {strength.fold:g}"
    if strength.insert or strength.depthwise:
        yield f"smooth {strength.insert:g} (depthwise {strength.depthwise:g})"
    if strength.shift:
        yield "shift (pad)" if strength.pad else "shift"
    if not strength.headroom:
        yield _NO_HEADROOM


def _reobserve(ranges: Ranges, evidence: Evidence) -> Proposals:
    """Takes the ranges of the rescaled tensors by each method, from another pass over the data."""
    if (reobserver := evidence.reobserver) is None:
        return {}
    if not ranges.channels:
        return dict.fromkeys(_name_reobserved(reobserver), ranges)
    found = reobserver.observe_again(evidence.model, evidence.placement, ranges, evidence.batches)
    return dict(zip(_name_reobserved(reobserver), found, strict=True))


def _name_reobserved(reobserver: Reobserver) -> list[str]:
    return [f"{name} of rescaled tensors" for name in reobserver.describe()]


def _rotate(ranges: Ranges, evidence: Evidence) -> Proposals:
    """Rotates the residual streams, in whose norms no channel is then much larger than others.

    What was known of the channels of their tensors is of no use then, and their ranges are those of another
    pass over the data, by each method.
    """
    names = rotate(evidence.model).names
    if not names.keys() & {name for name, _ in evidence.placement.encodings}:
        return {}
    channels = {name: item for name, item in ranges.channels.items() if name not in names}
    turned = replace(ranges, rotation="hadamard", channels=channels)
    if not names.keys() & {*evidence.placement.activations}:
        return {"rotate": turned}
    if (reobserver := evidence.reobserver) is None:
        return {}
    found = reobserver.observe_again(evidence.model, evidence.placement, turned, evidence.batches)
    return dict(zip((f"rotate ({name})" for name in reobserver.describe()), found, strict=True))


def _correct_biases(ranges: Ranges, evidence: Evidence) -> Proposals:
    """Lets biases make up for what rounding does to the mean of each output."""
    channels = {
        name: replace(ranges.channels.get(name, Channels()), mean=tuple(seen.mean.tolist()))
        for name, seen in evidence.channels.items()
    }
    return {"bias": replace(ranges, channels=channels)}


def _clip_weights(ranges: Ranges, _: Evidence) -> Proposals:
    """Lets scales of weights clip where the squared error is least."""
    return {"weights": replace(ranges, weight_scales="mse")}


@dataclass(slots=True)
class _Rounding:
    """Finds roundings of weights, on the first even feeds whatever the evidence."""

    unscaled: Mapping[str, bytes] | None = None  # of weights that nothing rescales or rotates: found once

    def __call__(self, ranges: Ranges, evidence: Evidence) -> Proposals:
        is_scaled = ranges.rotation != "none" or any(item.scale for item in ranges.channels.values())
        found = None if is_scaled else self.unscaled
        if found is None:
            found = find_roundings(evidence.model, evidence.placement, ranges, evidence.batches)
        if not is_scaled:
            self.unscaled = found
        return {"adaround": replace(ranges, roundings=found)}
