"""Compares what models make of the same data, by this process or by workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.cursor import FeedCursor
from trtq.calibrators.memory import give_back_memory
from trtq.calibrators.observe import Progress
from trtq.models.runner import PlainSession, can_move
from trtq.pipeline.graph.kv_cache import CodedCache, find_coded_caches
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.judge.compared import ComparedModels, SeenFeed
from trtq.pipeline.judge.drawn import doubt_drawn
from trtq.pipeline.judge.opened import open_files
from trtq.pipeline.judge.recall import MOST_BYTES, RecallingSession
from trtq.pipeline.judge.runs import Results
from trtq.pipeline.judge.score import Labels, Scores
from trtq.pipeline.judge.settled import FailureRule
from trtq.pipeline.judge.steady import Mask, OutputSpread, find_steady
from trtq.pipeline.judge.tally import Pairs, Rules, Tally, UnevenOutput
from trtq.pipeline.judge.views import Key, OutputViews
from trtq.records import LogitsComparison, OutputComparison
from trtq.workers import Shared, Workers


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models against each other.

    Attributes:
        outputs: Every output of every pair, but those that are uneven.
        accuracy: What the metric says of each model, 0 to 1; empty without labels.
        num_samples: How many samples were compared.
        data: The data, as a person reads it.
        logits: The outputs that are logits of a language model, once more.
        metric: "top-1", "top-5", or `script.py:function`.
        top5: The share of answers among the best five; empty unless the metric is "top-1" of over 10 classes.
        doubts: Why what was measured proves nothing, if so.
        scored: The outputs that the metric looks at.
        uneven: The outputs that were not compared, since their sizes differ.
        is_settled: Whether the rest of the data was left out, since the candidate fails whatever it says.
    """

    outputs: tuple[OutputComparison, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    num_samples: int = 0
    data: str = ""
    logits: tuple[LogitsComparison, ...] = ()
    metric: str = "top-1"
    top5: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    uneven: tuple[UnevenOutput, ...] = ()
    is_settled: bool = False

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each candidate and reference whose outputs were seen."""
        seen = [(item.candidate, item.reference) for item in self.outputs]
        seen += [(item.candidate, item.reference) for item in self.uneven]
        return [*dict.fromkeys(seen)]


def compare_models(
    models: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]],
    batches: Batches,
    labels: Labels | None = None,
    progress: Progress = lambda _: None,
    engines: Sequence[Any] = (),
    views: OutputViews | None = None,
    workers: Workers | None = None,
    coded: Mapping[str, Sequence[CodedCache]] = MappingProxyType({}),
    failure: FailureRule | None = None,
    saves_memory: bool = False,
) -> Comparison:
    """Returns how far the models are apart, run by Polygraphy's Comparator on ONNX Runtime.

    Graph optimizations are off where anything is rounded, so that the arithmetic is that of the Q/DQ graph.
    What an engine holds in FP16 or BF16 is rounded to it (`emulate_halves`), so that an overflow shows. One
    batch is in memory at a time, and the reference's outputs for all of them if they are small.

    Args:
        models: The files by the names that the result uses.
        pairs: (candidate, reference) names to compare.
        batches: The data, checked against the models' inputs.
        labels: Where the labels are, and how answers are scored.
        progress: Called after every batch.
        engines: Further models: Polygraphy runners, each with its name.
        views: How outputs are looked at; None: as the reference that is judged by nothing else says.
        workers: Who take a feed each; None, or with an engine that runs on this machine alone: this process.
            What the feeds say is added up here, in their order, so that the numbers are the same. A metric of
            the user's own is called here, with all outputs.
        coded: The caches that engines hold in codes, by their names; those of the models are in the files.
        failure: Tells when the rest of the data need not be read; None: it is read.
        saves_memory: Whether sessions give back what they needed after each run, which takes longer.

    Raises:
        ModelError: ONNX Runtime cannot run one of them, or their outputs differ in name or shape.
        DataError: The data or the labels do not fit, or a metric of the user's own fails; or a worker sees
            other data.
        UsageError: It is not clear which output the labels belong to.
    """
    truth = _find_truth(pairs)
    own_workers = workers if all(map(can_move, engines)) else None
    opened = open_files(
        models, truth, looks=views is None, runs=own_workers is None, saves_memory=saves_memory
    )
    coded = {**{name: item.caches for name, item in opened.items()}, **coded}
    given = {item.past for item in coded.get(truth, ())}  # whose data comes in codes
    work = ComparedModels(
        {name: item.session for name, item in opened.items()},
        {name: tuple(item for item in found if item.past not in given) for name, found in coded.items()},
        tuple(engines),
        tuple(pairs),
        truth,
        labels,
        views or (opened[truth].views if truth in opened else OutputViews()),
        batches.origin,
        max((item.weight_bytes for item in opened.values()), default=0),
    ).confirm_drawn(batches)
    names = (*models, *(runner.name for runner in engines))
    tally = Tally(None if labels is None else Scores(labels, names))
    seen = _run_here(work, batches) if own_workers is None else _share(work, batches, own_workers)
    num_samples, samples, pasts, is_settled = 0, list[str](), set[str](), False
    ranked = {*work.views.ranked} if labels is not None and labels.is_own else set[str]()
    undecided = {*work.views.open_sizes, *ranked}
    noisy = work.views.added.keys if work.views.added is not None else frozenset[Key]()
    with closing(seen):
        for item in seen:
            tally.add(item.marks)
            pasts.update(item.pasts)
            num_samples += item.num_samples
            samples += item.names or [""] * item.num_samples
            progress(item.num_samples)
            if failure is not None and failure.has_failed(tally, batches, undecided, noisy):
                is_settled = True
                break
    scores = tally.scores
    accuracy = scores.result() if scores is not None else {}
    scored = scores.outputs if scores is not None else ()
    return Comparison(
        tally.compare_outputs(samples, work.views, ranked.intersection(scored)),
        accuracy,
        num_samples,
        batches.origin,
        tally.compare_logits(),
        labels.metric if labels is not None else "top-1",
        scores.top5() if scores is not None else {},
        (
            *(scores.doubts() if scores is not None else ()),
            *work.doubt_caches(pasts),
            *doubt_drawn(work.views.drawn, scored),
        ),
        scored,
        tally.list_uneven(),
        is_settled,
    )


def read_coded_caches(path: Path) -> tuple[CodedCache, ...]:
    """Returns the caches of codes of an ONNX file."""
    return find_coded_caches(read_runnable(path)[0])


def _find_truth(pairs: Pairs) -> str:
    """Returns the reference that is judged by nothing else; empty if there is none."""
    judged = {candidate for candidate, _ in pairs}
    return next((reference for _, reference in pairs if reference not in judged), "")


def _run_here(work: ComparedModels, batches: Batches) -> Generator[SeenFeed, None, None]:
    """Yields what each feed says, in one process, which runs the truth once if its outputs are small."""
    sessions: dict[str, PlainSession] = {**work.sessions}
    steady = _run_ahead(work, sessions, batches)
    rules: Rules | None = None
    at_once = work.can_run_at_once
    for feed, results in work.run(work.create_runners(sessions), batches, at_once=at_once):
        if rules is None:
            rules = replace(work.find_rules(feed, results), steady=steady)
        yield work.measure(rules, feed, results)


def _run_ahead(
    work: ComparedModels, sessions: dict[str, PlainSession], batches: Batches
) -> Mapping[Key, Mask]:
    """Runs the truth, and returns where its outputs are steady; then, if they take turns, the other files.

    Those whose outputs are small remember them, and are closed if others are to be opened.

    Args:
        work: What is compared.
        sessions: Of the files, which are replaced by those that remember.
        batches: The data.
    """
    steady: Mapping[Key, Mask] = {}
    is_stable = batches.content is not None  # a script may yield other data the second time
    recalled = RecallingSession(work.sessions[work.truth]) if work.truth in sessions and is_stable else None
    if recalled is not None:
        sessions[work.truth] = recalled
    if work.truth:
        with closing(work.run(work.create_runners(sessions, [work.truth]), batches)) as runs:
            steady = find_steady(work.measure_spreads(*seen) for seen in runs)
            if work.takes_turns:
                deque(runs, 0)
    if recalled is None:
        return steady
    recalled.rewind(closes=work.takes_turns)
    names = work.list_ahead()
    are_small = recalled.num_bytes * (1 + len(names)) <= MOST_BYTES
    for name in names if are_small else ():
        give_back_memory(work.weight_bytes)
        sessions[name] = item = RecallingSession(work.sessions[name])
        deque(work.run(work.create_runners(sessions, [name]), batches), 0)
        item.rewind(closes=True)
    give_back_memory(work.weight_bytes if work.takes_turns else 0)
    return steady


_SharedWork = Shared[tuple[ComparedModels, FeedCursor]]


def _share(work: ComparedModels, batches: Batches, workers: Workers) -> Generator[SeenFeed, None, None]:
    """Yields what each feed says, in their order, whichever of the workers has run it."""
    shared = workers.share((work, FeedCursor(batches)))
    rules = _learn(shared, workers, work.truth) if work.pairs else Rules()
    with closing(workers.map(partial(_measure_on_worker, shared, rules), count())) as found:
        for item in found:
            if item is None:
                return
            yield item


def _learn(shared: _SharedWork, workers: Workers, truth: str) -> Rules:
    """Returns how outputs are looked at, for which no more feeds are run than tell it."""
    found: list[Rules] = []

    def look() -> Generator[tuple[Mapping[Key, OutputSpread], int], None, None]:
        with closing(workers.map(partial(_look_on_worker, shared), count())) as looks:
            for item in looks:
                if item is None:
                    return
                rules, spreads, num_samples = item
                found.append(rules)
                yield spreads, num_samples
                if not truth:
                    return

    with closing(look()) as looks:
        steady = find_steady(looks)
    return replace(found[0], steady=steady) if found else Rules()


def _run_on_worker(
    work: ComparedModels, cursor: FeedCursor, index: int, names: Collection[str] | None = None
) -> tuple[Feed, Results] | None:
    """Returns a feed with the outputs of these models, None: of all; None behind the last feed."""
    feed = cursor.find(index)
    if feed is None:
        return None
    with closing(work.run(work.create_runners(work.sessions, names), [feed])) as runs:
        return next(runs)


def _look_on_worker(shared: _SharedWork, index: int) -> tuple[Rules, Mapping[Key, OutputSpread], int] | None:
    """Returns the rules that a feed tells, if it is the first, and how the truth spreads over it."""
    work, cursor = shared()
    names = {work.truth} if index else {work.truth, *(reference for _, reference in work.pairs)}
    seen = _run_on_worker(work, cursor, index, names)
    if seen is None:
        return None
    rules = Rules() if index else work.find_rules(*seen)
    spreads, num_samples = work.measure_spreads(*seen)
    return rules, spreads, num_samples


def _measure_on_worker(shared: _SharedWork, rules: Rules, index: int) -> SeenFeed | None:
    """Returns what a feed says; None behind the last one."""
    work, cursor = shared()
    seen = _run_on_worker(work, cursor, index)
    if seen is None:
        return None
    found = work.measure(rules, *seen)
    return replace(found, marks=[*found.marks])
