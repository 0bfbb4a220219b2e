"""One pass over the data by many workers: each observes some parts of it, and their counts add up exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.observe import PassControl, PreparedPass, observe, prepare_pass
from trtq.calibrators.statistics import Histogram, Statistics, StatisticsSource
from trtq.calibrators.statistics_file import (
    merge_statistics,
    read_statistics,
    refuse_other,
    statistics_to_bytes,
)
from trtq.errors import ArtifactError
from trtq.files import write_atomically
from trtq.models.packed import PackedModel, pack
from trtq.progress import Silent, Watcher
from trtq.workers import Shared, Workers, make_once

_PARTS_EACH = 4
"""Parts for each worker, so that a slow one holds up little."""


@dataclass(frozen=True, slots=True)
class SharedPass:
    """What every part of a pass is made with.

    Attributes:
        model: The float graph.
        model_sha256: Of its file.
        tensors: Those to observe.
        batches: The data.
        control: How; its part is set for each.
        num_parts: In how many parts the data is observed.
    """

    model: PackedModel
    model_sha256: str
    tensors: tuple[str, ...]
    batches: Batches
    control: PassControl
    num_parts: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the parts that are done are kept, and how often they are written; without a file nowhere."""

    path: Path | None = None
    seconds: float = 60.0


def describe_source(model_sha256: str, batches: Batches, num_parts: int) -> StatisticsSource:
    """Returns what is observed; it waits for the digest of the data, which is computed beside other work."""
    digest = batches.digest or batches.script_digest or f"unread: {batches.origin}"
    return StatisticsSource(model_sha256, batches.origin, digest, batches.is_random, num_parts)


def choose_num_parts(workers: Workers, batches: Batches) -> int:
    """Returns in how many parts data is observed: no more than there are feeds, if that is known.

    Where there are as many files as workers, no more than files: a part then reads its own files alone.
    """
    wanted, num_files = _PARTS_EACH * workers.count(), len(batches.files)
    if num_files >= workers.count():
        return min(wanted, num_files)
    if batches.num_samples is None or not batches.feed_samples:
        return wanted
    return max(1, min(wanted, math.ceil(batches.num_samples / batches.feed_samples)))


def observe_by(
    workers: Workers | None,
    model: ir.Model,
    tensors: Sequence[str],
    batches: Batches,
    control: PassControl,
) -> Statistics:
    """Returns what `observe` does, by these workers; None: by this process."""
    if workers is None:
        return observe(model, tensors, batches, control=control)
    work = SharedPass(pack(model), "", tuple(tensors), batches, control, choose_num_parts(workers, batches))
    return observe_parts(work, workers, Checkpoint(), Silent())


def observe_parts(work: SharedPass, workers: Workers, checkpoint: Checkpoint, watcher: Watcher) -> Statistics:
    """Returns what one pass of a single process would see, to the last count.

    Args:
        work: What is observed.
        workers: Who do it.
        checkpoint: What an interrupted pass has left, and where this one leaves its parts.
        watcher: Is told of every part.

    Raises:
        ArtifactError: The checkpoint is of something else, or cannot be written.
        DataError: The data cannot be read on a worker, or is other data there.
        WorkerError: The workers cannot be used.
    """
    merged = _read_earlier(work, checkpoint, watcher)
    if merged is not None:
        work = replace(work, num_parts=merged.source.num_shards)
    watcher.stage("Calibrating", work.batches.num_samples)
    if merged is not None:
        watcher.advance(merged.num_samples)
    wanted = describe_source(work.model_sha256, work.batches, work.num_parts)
    saved = time.monotonic()
    for part in _observe_missing(work, workers, merged):
        merged = _add(merged, part, wanted)
        watcher.advance(part.num_samples)
        if checkpoint.path is not None and time.monotonic() - saved >= checkpoint.seconds:
            write_atomically(checkpoint.path, statistics_to_bytes(merged))
            saved = time.monotonic()
    assert merged is not None
    if checkpoint.path is not None:
        write_atomically(checkpoint.path, statistics_to_bytes(merged))
    return replace(merged, source=replace(merged.source, num_shards=1), shards=frozenset({1}))


def _observe_missing(work: SharedPass, workers: Workers, merged: Statistics | None) -> Iterator[Statistics]:
    done = frozenset[int]() if merged is None else merged.shards
    missing = [part for part in range(1, work.num_parts + 1) if part not in done]
    return workers.map(partial(_observe_part, workers.share(work)), missing)


def _observe_part(shared: Shared[SharedPass], part: int) -> Statistics:
    """Returns what one part of the data shows; this runs on a worker."""
    work = shared()
    seen = make_once(_prepare, shared).observe((part, work.num_parts))
    return replace(seen, source=describe_source(work.model_sha256, work.batches, work.num_parts))


def _prepare(work: SharedPass) -> PreparedPass:
    return prepare_pass(work.model.unpack(), work.tensors, work.batches, work.control)


def _add(merged: Statistics | None, part: Statistics, wanted: StatisticsSource) -> Statistics:
    """Returns the statistics with those of one more part, under the name that the data has here."""
    part = replace(part, source=replace(part.source, data=wanted.data))
    here = _empty(list(part.histograms), wanted)
    refuse_other(part, f"part {min(part.shards)} as its worker reads it", here, "the data as it is read here")
    return part if merged is None else merge_statistics([merged, part], ["the parts before", "this part"])


def _read_earlier(work: SharedPass, checkpoint: Checkpoint, watcher: Watcher) -> Statistics | None:
    """Returns the parts that an interrupted pass has left."""
    path = checkpoint.path
    if path is None or not path.exists():
        return None
    found = read_statistics(path)
    if found.feeds:
        raise ArtifactError(
            f"{path} is of a pass by one process, which was interrupted; let the same command finish it "
            f"without --workers, or delete it"
        )
    wanted = _empty(work.tensors, describe_source(work.model_sha256, work.batches, found.source.num_shards))
    refuse_other(found, str(path), wanted, "this pass")
    watcher.note(f"going on from {path}: {found.num_samples} samples were seen before")
    return found


def _empty(tensors: Sequence[str], source: StatisticsSource) -> Statistics:
    return Statistics(dict.fromkeys(tensors, Histogram()), {}, {}, 0, source)
