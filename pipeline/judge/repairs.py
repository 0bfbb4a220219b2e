"""Finds the ranges and the repairs with which a model loses least, by trying them on data held back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Channels, Ranges
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.trials import LEAST_GAIN_DB, Judge, Marks, open_judge
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.scales import HEADROOM, Strength, plan_scales
from trtq.pipeline.rewrite.channels.statistics import ChannelStats, observe_channels
from trtq.records import Repairs, Trial

FEWEST_SAMPLES = 16
"""Held back; with fewer, the extremes of single channels tell too little: nothing is rescaled."""
_FINALISTS = 3
_HEADROOM_WORTH_DB = 0.5
"""What it must gain to do without: data held back is like the data on which the channels were seen."""
RESCALING = ("equalize", "smooth", "shift")


@dataclass(frozen=True, slots=True)
class SampleBudget:
    """On how much of the held-back data candidates are judged.

    Attributes:
        first: Samples for all of them.
        second: Samples for the best of them.
    """

    first: int = 8
    second: int = 64


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to quantize: as it is judged, by the channels of one half of the data, and as it is made."""

    name: str
    judged: Ranges
    final: Ranges


@dataclass(frozen=True, slots=True)
class _Standing:
    """The best so far, its marks, and what was tried."""

    best: _Candidate
    marks: Marks
    applied: tuple[str, ...] = ()
    tried: tuple[Trial, ...] = ()


def find_repairs(
    model: ir.Model,
    placement: Placement,
    ranges: Sequence[Ranges],
    batches: Batches,
    allowed: Sequence[str],
    look: SampleBudget | None = None,
    reobserver: Reobserver | None = None,
) -> tuple[Ranges, Repairs] | None:
    """Returns the best of the ranges with the repairs that pay; None if there is nothing to judge by.

    Greedy, one kind after another: the method; how strongly channels are brought to one range, with headroom
    and without; the method for what that makes of them; bias correction; weight scales that clip; roundings.
    The channels and roundings are found on the even feeds, and what is judged on the odd ones is made of
    these alone; what is returned is made of all channels. All candidates of a kind are tried on a few samples
    and the best on more (successive halving, Jamieson and Talwalkar, arXiv 1502.07943). The same data gives
    the same result.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized.
        ranges: Of the same tensors by one or several methods; the first is taken unless another is better.
        batches: The calibration data.
        allowed: The repairs that may be made, of `trtq.models.spec.REPAIRS`.
        look: On how many samples.
        reobserver: How rescaled tensors are observed; None: they keep the range that holds all that was seen.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    look = look or SampleBudget()
    judge = open_judge(model, placement, batches, look.second)
    if judge is None:
        return None
    methods = [_Candidate(re.sub(r"\(.*?\)", "", item.method), item, item) for item in ranges]
    standing = _Standing(methods[0], judge.marks([methods[0].judged], judge.feeds)[0])
    before = standing.marks.db
    standing = _contest(judge, standing, methods[1:], look)
    standing = replace(standing, applied=())
    if set(allowed) & {*RESCALING, "bias"}:
        even, odd = observe_channels(model, placement, batches)
        halves = even, {name: seen.merged(odd[name]) for name, seen in even.items() if name in odd}
        if judge.num_samples >= FEWEST_SAMPLES:
            standing = _at_best_strength(judge, standing, halves, allowed, look)
            standing = _taken_again(judge, standing, batches, look, reobserver)
        if "bias" in allowed:
            standing = _contest(judge, standing, [_with_means(standing.best, halves)], look)
    if "weights" in allowed:
        standing = _contest(judge, standing, [_with_clipped_weights(standing.best)], look)
    if "adaround" in allowed:
        standing = _contest(
            judge, standing, [_with_roundings(model, placement, standing.best, batches)], look
        )
    final = standing.best.final
    after = standing.marks.db
    return final, Repairs(final.method, standing.applied, before, after, judge.num_samples, standing.tried)


def _contest(
    judge: Judge,
    standing: _Standing,
    candidates: Sequence[_Candidate],
    look: SampleBudget,
    least_db: float = LEAST_GAIN_DB,
) -> _Standing:
    """Returns what stands after the candidates were tried: the best, if it is clearly better."""
    tried: list[Trial] = []
    if len(candidates) > _FINALISTS and judge.num_samples > look.first:
        feeds = judge.first(look.first)
        num_samples = sum(feed.num_samples for feed in feeds)
        judged = [standing.best.judged, *(item.judged for item in candidates)]
        own, *marks = (found.db for found in judge.marks(judged, feeds))
        order = sorted(range(len(candidates)), key=lambda index: -marks[index])
        tried = [
            Trial(candidates[index].name, marks[index] - own, num_samples, applied=False)
            for index in sorted(order[_FINALISTS:])
        ]
        candidates = [candidates[index] for index in sorted(order[:_FINALISTS])]
    found = judge.marks([item.judged for item in candidates], judge.feeds)
    best = max(range(len(found)), key=lambda index: found[index].db, default=None)
    if best is not None and not found[best].is_clearly_above(standing.marks, least_db):
        best = None
    tried += [
        Trial(item.name, marks.db - standing.marks.db, judge.num_samples, applied=index == best)
        for index, (item, marks) in enumerate(zip(candidates, found, strict=True))
    ]
    standing = replace(standing, tried=(*standing.tried, *tried))
    if best is None:
        return standing
    winner = candidates[best]
    return replace(standing, best=winner, marks=found[best], applied=(*standing.applied, winner.name))


Halves = tuple[Mapping[str, ChannelStats], Mapping[str, ChannelStats]]
"""Of the channels in the even feeds, and in all."""


def _at_best_strength(
    judge: Judge, standing: _Standing, halves: Halves, allowed: Sequence[str], look: SampleBudget
) -> _Standing:
    """Returns what stands after all strengths were tried, then all without headroom, on the same ranges."""
    base = standing.best
    for headroom, least_db in ((HEADROOM, LEAST_GAIN_DB), (0.0, _HEADROOM_WORTH_DB)):
        rescaled = _rescaled(judge, base, halves, _strengths(allowed, headroom))
        standing = _contest(judge, standing, list(rescaled), look, least_db)
    return replace(standing, applied=standing.applied[-1:])  # the one instead of the other


def _rescaled(
    judge: Judge, base: _Candidate, halves: Halves, strengths: Iterator[Strength]
) -> Iterator[_Candidate]:
    """Yields every candidate that differs from those before it."""
    known: list[Mapping[str, Channels]] = [{}]
    for strength in strengths:
        judged, final = (plan_scales(judge.model, judge.placement, seen, strength) for seen in halves)
        if judged in known:
            continue
        known.append(judged)
        yield _Candidate(
            " + ".join(_words(strength)),
            replace(base.judged, channels=judged),
            replace(base.final, channels=final),
        )


def _taken_again(
    judge: Judge, standing: _Standing, batches: Batches, look: SampleBudget, reobserver: Reobserver | None
) -> _Standing:
    """Returns what stands after the rescaled tensors were observed, on the even feeds; all if that pays."""
    best = standing.best
    if reobserver is None or not best.judged.channels:
        return standing
    found = reobserver.on_even_feeds().observe_again(judge.model, judge.placement, best.judged, batches)
    candidates: dict[str, _Candidate] = {}
    for name, judged in zip(reobserver.describe(), found, strict=True):
        if judged not in [best.judged, *(item.judged for item in candidates.values())]:
            candidates[name] = _Candidate(name, judged, best.final)
    after = _contest(judge, standing, list(candidates.values()), look)
    if after.best is best:
        return after
    winner = reobserver.by(reobserver.describe().index(after.best.name))
    (final,) = winner.observe_again(judge.model, judge.placement, best.final, batches)
    return replace(after, best=replace(after.best, final=final))


def _strengths(allowed: Sequence[str], headroom: float) -> Iterator[Strength]:
    """Yields how far to go, mildest first."""
    folds, inserts, shifts = (name in allowed for name in RESCALING)
    for exponent in (0.5, 0.75):
        yield Strength(exponent * folds, 0.0, (exponent + 0.25) * inserts, headroom=headroom)
    for shift in dict.fromkeys((False, shifts)):
        for exponent in (0.0, 0.25, 0.5, 0.75, 1.0) if inserts or folds else (0.0,):
            depthwise = max(exponent, 0.75) * inserts
            yield Strength(exponent * folds, exponent * inserts, depthwise, shift, headroom)


def _words(strength: Strength) -> Iterator[str]:
    if strength.fold:
        yield f"equalize {strength.fold:g}"
    if strength.insert or strength.depthwise:
        yield f"smooth {strength.insert:g} (depthwise {strength.depthwise:g})"
    if strength.shift:
        yield "shift"
    if not strength.headroom:
        yield "no headroom"


def _with_means(base: _Candidate, halves: Halves) -> _Candidate:
    even, both = halves
    judged, final = (
        replace(ranges, channels=_added(ranges.channels, seen))
        for ranges, seen in ((base.judged, even), (base.final, both))
    )
    return _Candidate("bias", judged, final)


def _added(channels: Mapping[str, Channels], seen: Mapping[str, ChannelStats]) -> dict[str, Channels]:
    return {
        name: replace(channels.get(name, Channels()), mean=tuple(item.mean.tolist()))
        for name, item in seen.items()
    }


def _with_clipped_weights(base: _Candidate) -> _Candidate:
    judged, final = (replace(ranges, weight_scales="mse") for ranges in (base.judged, base.final))
    return _Candidate("weights", judged, final)


def _with_roundings(model: ir.Model, placement: Placement, base: _Candidate, batches: Batches) -> _Candidate:
    judged = replace(base.judged, roundings=find_roundings(model, placement, base.judged, batches))
    if not any(item.scale for item in base.final.channels.values()):
        return _Candidate("adaround", judged, replace(base.final, roundings=judged.roundings))
    final = find_roundings(model, placement, base.final, batches)  # of weights that are scaled otherwise
    return _Candidate("adaround", judged, replace(base.final, roundings=final))
