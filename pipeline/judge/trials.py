"""How near quantized models come to the float one, on data that did not make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.memory import find_free_bytes
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.split import is_splittable, split_feed
from trtq.calibrators.survey import map_values_made
from trtq.errors import ModelError
from trtq.models.frugal import FrugalSession
from trtq.models.packed import PackedModel, pack
from trtq.models.session import SessionOptions, count_weight_bytes, open_session, run
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.parts import list_judged_outputs
from trtq.pipeline.judge.runs import computes_in_float32
from trtq.pipeline.judge.steady import split_by_sample
from trtq.pipeline.rewrite.qdq import quantize
from trtq.sums import sum_products
from trtq.workers import Shared, Threads, Workers, count_cores

_EXACT_DB = 80.0
LEAST_GAIN_DB = 0.2
"""What a candidate must gain at least to be applied."""
_MOST_AT_A_TIME = 4
_MOST_KEPT = 3
_SHARE_OF_WEIGHTS = 2
"""What an open session takes of the float weights: codes, and what ONNX Runtime makes of them."""
_FLOAT32_BYTES = 4
_PART_SAMPLES = 2
"""What one run takes: what it computes stays near the caches, and one candidate has runs for every core."""


@dataclass(frozen=True, slots=True)
class SampleScores:
    """How near the outputs of a model are to those of the float model: SQNR in dB.

    Attributes:
        samples: Of each sample, the mean over the outputs: float64, shape (samples,).
        outputs: Of all samples together in each output: float64, shape (outputs,); NaN without a signal.
    """

    samples: NDArray[np.float64]
    outputs: NDArray[np.float64]

    @property
    def db(self) -> float:
        """The mean of both: the first counts every sample alike, the second the worst samples most."""
        return float(self.samples.mean() + _nanmean(self.outputs)) / 2

    def is_clearly_above(self, other: SampleScores, least_db: float = LEAST_GAIN_DB) -> bool:
        """Whether these are better by at least so much, and by twice the standard error of the mean gain."""
        gains = self.samples - other.samples
        error = gains.std(ddof=1) / math.sqrt(gains.size) if gains.size > 1 else math.inf
        least = max(least_db, 2 * float(error))
        return bool(gains.mean() >= least) and self.db - other.db >= least_db

    def may_be_above(self, other: SampleScores, least_db: float = LEAST_GAIN_DB, errors: float = 2) -> bool:
        """Whether these may be better by so much on all samples, by so many standard errors of the mean."""
        gains = self.samples - other.samples
        error = gains.std(ddof=1) / math.sqrt(gains.size) if gains.size > 1 else math.inf
        return bool(gains.mean() + errors * error >= least_db) or self.db - other.db >= least_db


@dataclass(frozen=True, slots=True)
class FeedMarks:
    """What one feed says of a model.

    Attributes:
        samples: The SQNR of each sample in dB, the mean over the outputs: float64, shape (samples,).
        signal: The power of each output of the float model: float64, shape (outputs,).
        noise: The power of what differs from it: float64, shape (outputs,).
    """

    samples: NDArray[np.float64]
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]


@dataclass(slots=True)
class Candidate:
    """Ranges with what the first feeds say of the model that they make.

    Attributes:
        ranges: What is judged.
        marks: One for each feed so far, in their order.
        session: Of its model; None: it is not open.
    """

    ranges: Ranges
    marks: list[FeedMarks] = field(default_factory=list)
    session: FrugalSession | None = None

    def scores(self, num_feeds: int | None = None) -> SampleScores:
        """Returns the scores on the first of the feeds, or on all so far."""
        marks = self.marks[:num_feeds]
        signal, noise = sum(item.signal for item in marks), sum(item.noise for item in marks)
        samples = np.concatenate([item.samples for item in marks])
        return SampleScores(samples, _to_decibels(np.asarray(signal), np.asarray(noise)))

    def close(self) -> None:
        """Gives up its session; if it goes on, another is opened."""
        self.session = None


@dataclass(frozen=True, slots=True)
class TrialJudge:
    """Scores quantized models by the float model's outputs on data held back.

    Attributes:
        model: The float graph.
        placement: What of it is quantized.
        outputs: The tensors to judge by.
        feeds: The data held back, in parts; the first few are spread over all of it.
        reference: The float model's outputs for every feed.
        workers: Who run the candidates; None: threads of this process.
        shared: This judge where the workers can take it.
        most_open: How many sessions may be open at a time; they hold their weights.
    """

    model: ir.Model
    placement: Placement
    outputs: tuple[str, ...]
    feeds: tuple[Feed, ...]
    reference: tuple[tuple[NDArray[Any], ...], ...]
    workers: Workers | None = None
    shared: Shared[TrialJudge] | None = None
    most_open: int = _MOST_AT_A_TIME + _MOST_KEPT

    def __reduce__(self) -> tuple[Callable[..., TrialJudge], tuple[Any, ...]]:
        """Pickles what a worker needs to run candidates."""
        packed = pack(self.model)
        return _open_packed, (packed, self.placement, self.outputs, self.feeds, self.reference)

    @property
    def num_samples(self) -> int:
        """How many samples are held back."""
        return sum(feed.num_samples for feed in self.feeds)

    @property
    def is_fast(self) -> bool:
        """Whether the fastest kernels may run the candidates: ONNX Runtime fuses no codes but INT8."""
        forms = {form for layer in self.placement.layers for form in layer.scheme.formats}
        return forms <= {INT8} and computes_in_float32(self.model)

    def learn(self, session: FrugalSession, feeds: Sequence[Feed]) -> TrialJudge:
        """Returns the same with what the float model makes of these feeds."""
        reference = tuple(tuple(_run(session, self.outputs, feed)) for feed in feeds)
        return replace(self, feeds=tuple(feeds), reference=reference)

    def advance(self, candidates: Sequence[Candidate], num_feeds: int) -> None:
        """Marks the candidates on the first of the feeds, beginning behind those that they know.

        Those that are nearest to the float model keep their sessions, to go on.
        """
        waiting = [item for item in candidates if len(item.marks) < num_feeds]
        if self.workers is not None and self.shared is not None:
            parts = [(item.ranges, len(item.marks), num_feeds) for item in waiting]
            task = partial(_mark_on_worker, self.shared)
            for item, marks in zip(waiting, self.workers.map(task, parts), strict=True):
                item.marks.extend(marks)
            return
        kept: list[Candidate] = []
        step = max(1, min(_MOST_AT_A_TIME, self.most_open - 1))
        for start in range(0, len(waiting), step):
            self._advance(waiting[start : start + step], num_feeds)
            kept = sorted([*kept, *waiting[start:][:step]], key=lambda item: -item.scores().db)
            for item in kept[max(0, min(_MOST_KEPT, self.most_open - step)) :]:
                item.close()

    def _advance(self, candidates: Sequence[Candidate], num_feeds: int) -> None:
        """Runs each feed with each candidate, as many at a time as there are cores for.

        While one candidate is opened, which holds the GIL half of the time, another one runs.
        """
        engine = SessionOptions(num_threads=max(1, count_cores() // _MOST_AT_A_TIME))
        opened = [_Opened(partial(self.open, item.ranges, engine), item.session) for item in candidates]
        runs = sorted(
            (index, place)
            for place, item in enumerate(candidates)
            for index in range(len(item.marks), num_feeds)
        )
        cores = Threads(min(count_cores(), _MOST_AT_A_TIME))
        marks = cores.map(lambda run: self.mark(opened[run[1]].take(), run[0]), runs)
        for (_, place), found in zip(runs, marks, strict=True):
            candidates[place].marks.append(found)
        for item, own in zip(candidates, opened, strict=True):
            item.session = own.session

    def mark(self, session: FrugalSession, index: int) -> FeedMarks:
        """Returns what one of the feeds says of the model of a session."""
        feed, wanted = self.feeds[index], self.reference[index]
        return _mark(_run(session, self.outputs, feed), wanted, feed.num_samples)

    def open(self, ranges: Ranges, engine: SessionOptions) -> FrugalSession:
        """Returns a session of the model that these ranges make."""
        made = quantize(self.model, self.placement, ranges)
        return _open_session(made, self.outputs, engine, optimize=self.is_fast)


@dataclass(slots=True)
class _Opened:
    """A session that the first of several threads opens which need it."""

    open: Callable[[], FrugalSession]
    session: FrugalSession | None
    _lock: Lock = field(default_factory=Lock)

    def take(self) -> FrugalSession:
        """Returns it, opened."""
        with self._lock:
            self.session = self.session or self.open()
            return self.session


def _open_packed(packed: PackedModel, *fields: Any) -> TrialJudge:
    return TrialJudge(packed.unpack(), *fields)


def _mark_on_worker(shared: Shared[TrialJudge], part: tuple[Ranges, int, int]) -> list[FeedMarks]:
    """Returns what some of the feeds say of the model that ranges make; this runs on a worker."""
    judge, (ranges, first, stop) = shared(), part
    session = judge.open(ranges, SessionOptions())
    return [judge.mark(session, index) for index in range(first, stop)]


def open_trial_judge(
    model: ir.Model,
    placement: Placement,
    batches: Batches,
    num_samples: int,
    workers: Workers | None = None,
    memory_bytes: int | None = None,
) -> TrialJudge | None:
    """Returns a judge that holds back some of the odd feeds; None if there is no data or output to judge by.

    At most `num_samples` are held back, rounded to whole feeds. The float graph is not changed. Without
    workers, candidates run in threads of this process, in sessions whose weights take no more memory than
    they may, but for one; None: half of what is free. The scores are the same.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    outputs = list_judged_outputs(model)
    feeds = _hold_back(batches, num_samples) if outputs else ()
    if not feeds:
        return None
    room = memory_bytes if memory_bytes is not None else find_free_bytes() // 2
    most_open = room // max(1, _SHARE_OF_WEIGHTS * count_weight_bytes(model))
    judge = TrialJudge(model, placement, outputs, (), (), most_open=most_open)
    session = _open_session(model.clone(), outputs, SessionOptions(), optimize=computes_in_float32(model))
    if judge.is_fast and is_splittable(model, batches):
        with suppress(ModelError):  # a size inside is fixed
            judge = judge.learn(session, _split(model, feeds))
    judge = judge if judge.feeds else judge.learn(session, feeds)
    return judge if workers is None else replace(judge, workers=workers, shared=workers.share(judge))


def _hold_back(batches: Batches, num_samples: int) -> tuple[Feed, ...]:
    """Returns some of the odd feeds, spread over all of them; the first few are spread as well."""
    kept: list[Feed] = []
    stride, most = 1, 0
    for index, feed in enumerate(batches.every(1, 2)):
        most = most or max(1, num_samples // max(feed.num_samples, 1))
        if index % stride == 0:
            kept.append(feed)
        if len(kept) >= 2 * most:
            kept, stride = kept[::2], stride * 2
    kept = [kept[place * len(kept) // most] for place in range(most)] if len(kept) > most else kept
    return tuple(feed for start in range(4) for feed in kept[start::4])


def _split(model: ir.Model, feeds: Sequence[Feed]) -> list[Feed]:
    """Returns the feeds in parts: the first of each, then the second of each."""
    parts = (split_feed(model, feed, _PART_SAMPLES) for feed in feeds)
    return [part for parts_of_all in zip_longest(*parts) for part in parts_of_all if part is not None]


def _open_session(
    model: ir.Model, outputs: Sequence[str], engine: SessionOptions, *, optimize: bool
) -> FrugalSession:
    """Returns a session that gives these tensors; the model gets them as its outputs."""
    values = map_values_made(model)
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in outputs)
    return FrugalSession(open_session(without_fp4(model), optimize=optimize, engine=engine))


def _run(session: FrugalSession, outputs: Sequence[str], feed: Feed) -> Iterator[NDArray[Any]]:
    inputs = {item.name for item in session.get_inputs()}
    found = run(session, outputs, {name: array for name, array in feed.arrays.items() if name in inputs})
    return (np.asarray(array) for array in found)


def _mark(found: Iterable[NDArray[Any]], wanted: Sequence[NDArray[Any]], num_samples: int) -> FeedMarks:
    signal, noise = np.zeros(len(wanted)), np.zeros(len(wanted))
    samples = []
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        powers, lost = _measure_powers(ours, theirs, num_samples)
        samples.append(np.broadcast_to(_to_decibels(powers, lost), num_samples))
        signal[index], noise[index] = powers.sum(), lost.sum()
    return FeedMarks(_nanmean(np.array(samples)), signal, noise)


def _measure_powers(
    ours: NDArray[Any], theirs: NDArray[Any], num_samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the power of the signal and of the noise of each sample, or of all where they lie otherwise.

    All is lost where sizes depend on values, and differ: what stands in one place is of other objects.
    """
    parts = len(split_by_sample(theirs, num_samples))
    if ours.shape != theirs.shape:
        ours = np.zeros_like(theirs)
    wanted, ours = theirs.reshape(parts, -1), ours.reshape(parts, -1)
    if wanted.dtype.itemsize < _FLOAT32_BYTES:
        wanted, ours = wanted.astype(np.float32), ours.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        noise = _sum_squares(ours - wanted)
    return _sum_squares(wanted), np.nan_to_num(noise, nan=np.inf, posinf=np.inf)


def _sum_squares(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the sum of the squares of each row."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array([sum_products(row, row) for row in rows])


def _to_decibels(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the ratios in dB, between -80 and 80; NaN where there is no signal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(10 * np.log10(signal / noise), -_EXACT_DB, _EXACT_DB)
    return np.where(signal > 0, found, np.nan)


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the means over the first axis of what is not NaN; 0 where nothing is left."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(total / np.maximum(known.sum(axis=0), 1))
