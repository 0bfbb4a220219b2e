"""Models and engines that are compared, and what one feed says of them."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from trtq.calibrators.batches import Batches, Feed
from trtq.models.frugal import FrugalSession
from trtq.models.runner import (
    MovableSession,
    PlainSession,
    can_move,
    create_converting_runner,
    create_runner,
)
from trtq.pipeline.graph.kv_cache import CodedCache
from trtq.pipeline.judge.drawn import keep_differing
from trtq.pipeline.judge.runs import Results, drop, run_feeds
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.steady import OutputSpread, measure_spreads
from trtq.pipeline.judge.tally import Marks, Pairs, Place, Rules, find_rules, measure_feed
from trtq.pipeline.judge.views import Key, OutputViews


@dataclass(frozen=True)
class ComparedModels:
    """What is compared; it pickles as what opens it.

    Attributes:
        sessions: Of the files, by the names of the models.
        caches: Those that each holds in codes, while the data has numbers.
        engines: Further runners.
        pairs: Candidates and references.
        truth: The reference that is judged by nothing else; empty: there is none.
        labels: Where the labels are, and how answers are scored.
        views: How outputs are looked at.
        origin: What the data is, for messages.
        weight_bytes: The size of the weights of the largest file.
    """

    sessions: Mapping[str, MovableSession]
    caches: Mapping[str, tuple[CodedCache, ...]]
    engines: tuple[Any, ...]
    pairs: Pairs
    truth: str
    labels: Labels | None
    views: OutputViews
    origin: str
    weight_bytes: int = 0

    @property
    def takes_turns(self) -> bool:
        """Whether a file is to be opened when another one has been run."""
        return any(session.session is None for session in self.sessions.values())

    def list_ahead(self) -> list[str]:
        """Returns the files that are not open and not the reference, without the one that is judged first."""
        last = (self.truth, self.judged)
        return [name for name, item in self.sessions.items() if item.session is None and name not in last]

    @property
    def judged(self) -> str:
        """What is judged first, which may end the comparison early; empty if nothing is judged."""
        return self.pairs[0][0] if self.pairs else ""

    def create_runners(
        self, sessions: Mapping[str, PlainSession], names: Collection[str] | None = None
    ) -> list[Any]:
        """Returns runners of these sessions, and of the engines; of those alone that are named."""
        created = [create_runner(session, name) for name, session in sessions.items()]
        wanted = [item for item in (*created, *self.engines) if names is None or item.name in names]
        return [_take_floats(item, self.caches.get(item.name, ())) for item in wanted]

    @property
    def can_run_at_once(self) -> bool:
        """Whether all are open and hold the memory of a run between runs anyway, and threads may run them."""
        sessions = [item.session for item in self.sessions.values()]
        is_plain = not any(item is None or isinstance(item, FrugalSession) for item in sessions)
        return is_plain and all(map(can_move, self.engines))

    def run(
        self, runners: Sequence[Any], feeds: Iterable[Feed], *, at_once: bool = False
    ) -> Generator[tuple[Feed, Results], None, None]:
        """Yields each feed with the outputs of each model; see `run_feeds`."""
        labels = None if self.labels is None else self.labels.array
        return run_feeds(runners, feeds, self.origin, labels, at_once=at_once)

    def find_rules(self, feed: Feed, results: Results) -> Rules:
        """Returns what the first feed tells."""
        return find_rules(self.pairs, self.views, self.labels, feed, results)

    def measure_spreads(self, feed: Feed, results: Results) -> tuple[Mapping[Key, OutputSpread], int]:
        """Returns how the truth spreads over a feed, and how many samples this has."""
        inputs = drop(feed.arrays, [self.labels.array] if self.labels is not None else [])
        seen = self.views.see(results[self.truth], inputs, feed.num_samples) if self.truth else {}
        return measure_spreads(seen, feed.num_samples), feed.num_samples

    def measure(self, rules: Rules, feed: Feed, results: Results) -> SeenFeed:
        """Returns what a feed says; it is measured when that is asked for."""
        marks = measure_feed(self.pairs, self.views, self.labels, rules, feed, results)
        pasts = {item.past for item in self._list_caches() if item.encode(feed.arrays[item.past]).any()}
        return SeenFeed(feed.num_samples, feed.names, marks, pasts)

    def doubt_caches(self, pasts: Collection[str]) -> list[str]:
        """Returns why nothing is known of caches in codes other than those whose past was seen, if so."""
        unseen = [*dict.fromkeys(item.past for item in self._list_caches() if item.past not in pasts)]
        if not unseen:
            return []
        more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
        return [
            f"no sample has a past with a code other than 0 in cache {unseen[0]!r}{more}, so nothing shows "
            f"that a past is read right; give samples with pasts like those of real use"
        ]

    def confirm_drawn(self, batches: Batches) -> ComparedModels:
        """Returns this with the outputs that do differ when the reference runs twice."""
        if not self.views.drawn:
            return self
        runners = self.create_runners(self.sessions, [self.truth])
        feed = next(iter(batches))
        with closing(self.run(runners, [feed, feed])) as runs:
            found = keep_differing(self.views.drawn, *(results[self.truth] for _, results in runs))
        return replace(self, views=replace(self.views, drawn=found))

    def _list_caches(self) -> list[CodedCache]:
        return [item for caches in self.caches.values() for item in caches]


@dataclass(frozen=True, slots=True)
class SeenFeed:
    """What one feed says, the names of its samples, and the caches in codes whose past is not all zeros."""

    num_samples: int
    names: Sequence[str]
    marks: Iterable[tuple[Place, Marks]]
    pasts: Collection[str]


def _take_floats(runner: Any, caches: Sequence[CodedCache]) -> Any:
    """Returns a runner whose caches of codes are given as numbers, and come as numbers."""
    if not caches:
        return runner
    inputs = {item.past: item.encode for item in caches}
    return create_converting_runner(runner, inputs, {item.present: item.decode for item in caches})
