"""The pass over the calibration data: by one process or by workers, of all or a part, with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import ChannelLayout
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.parts import (
    Checkpoint,
    SharedPass,
    choose_num_parts,
    describe_source,
    observe_parts,
)
from trtq.calibrators.statistics import Histogram, Statistics, StatisticsSource
from trtq.calibrators.statistics_file import read_statistics, refuse_other, statistics_to_bytes
from trtq.errors import ArtifactError, UsageError
from trtq.files import write_atomically
from trtq.models.packed import pack
from trtq.pipeline.calibrate.data import ObserveOptions, show_part
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.load import Graph
from trtq.progress import Watcher


def observe_graph(
    graph: Graph,
    tensors: Sequence[str],
    batches: Batches,
    how: ObserveOptions,
    watcher: Watcher,
    channels: Mapping[str, ChannelLayout] = MappingProxyType({}),
) -> Statistics:
    """Returns the statistics of the named tensors.

    Args:
        graph: The float model.
        tensors: What is observed of it.
        batches: The data.
        how: How the pass is made.
        watcher: Is told of the progress.
        channels: The tensors whose channels will be asked for too. They are measured on the way where one
            process reads all data in one go; else they are left to `observe_channels`.

    Raises:
        DataError: The data does not fit the model.
        ModelError: ONNX Runtime cannot run the model.
        MissingDependency: The device is not there.
        ArtifactError: The checkpoint cannot be read or written, or is of something else.
        UsageError: A checkpoint is wanted of data that nothing tells from other data.
    """
    is_unknown = batches.content is None and batches.script_digest is None
    if is_unknown and how.checkpoint is not None:
        raise UsageError(
            f"a checkpoint of {batches.origin} could not be told from one of other data; leave it out, "
            f"or give the data as files or as script.py:function"
        )
    is_read_apart = how.checkpoint is not None or how.shard[1] > 1 or how.workers is not None
    if batches.content is None and is_read_apart:
        checked = "nothing of it" if is_unknown else "only that the script is unchanged"
        watcher.warn(f"{batches.origin} must yield the same feeds every time; {checked} is checked")
    if how.workers is not None:
        work = SharedPass(
            pack(without_fp4(graph.model)),
            graph.sha256,
            tuple(tensors),
            batches,
            PassControl(how.device, how.memory_bytes, watches_all=how.watches_all),
            choose_num_parts(how.workers, batches),
        )
        return observe_parts(work, how.workers, Checkpoint(how.checkpoint, how.checkpoint_seconds), watcher)
    earlier = None
    if how.checkpoint is not None and how.checkpoint.exists():
        earlier = _earlier(how.checkpoint, _source(graph, batches, how), tensors, how.shard[0])
        if not earlier.feeds:
            watcher.note(f"{how.checkpoint} holds the whole pass: no data is read")
            return earlier
        watcher.note(f"going on from {how.checkpoint}: {earlier.num_samples} samples were seen before")

    def save(seen: Statistics) -> None:
        assert how.checkpoint is not None
        content = statistics_to_bytes(replace(seen, source=_source(graph, batches, how)))
        write_atomically(how.checkpoint, content)

    control = PassControl(
        how.device,
        how.memory_bytes,
        how.shard,
        earlier,
        save if how.checkpoint is not None else None,
        how.checkpoint_seconds,
        watcher.note,
        how.watches_all,
        {} if is_read_apart else channels,
    )
    total = batches.num_samples if how.shard[1] == 1 else None
    watcher.stage("Calibrating", total)
    if earlier is not None:
        watcher.advance(earlier.num_samples)
    seen = observe(without_fp4(graph.model), tensors, batches, watcher.advance, control)
    if how.shard[1] > 1 and not seen.num_samples:
        watcher.warn(
            f"part {show_part(how.shard)} of the data is empty: the data has fewer feeds than parts; "
            f"take fewer parts, or a smaller --calib-batch-size"
        )
    if control.save is not None:
        control.save(seen)  # what is made of it may fail
    return replace(seen, source=_source(graph, batches, how))


def _source(graph: Graph, batches: Batches, how: ObserveOptions) -> StatisticsSource:
    """Returns what is observed; it waits for the digest of the data, which is computed beside other work."""
    return describe_source(graph.sha256, batches, how.shard[1])


def _earlier(path: Path, source: StatisticsSource, tensors: Sequence[str], part: int) -> Statistics:
    """Returns what an earlier pass of the same kind has seen, to its end or not."""
    earlier = read_statistics(path)
    wanted = Statistics(dict.fromkeys(tensors, Histogram()), {}, {}, 0, source, frozenset({part}))
    refuse_other(earlier, str(path), wanted, "this pass")
    if earlier.shards != wanted.shards:
        raise ArtifactError(
            f"{path} is of part {min(earlier.shards)} of the data, this pass is of part "
            f"{part}; give each part a checkpoint of its own"
        )
    return earlier
