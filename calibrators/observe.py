"""One pass over the data that fills the statistics of every tensor that will be quantized.

The model runs in as many threads as there are cores, each with a part of a feed at a time, and counts the
values where they are, so that nothing is copied or kept. Counts do not depend on the order: the result is the
same for any number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.gathering import Gathering
from trtq.calibrators.plan import PassPlan, plan_passes
from trtq.calibrators.ranges import FP16_LIMIT
from trtq.calibrators.statistics import Statistics
from trtq.calibrators.survey import Survey, refuse_unknown, survey
from trtq.calibrators.taps import Taps, open_taps
from trtq.errors import DataError, ModelError
from trtq.models.session import SessionOptions
from trtq.workers import Threads

Progress = Callable[[int], None]
"""Called after every feed with the number of its samples."""

QUIET = FP16_LIMIT / 64
"""A tensor that stays below it in the first sample is not watched in the others."""
LOUD = FP16_LIMIT / 8
"""Where an observed tensor that was quiet goes beyond it, all tensors are looked at again."""


@dataclass(frozen=True, slots=True)
class PassControl:
    """How the pass is made.

    Attributes:
        device: Where the model runs: `cpu` or `cuda`.
        memory_bytes: What the observed tensors may take beside the model; None: half of what is free.
        shard: Which part of the data is observed, and of how many: (3, 8) is every 8th feed from the third.
        earlier: The statistics of an interrupted pass, to go on with.
        save: Is given the statistics now and then, to go on from.
        save_seconds: How often.
        note: Is told what the user may want to know.
    """

    device: str = "cpu"
    memory_bytes: int | None = None
    shard: tuple[int, int] = (1, 1)
    earlier: Statistics | None = None
    save: Callable[[Statistics], None] | None = None
    save_seconds: float = 60.0
    note: Callable[[str], None] = field(default=lambda _: None)


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
        progress: Told of every feed.
        control: How the pass is made.

    Raises:
        DataError: The data does not fit, or makes a tensor NaN or infinite (tensor, node and sample
            are named).
        ModelError: ONNX Runtime cannot run the model.
        MissingDependency: The device is not there.
    """
    control = control or PassControl()
    refuse_unknown(model, tensors)
    gathering = Gathering(tensors, [str(value.name) for value in model.graph.inputs], control.earlier)
    if not tensors:
        for feed in batches:
            gathering.finish(feed, ())
            progress(feed.num_samples)
        return gathering.statistics(1, is_whole=True)
    if (begin := next(iter(batches), None)) is None:
        return gathering.statistics(control.shard[0], is_whole=True)
    computed = [name for name in tensors if name not in begin.arrays]
    found, may_split = _first_look(model, computed, begin, control.device, _may_split(model, batches))
    gathering.raise_magnitudes(found.magnitudes)
    sizes = {name: found.sizes.get(name, 0) for name in tensors}
    plan = plan_passes(sizes, gathering.feeds, may_split, control.memory_bytes)
    if plan.note:
        control.note(plan.note)
    observer = _Observer(model, found, plan, gathering, control)
    for group in plan.groups:
        observer.observe(group, batches, progress)
    return gathering.statistics(control.shard[0], is_whole=True)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some samples of a feed: from `start` on."""

    feed: Feed
    start: int
    arrays: Mapping[str, NDArray[Any]]
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Observer:
    model: ir.Model
    survey: Survey
    plan: PassPlan
    gathering: Gathering
    control: PassControl

    def observe(self, group: Sequence[str], batches: Batches, progress: Progress) -> None:
        """Adds what one pass over the rest of the data shows of a group of tensors."""
        engine = SessionOptions(
            self.control.device, self.plan.threads_a_run, self.plan.keeps_memory, keeps_order=True
        )
        watched = [name for name, magnitude in self.survey.magnitudes.items() if magnitude >= QUIET]
        watched = [name for name in watched if name not in group]
        taps = open_taps(self.model, group, watched, engine)
        index, num_shards = self.control.shard
        feeds = batches.every(index - 1 + self.gathering.feeds[group[0]] * num_shards, num_shards)

        def look(part: _Part) -> _Part:
            self._look(taps, part)
            return part

        while True:
            deadline = time.monotonic() + self.control.save_seconds
            num_feeds = 0
            stretch = self._parts(feeds, deadline if self.control.save is not None else math.inf)
            for part in Threads(self.plan.num_runs).map(look, stretch):
                if part.is_last:
                    num_feeds += 1
                    if self.gathering.finish(part.feed, group):
                        progress(part.feed.num_samples)
            if time.monotonic() < deadline or self.control.save is None or not num_feeds:
                return
            self.control.save(self.gathering.statistics(index, is_whole=False))

    def _parts(self, feeds: Iterator[Feed], deadline: float) -> Iterator[_Part]:
        """Yields the feeds in parts; ends after a whole feed when it is time to save."""
        for feed in feeds:
            size = self.plan.part_samples or feed.num_samples
            fed = _fed(self.model, feed)
            for start in range(0, feed.num_samples, size):
                is_last = start + size >= feed.num_samples
                arrays = fed
                if size < feed.num_samples:
                    arrays = {name: array[start : start + size] for name, array in fed.items()}
                yield _Part(feed, start, arrays, is_last)
            if time.monotonic() >= deadline:
                return

    def _look(self, taps: Taps, part: _Part) -> None:
        """Counts the values of every tensor; what follows from them depends on this part alone."""
        loud = False

        def tensor(name: str, values: NDArray[Any]) -> None:
            nonlocal loud
            largest = self.gathering.add(name, values)
            if math.isinf(largest):
                raise _goes_wrong(name, values, taps, part)
            loud = loud or (largest > LOUD and self.survey.magnitudes.get(name, 0.0) < QUIET)

        taps.show(part.arrays, tensor, lambda name, value: self.gathering.raise_magnitudes({name: value}))
        if loud:
            found = survey(self.model, (), part.arrays, self.control.device)
            self.gathering.raise_magnitudes(found.magnitudes)


def _may_split(model: ir.Model, batches: Batches) -> bool:
    """Returns whether the samples of a feed may be run apart."""
    shapes = [value.shape for value in model.graph.inputs]
    open_axes = all(shape is not None and len(shape) and not isinstance(shape[0], int) for shape in shapes)
    return batches.feed_samples is not None and open_axes


def _first_look(
    model: ir.Model, tensors: Sequence[str], feed: Feed, device: str, may_split: bool
) -> tuple[Survey, bool]:
    """Returns what the first feed shows, and whether the feeds may be cut indeed.

    An open batch axis may be a promise that the model breaks, such as by a Reshape to a constant shape.
    """
    if may_split:
        with suppress(ModelError):
            return survey(model, tensors, _fed(model, _first_sample(feed)), device), True
    return survey(model, tensors, _fed(model, feed), device), False


def _first_sample(feed: Feed) -> Feed:
    return Feed({name: array[:1] for name, array in feed.arrays.items()}, feed.source, 1)


def _fed(model: ir.Model, feed: Feed) -> dict[str, NDArray[Any]]:
    return {str(value.name): feed.arrays[str(value.name)] for value in model.graph.inputs}


def _goes_wrong(name: str, values: NDArray[Any], taps: Taps, part: _Part) -> DataError:
    bad = ~np.isfinite(values.astype(np.float32))
    num_samples = len(next(iter(part.arrays.values())))
    where = part.feed.source
    if part.feed.num_samples > 1 and bad.ndim and len(bad) == num_samples:
        where += f", in its sample {part.start + int(np.argwhere(bad)[0][0])}"
    by = f", made by {taps.producers[name]}," if name in taps.producers else ""
    return DataError(
        f"tensor {name!r} of the float model{by} goes wrong on {where}: "
        f"{int(bad.sum())} values are NaN or infinite; leave this data out or repair the model"
    )
