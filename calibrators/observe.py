"""One pass over the data that fills the statistics of every tensor that will be quantized.

The model runs in as many threads as there are cores, each with a part of a feed at a time, and counts the
values where they are, so that nothing is copied or kept. Counts do not depend on the order: histograms are
the same for any number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.accumulator import Accumulator
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.blocked import is_worth
from trtq.calibrators.channels import ChannelLayout, ChannelStats, ChannelTally
from trtq.calibrators.footprint import warn_of_footprint
from trtq.calibrators.guard import MagnitudeGuard, create_guard
from trtq.calibrators.kernel import count_table_bytes
from trtq.calibrators.plan import PassPlan, plan_passes
from trtq.calibrators.split import is_splittable, select_inputs, slice_arrays
from trtq.calibrators.statistics import Statistics
from trtq.calibrators.survey import Survey, measure_inputs, refuse_unknown, survey, survey_observed
from trtq.calibrators.taps import Taps, TapsOpener
from trtq.errors import DataError, ModelError
from trtq.models.session import SessionOptions
from trtq.numbers import format_count
from trtq.progress import Silent
from trtq.workers import Threads

_HEADROOM = 16.0
"""How much larger the values of a tensor may get than those of the first sample, where memory is planned."""

Progress = Callable[[int], None]
"""Called after every feed with the number of its samples."""


@dataclass(frozen=True, slots=True)
class PassControl:
    """How the pass is made.

    Attributes:
        device: Where the model runs: `cpu` or `cuda`.
        memory_bytes: What the observed tensors may take beside the model; None: half of what is free.
        shard: Which part of the data is observed, and of how many: (3, 8) is every 8th feed from the third,
            or every 8th of the files if there are as many.
        earlier: The statistics of an interrupted pass, to go on with.
        save: Gets the statistics every `save_seconds`, to go on from.
        note: Gets what the user may want to know.
        watches_all: Whether the magnitudes of all tensors are wanted although none is observed.
        channels: The observed tensors whose channels are measured too, and where these are; only where a part
            of the data is every n-th feed, as their halves are of even and odd feeds.
        guards: Whether it is watched that no other tensor leaves the range of FP16 unseen.
    """

    device: str = "cpu"
    memory_bytes: int | None = None
    shard: tuple[int, int] = (1, 1)
    earlier: Statistics | None = None
    save: Callable[[Statistics], None] | None = None
    save_seconds: float = 60.0
    note: Callable[[str], None] = Silent().note
    watches_all: bool = False
    channels: Mapping[str, ChannelLayout] = field(default_factory=dict)
    guards: bool = True


def observe(
    model: ir.Model,
    tensors: Sequence[str],
    batches: Batches,
    progress: Progress = lambda _: None,
    control: PassControl | None = None,
) -> Statistics:
    """Returns the statistics of the named tensors over all the data, without what they are made of.

    Args:
        model: The float graph; it is not changed.
        tensors: Names of float tensors of the graph; without any, only the shapes of the data are seen.
        batches: The data, checked against the model.
        progress: Called after every feed.
        control: How the pass is made.

    Raises:
        DataError: The data does not fit, or makes a tensor NaN or infinite.
        ModelError: ONNX Runtime cannot run the model.
        MissingDependency: The device is not there.
    """
    control = control or PassControl()
    return prepare_pass(model, tensors, batches, control).observe(control.shard, progress)


def prepare_pass(
    model: ir.Model, tensors: Sequence[str], batches: Batches, control: PassControl
) -> PreparedPass:
    """Returns a pass of which all parts can be observed; its first feed is looked at.

    Args:
        model: The float graph; it is not changed.
        tensors: Names of float tensors of the graph.
        batches: The data, checked against the model.
        control: How the pass is made; its part counts for nothing.

    Raises:
        DataError, ModelError, MissingDependency: As `observe`.
    """
    refuse_unknown(model, tensors)
    first = next(iter(batches), None) if tensors or control.watches_all else None
    start = None if first is None else _start(model, tensors, batches, first, control)
    return PreparedPass(model, tuple(tensors), batches, control, TapsOpener(model), start)


@dataclass(frozen=True, slots=True)
class _Start:
    """What the first feed of the data shows, and what follows from it.

    Attributes:
        magnitudes: Of all tensors; without a guard of those that are observed.
        plan: How the passes are made.
        unordered: The tensors that may be shown in any order of their values.
        guard: What every part begins with, if anything is guarded.
    """

    magnitudes: Mapping[str, float]
    plan: PassPlan
    unordered: Collection[str]
    guard: MagnitudeGuard | None


def _start(
    model: ir.Model, tensors: Sequence[str], batches: Batches, first: Feed, control: PassControl
) -> _Start:
    seen = _accumulate(model, tensors, control)
    computed = [name for name in tensors if name not in first.arrays]
    look = survey if control.guards else survey_observed
    inputs, is_open = select_inputs(model, first.arrays), is_splittable(model, batches)
    sample = slice_arrays(inputs, 0, 1) if is_open else inputs
    warn_of_footprint(model, sample, control.memory_bytes, control.note)
    found, may_split = _survey_feed(lambda feed: look(model, computed, feed, control.device), inputs, is_open)
    seen.raise_magnitudes(found.magnitudes)
    known = {**found.magnitudes, **measure_inputs(inputs)}
    plan = plan_passes(
        {name: found.sizes.get(name, 0) for name in tensors},
        {name: count_table_bytes(_HEADROOM * known.get(name, math.inf)) for name in tensors},
        seen.feeds,
        may_split,
        control.memory_bytes,
    )
    if plan.note:
        control.note(plan.note)
    num_runs = _count_samples(batches) / (1 if may_split else max(1, first.num_samples))
    is_free = is_worth(model, found.sizes, num_runs, control.device)
    unordered = [name for name in computed if is_free and name not in control.channels]
    if not control.guards:
        return _Start(found.magnitudes, plan, unordered, None)
    guard = create_guard(model, tensors, inputs, seen.magnitudes, may_widen=len(plan.groups) < 2)
    return _Start(found.magnitudes, plan, unordered, guard)


def _count_samples(batches: Batches) -> float:
    """Returns how many samples there are, as far as that is known."""
    return math.inf if batches.num_samples is None else batches.num_samples


def _accumulate(model: ir.Model, tensors: Sequence[str], control: PassControl) -> Accumulator:
    return Accumulator(tensors, [str(value.name) for value in model.graph.inputs], control.earlier)


@dataclass(frozen=True, slots=True)
class PreparedPass:
    """A pass over the data, of which each part shows the same wherever and whenever it is observed.

    Attributes:
        model: The float graph.
        tensors: What is observed of it.
        batches: The data.
        control: How the pass is made.
        opener: Of the sessions.
        start: What the first feed shows; None if no tensor is looked at.
    """

    model: ir.Model
    tensors: tuple[str, ...]
    batches: Batches
    control: PassControl
    opener: TapsOpener
    start: _Start | None

    def observe(self, shard: tuple[int, int], progress: Progress = lambda _: None) -> Statistics:
        """Returns the statistics of one part of the data, of so many; see `observe`."""
        seen, start = _accumulate(self.model, self.tensors, self.control), self.start
        if start is None:
            for feed in self.batches.shard(*shard):
                seen.finish(feed, ())
                progress(feed.num_samples)
            return seen.statistics(shard[0], is_whole=True)
        seen.raise_magnitudes(start.magnitudes)
        control = replace(self.control, shard=shard)
        tally = ChannelTally()
        guard = None if start.guard is None else start.guard.restart()
        opener = partial(self.opener.open, unordered=start.unordered)
        observer = _Observer(self.model, opener, guard, start.plan, seen, tally, control)
        for group in start.plan.groups or ((),):
            observer.observe(group, self.batches, progress)
            seen.close(group)
        found = seen.statistics(shard[0], is_whole=True)
        return replace(found, channels=tally.halves()) if control.channels else found


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """Some samples of a feed: from `start` on."""

    feed: Feed
    start: int
    arrays: Mapping[str, NDArray[Any]]
    num_samples: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Observer:
    model: ir.Model
    open: Callable[..., Taps]
    guard: MagnitudeGuard | None
    plan: PassPlan
    seen: Accumulator
    tally: ChannelTally
    control: PassControl

    def observe(self, group: Sequence[str], batches: Batches, progress: Progress) -> None:
        """Adds what one pass over the rest of the data shows of a group of tensors."""
        plan, control, (shard, num_shards) = self.plan, self.control, self.control.shard
        is_first = group == (self.plan.groups or ((),))[0]
        engine = SessionOptions(control.device, plan.threads_a_run, plan.keeps_memory, keeps_order=True)
        watches = is_first or control.earlier is not None  # whose guard was another

        def open_guarded(guard: MagnitudeGuard | None) -> Taps:
            if guard is None:
                return self.open(group, (), engine)
            return self.open(group, guard.watched if watches else (), engine, guard.doubtful)

        taps = _GuardedTaps(open_guarded, self.guard, may_widen=len(plan.groups) < 2)
        start = position = self.seen.feeds[group[0]] if group else 0
        feeds = batches.shard(shard, num_shards, start)

        def count(batch: _MicroBatch) -> tuple[_MicroBatch, Mapping[str, ChannelStats]]:
            return batch, self._count(taps, batch)

        while True:
            deadline = time.monotonic() + control.save_seconds if control.save is not None else math.inf
            num_feeds = 0
            for batch, channels in Threads(plan.num_runs).map(count, self._split(feeds, deadline)):
                self.tally.add(shard - 1 + position * num_shards, channels)
                if batch.is_last:
                    num_feeds, position = num_feeds + 1, position + 1
                    if self.seen.finish(batch.feed, group):
                        progress(batch.feed.num_samples)
            if control.save is None or time.monotonic() < deadline or not num_feeds:
                return
            control.save(self.seen.statistics(shard, is_whole=False))

    def _split(self, feeds: Iterator[Feed], deadline: float) -> Iterator[_MicroBatch]:
        """Yields the feeds in micro-batches; ends after a whole feed when it is time to save."""
        for feed in feeds:
            num_samples = max(1, feed.num_samples)  # one without samples is fed too, and finished
            size = self.plan.part_samples or num_samples
            inputs = select_inputs(self.model, feed.arrays)
            for start in range(0, num_samples, size):
                is_last = start + size >= num_samples
                arrays = inputs if start == 0 and is_last else slice_arrays(inputs, start, start + size)
                yield _MicroBatch(feed, start, arrays, min(size, num_samples - start), is_last)
            if time.monotonic() >= deadline:
                return

    def _count(self, guarded: _GuardedTaps, batch: _MicroBatch) -> Mapping[str, ChannelStats]:
        """Counts the values of every tensor, and looks at all where they may leave the range of FP16.

        Returns the statistics of the channels that are asked for.
        """
        channels: dict[str, ChannelStats] = {}
        inputs = measure_inputs(batch.arrays)
        found = dict(inputs)
        if self.control.guards:
            self.seen.raise_magnitudes({name: inputs[name] for name in _list_amounts(batch.arrays)})
        guard, taps = guarded.current

        def count(name: str, values: NDArray[Any]) -> None:
            found[name] = self.seen.add(name, values)
            if math.isinf(found[name]):
                raise _describe_nonfinite(name, values, taps, batch)
            if values.size and (layout := self.control.channels.get(name)) is not None:
                channels[name] = layout.measure(values, batch.num_samples)

        def watch(name: str, magnitude: float) -> None:
            found[name] = max(found.get(name, 0.0), magnitude)
            if math.isfinite(magnitude):  # or else the survey tells
                self.seen.raise_magnitudes({name: magnitude})

        taps.show(batch.arrays, count, watch)
        if guard is not None and not guard.proves(found, batch.arrays):
            seen = survey(self.model, (), batch.arrays, self.control.device)
            self.seen.raise_magnitudes(seen.magnitudes)
            guarded.widen(guard, batch.arrays, inputs, self.seen.magnitudes)
        return channels


def _list_amounts(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Returns the finite inputs of floats, but for masks: those have no value above 0, and may overflow."""
    floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f" and array.size}
    return [name for name, array in floats.items() if 0 < array.max() < math.inf and array.min() > -math.inf]


class _GuardedTaps:
    """The session that shows a group of tensors, and the guard that tells what it watches.

    Attributes:
        current: Both; a batch that was begun with them is judged with them.
    """

    def __init__(
        self,
        opened: Callable[[MagnitudeGuard | None], Taps],
        guard: MagnitudeGuard | None,
        *,
        may_widen: bool,
    ) -> None:
        self.current = guard, opened(guard)
        self._open = opened
        self._may_widen = may_widen
        self._lock = Lock()

    def widen(
        self,
        used: MagnitudeGuard,
        arrays: Mapping[str, NDArray[Any]],
        inputs: Mapping[str, float],
        made: Mapping[str, float],
    ) -> None:
        """Watches more after a batch of which the guard that was used proved too little."""
        with self._lock:
            guard, taps = self.current
            if not self._may_widen or used is not guard:
                return
            wider = used.widen(arrays, inputs, made)
            is_same = (wider.watched, wider.doubtful) == (guard.watched, guard.doubtful)
            self.current = wider, taps if is_same else self._open(wider)


def _survey_feed(
    look: Callable[[Mapping[str, NDArray[Any]]], Survey], inputs: Mapping[str, NDArray[Any]], may_split: bool
) -> tuple[Survey, bool]:
    """Returns what the first feed shows, and whether the feeds may be split indeed."""
    if may_split:
        with suppress(ModelError):
            return look(slice_arrays(inputs, 0, 1)), True
    return look(inputs), False


def _describe_nonfinite(name: str, values: NDArray[Any], taps: Taps, batch: _MicroBatch) -> DataError:
    bad = ~np.isfinite(values.astype(np.float32))
    num_samples = len(next(iter(batch.arrays.values())))
    where = batch.feed.source
    if batch.feed.num_samples > 1 and bad.ndim and len(bad) == num_samples:
        where += f", in its sample {batch.start + int(np.argwhere(bad)[0][0])}"
    by = f", made by {taps.producers[name]}," if name in taps.producers else ""
    count = format_count(int(bad.sum()), "NaN or infinite value")
    return DataError(
        f"tensor {name!r} of the float model{by} has {count} on {where}; leave this "
        f"data out or repair the model"
    )
