"""Finds the ranges and the repairs with which a model loses least, by trying them on data held back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import NO_CHANNELS, ChannelHalves
from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.attention import MOST_COST_DB, choose_attention, list_tried
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.proposals import METHOD, Evidence, Repair, list_repairs
from trtq.pipeline.judge.trials import Candidate, TrialJudge, open_trial_judge
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.records import Repairs, Trial
from trtq.workers import Workers

_NUM_FINALISTS = 3
_NUM_LATER = 2
"""How many go on where more than a few samples tell; the third of these is sometimes the best of all."""
_FEW_SAMPLES = 16
"""Fewer than these are a few."""
_GROWTH = 2
"""Each round has so many times the samples of the one before."""
_ERRORS = {8: 4, _FEW_SAMPLES: 3}
"""By how many standard errors of its mean gain a candidate falls behind on fewer samples than so; else 2."""
_ATTENTION = "INT8 attention"


@dataclass(frozen=True, slots=True)
class SampleBudget:
    """On how many of the samples held back candidates are scored.

    Attributes:
        first: For all candidates of a kind.
        second: For the best of them.
        races: Whether the best are judged on the way too, and dropped if they can hardly win.
    """

    first: int = 8
    second: int = 64
    races: bool = True


def find_repairs(
    model: ir.Model,
    placement: Placement,
    ranges: Sequence[Ranges],
    batches: Batches,
    allowed: Collection[str],
    budget: SampleBudget | None = None,
    reobserver: Reobserver | None = None,
    workers: Workers | None = None,
    channels: ChannelHalves = NO_CHANNELS,
) -> tuple[Ranges, Repairs] | None:
    """Returns the best of the ranges with the repairs that gain; None if no data can be held back.

    The search is greedy, one kind of repair after another. Channel statistics come from the even batches.
    Candidates are scored on the odd ones by SQNR and applied only if they clearly win; what is returned is
    made again, from all batches. All candidates of a kind are scored on a few samples and ever fewer on ever
    more (successive halving, Jamieson and Talwalkar, arXiv 1502.07943). The same data gives the same result.

    Args:
        model: The float graph; it is not changed.
        placement: Which inputs are quantized; of these, attention in INT8 only if it costs next to nothing,
            which is tried last (`Ranges.attention`).
        ranges: Of the same tensors by one or several methods; the first is taken unless another is better.
        batches: The calibration data.
        allowed: The repairs that may be made, of `trtq.models.spec.REPAIRS`.
        budget: On how many samples candidates are scored.
        reobserver: Observes rescaled tensors; None: their ranges hold every value seen.
        workers: Who run the candidates; None: threads of this process.
        channels: What the channels of the data are like; nothing is made of others.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    budget = budget or SampleBudget()
    candidates, placement = placement, choose_attention(placement, ())
    memory_bytes = None if reobserver is None else reobserver.control.memory_bytes
    judge = open_trial_judge(model, placement, batches, budget.second, workers, memory_bytes)
    if judge is None:
        return None
    half = Evidence(model, placement, batches, channels.even, reobserver and reobserver.for_trials())
    whole = Evidence(model, placement, batches, channels.whole, reobserver)
    start = Candidate(ranges[0])
    judge.advance([start], len(judge.feeds))
    search = _Search(judge, budget, half, whole, start, ranges[0])
    for repair in list_repairs(ranges, allowed, judge.num_samples):
        search.run(repair)
    search.try_attention(candidates)
    applied = tuple(name for kind, name in search.applied.items() if kind != METHOD)
    method, before, after = search.final.method, start.scores().db, search.judged.scores().db
    return search.final, Repairs(method, applied, before, after, judge.num_samples, tuple(search.tried))


@dataclass(slots=True)
class _Search:
    """The best so far: `judged`, made from half of the data, and `final`, made from all of it.

    `before` holds the two that repairs of the current kind start from.
    """

    judge: TrialJudge
    budget: SampleBudget
    half: Evidence
    whole: Evidence
    judged: Candidate
    final: Ranges
    applied: dict[str, str] = field(default_factory=dict)
    tried: list[Trial] = field(default_factory=list)
    kind: str = ""
    before: tuple[Ranges, Ranges] = field(init=False)
    finalists: tuple[str, ...] = ()

    def run(self, repair: Repair) -> None:
        """Scores what the repair proposes, and applies the best if it clearly wins."""
        if repair.kind != self.kind:
            self.kind, self.before = repair.kind, (self.judged.ranges, self.final)
        proposed = _without_repeats(self.before[0], repair.propose(self.before[0], self.half))
        if repair.varies:
            near = {f"{name}{repair.varies}" for name in self.finalists}
            proposed = {name: item for name, item in proposed.items() if name in near}
        candidates = {name: Candidate(item) for name, item in proposed.items()}
        self.judged.close()
        if repair.is_presumed:
            best = self._presume(candidates, repair.least_gain_db)
        else:
            best = self._race(candidates, repair.least_gain_db)
        for name, item in candidates.items():
            gain = item.scores().db - self.judged.scores(len(item.marks)).db
            num_samples = self._count_samples(len(item.marks))
            self.tried.append(Trial(name, gain, num_samples, applied=name == best))
        if best is not None:
            self.judged, self.applied[repair.kind] = candidates[best], best
            self.final = repair.propose(self.before[1], self.whole)[best]

    def _presume(self, candidates: Mapping[str, Candidate], least_db: float) -> str | None:
        """Returns the candidate that scores highest on all samples, unless it can hardly win.

        The few outputs of a classifier sum up the errors of many features, each with its own sign: by chance
        they are a few dB nearer or farther, while the features are nearer for certain.
        """
        left = list(candidates)
        for num_feeds in self._list_rounds() if self.budget.races else [len(self.judge.feeds)]:
            if not left:
                return None
            self.judge.advance([candidates[name] for name in left], num_feeds)
            left = self._drop_hopeless(candidates, left, num_feeds, least_db)
        return max(left, key=lambda name: candidates[name].scores().db, default=None)

    def _race(self, candidates: Mapping[str, Candidate], least_gain_db: float) -> str | None:
        """Returns which of the candidates clearly wins, if any does; those that fall behind stop early."""
        left = list(candidates)
        self.finalists = ()
        for num_feeds in self._list_rounds():
            if not left:
                return None
            self.judge.advance([candidates[name] for name in left], num_feeds)
            ranked = sorted(left, key=lambda name: -candidates[name].scores().db)
            self.finalists = self.finalists or (*ranked[:_NUM_FINALISTS],)
            if num_feeds == len(self.judge.feeds):
                best = candidates[ranked[0]].scores()
                return ranked[0] if best.is_clearly_above(self.judged.scores(), least_gain_db) else None
            is_early = not self.budget.races or self._count_samples(num_feeds) < _FEW_SAMPLES
            left = ranked[: _NUM_FINALISTS if is_early else _NUM_LATER]
            if self.budget.races:
                left = self._drop_hopeless(candidates, left, num_feeds, least_gain_db)
                errors, leader = self._choose_errors(num_feeds), candidates[ranked[0]].scores()
                left = [name for name in left if candidates[name].scores().may_be_above(leader, 0.0, errors)]
        return None

    def _drop_hopeless(
        self, candidates: Mapping[str, Candidate], left: Sequence[str], num_feeds: int, least_gain_db: float
    ) -> list[str]:
        """Returns which of those that are left may still win against what is best so far."""
        own, errors = self.judged.scores(num_feeds), self._choose_errors(num_feeds)
        return [name for name in left if candidates[name].scores().may_be_above(own, least_gain_db, errors)]

    def _choose_errors(self, num_feeds: int) -> int:
        if num_feeds == len(self.judge.feeds):
            return 2
        num_samples = self._count_samples(num_feeds)
        return next((errors for most, errors in _ERRORS.items() if num_samples < most), 2)

    def _count_samples(self, num_feeds: int) -> int:
        return sum(feed.num_samples for feed in self.judge.feeds[:num_feeds])

    def _list_rounds(self) -> list[int]:
        """Returns how many feeds candidates are scored on in each round."""
        rounds, wanted, seen = [], self.budget.first, 0
        for index, feed in enumerate(self.judge.feeds, 1):
            seen += feed.num_samples
            if seen >= wanted and index < len(self.judge.feeds):
                rounds.append(index)
                wanted = _GROWTH * seen if self.budget.races else self.judge.num_samples
        return [*rounds, len(self.judge.feeds)]

    def try_attention(self, candidates: Placement) -> None:
        """Puts attention into INT8, all that can be, where that costs next to nothing."""
        if not (names := list_tried(candidates)):
            return
        judge, item = replace(self.judge, placement=candidates), Candidate(self.judged.ranges)
        judge.advance([item], len(judge.feeds))
        gain = item.scores().db - self.judged.scores().db
        is_cheap = gain >= -MOST_COST_DB
        self.tried.append(Trial(_ATTENTION, gain, judge.num_samples, applied=is_cheap))
        if is_cheap:
            self.judged, self.applied[_ATTENTION] = item, _ATTENTION
            self.final = replace(self.final, attention=names)


def _without_repeats(start: Ranges, proposed: Mapping[str, Ranges]) -> dict[str, Ranges]:
    """Returns the proposals that differ from the start and from those before them."""
    different: dict[str, Ranges] = {}
    for name, item in proposed.items():
        if item != start and item not in different.values():
            different[name] = item
    return different
