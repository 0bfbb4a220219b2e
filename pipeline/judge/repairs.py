"""Finds the ranges and the repairs with which a model loses least, by trying them on data held back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from trtq.calibrators.batches import Batches, take_samples
from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.attention import MOST_COST_DB, choose_attention, list_tried
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.proposals import METHOD, RESCALING, Evidence, Repair, list_repairs
from trtq.pipeline.judge.trials import SampleScores, TrialJudge, open_trial_judge
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.statistics import observe_channels
from trtq.records import Repairs, Trial

_NUM_FINALISTS = 3
_ATTENTION = "INT8 attention"


@dataclass(frozen=True, slots=True)
class SampleBudget:
    """On how many of the samples held back candidates are scored: `first` for all, `second` for the best."""

    first: int = 8
    second: int = 64


def find_repairs(
    model: ir.Model,
    placement: Placement,
    ranges: Sequence[Ranges],
    batches: Batches,
    allowed: Collection[str],
    budget: SampleBudget | None = None,
    reobserver: Reobserver | None = None,
) -> tuple[Ranges, Repairs] | None:
    """Returns the best of the ranges with the repairs that gain; None if no data can be held back.

    The search is greedy, one kind of repair after another. Channel statistics come from the even batches.
    Candidates are scored on the odd ones by SQNR and applied only if they clearly win; what is returned is
    made again, from all batches. All candidates of a kind are scored on a few samples and the best on more
    (successive halving, Jamieson and Talwalkar, arXiv 1502.07943). The same data gives the same result.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized; of these, attention in INT8 only if it costs next to nothing,
            which is tried last (`Ranges.attention`).
        ranges: Of the same tensors by one or several methods; the first is taken unless another is better.
        batches: The calibration data.
        allowed: The repairs that may be made, of `trtq.models.spec.REPAIRS`.
        budget: On how many samples candidates are scored.
        reobserver: Observes rescaled tensors; None: their ranges hold every value seen.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    budget = budget or SampleBudget()
    candidates, placement = placement, choose_attention(placement, ())
    judge = open_trial_judge(model, placement, batches, budget.second)
    if judge is None:
        return None
    needs_channels = {*allowed} & {*RESCALING, "bias"}
    even, odd = observe_channels(model, placement, batches) if needs_channels else ({}, {})
    both = {name: seen.merged(odd[name]) for name, seen in even.items() if name in odd}
    half = Evidence(model, placement, batches, even, reobserver and reobserver.on_even_feeds())
    whole = Evidence(model, placement, batches, both, reobserver)
    (scores,) = judge.score(ranges[:1], judge.feeds)
    search = _Search(judge, budget, half, whole, ranges[0], ranges[0], scores)
    for repair in list_repairs(ranges, allowed, judge.num_samples):
        search.run(repair)
    search.try_attention(candidates)
    applied = tuple(name for kind, name in search.applied.items() if kind != METHOD)
    method, after, tried = search.final.method, search.scores.db, tuple(search.tried)
    return search.final, Repairs(method, applied, scores.db, after, judge.num_samples, tried)


@dataclass(slots=True)
class _Search:
    """The best so far: `judged`, made from half of the data, and `final`, made from all of it.

    `before` holds the two that repairs of the current kind start from.
    """

    judge: TrialJudge
    budget: SampleBudget
    half: Evidence
    whole: Evidence
    judged: Ranges
    final: Ranges
    scores: SampleScores
    applied: dict[str, str] = field(default_factory=dict)
    tried: list[Trial] = field(default_factory=list)
    kind: str = ""
    before: tuple[Ranges, Ranges] = field(init=False)

    def run(self, repair: Repair) -> None:
        """Scores what the repair proposes, and applies the best if it clearly wins."""
        if repair.kind != self.kind:
            self.kind, self.before = repair.kind, (self.judged, self.final)
        proposed = _without_repeats(self.before[0], repair.propose(self.before[0], self.half))
        finalists = self._choose_finalists(proposed)
        found = dict(zip(finalists, self.judge.score([*finalists.values()], self.judge.feeds), strict=True))
        best = max(found, key=lambda name: found[name].db, default=None)
        if best is not None and not found[best].is_clearly_above(self.scores, repair.least_gain_db):
            best = None
        self.tried += [
            Trial(name, scores.db - self.scores.db, self.judge.num_samples, applied=name == best)
            for name, scores in found.items()
        ]
        if best is not None:
            self.judged, self.scores, self.applied[repair.kind] = proposed[best], found[best], best
            self.final = repair.propose(self.before[1], self.whole)[best]

    def try_attention(self, candidates: Placement) -> None:
        """Puts attention into INT8, all that can be, where that costs next to nothing."""
        if not (names := list_tried(candidates)):
            return
        judge = replace(self.judge, placement=candidates)
        (scores,) = judge.score([self.judged], judge.feeds)
        gain = scores.db - self.scores.db
        is_cheap = gain >= -MOST_COST_DB
        self.tried.append(Trial(_ATTENTION, gain, judge.num_samples, applied=is_cheap))
        if is_cheap:
            self.scores, self.applied[_ATTENTION] = scores, _ATTENTION
            self.final = replace(self.final, attention=names)

    def _choose_finalists(self, proposed: Mapping[str, Ranges]) -> Mapping[str, Ranges]:
        """Returns the proposals that are best on the first few samples; all of them if there are few."""
        if len(proposed) <= _NUM_FINALISTS or self.judge.num_samples <= self.budget.first:
            return proposed
        feeds = list(take_samples(self.judge.feeds, self.budget.first))
        num_samples = sum(feed.num_samples for feed in feeds)
        own, *others = (item.db for item in self.judge.score([self.judged, *proposed.values()], feeds))
        gains = {name: db - own for name, db in zip(proposed, others, strict=True)}
        best = sorted(gains, key=lambda name: -gains[name])[:_NUM_FINALISTS]
        self.tried += [
            Trial(name, gain, num_samples, applied=False) for name, gain in gains.items() if name not in best
        ]
        return {name: item for name, item in proposed.items() if name in best}


def _without_repeats(start: Ranges, proposed: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """Returns the proposals that differ from the start and from those before them."""
    different: dict[str, Ranges] = {}
    for name, item in proposed.items():
        if item != start and item not in different.values():
            different[name] = item
    return different
