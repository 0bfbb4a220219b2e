"""Ranges that are made once for builds of one model on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.calibrators.ranges import parse_ranges, ranges_to_json
from trtq.json import FileKind
from trtq.models.spec import ModelSpec
from trtq.pipeline.build.delivery import choose_places
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keys import make_shared_key
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.build.ranges import JobRanges, find_ranges
from trtq.pipeline.calibrate.data import find_shapes
from trtq.pipeline.deliver.earlier import EarlierBuild, find_earlier
from trtq.pipeline.deliver.html.page_data import PageData
from trtq.pipeline.deliver.report import CalibrationReport
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.witness import check_against_file
from trtq.progress import Log, Watcher
from trtq.records import Repairs
from trtq.workers import Workers

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class SharedRanges:
    """The ranges of a build, for others with the same model, data and method.

    Attributes:
        key: A digest of what they depend on.
        ranges: As a ranges file has them; empty: the build needs none.
        report: How they were found.
        repairs: What was chosen.
        tensors: What the page shows of them.
        notes: What was said of them; `warnings` likewise.
    """

    key: str
    ranges: str = ""
    report: CalibrationReport | None = None
    repairs: Repairs | None = None
    tensors: PageData = field(default_factory=PageData)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


PIPED = FileKind(SharedRanges, "set of shared ranges", "trtq build-all", "shared ranges", has_null=True)
"""They go from process to process, and are never a file that lasts."""


def share_ranges(
    model: Path,
    *,
    spec: ModelSpec,
    target: Target,
    output: Path | None,
    random_data: bool,
    sign_key: Path | None,
    watcher: Watcher,
    workers: Workers | None,
    earlier: Sequence[Path],
) -> SharedRanges:
    """Returns the ranges that `build` would make from the same arguments; writes nothing.

    Args:
        model: The ONNX file.
        spec: The model's settings.
        target: What is built.
        output: Where it goes, as of `build`.
        random_data: Calibrate with random numbers.
        sign_key: Of an earlier build, only what this private key has signed is used again.
        watcher: Receives the progress.
        workers: Who share the work.
        earlier: Folders of builds whose ranges are taken if they are the same.

    Raises:
        ModelError, DataError, UsageError, MissingDependency, WorkerError: As of `build`.
    """
    private = read_private_key(sign_key) if sign_key is not None else None
    log = Log(watcher)
    job = prepare(model, spec, target, choose_places(output).folder, random_data, log)
    job = replace(job, workers=workers)
    found = _find_same(job, earlier, private)
    if found is None:
        data = job.calibration or job.evaluation
        check_against_file(job.graph, data, log, find_shapes(job.spec, job.target))
    made = find_ranges(job, found, log)
    return SharedRanges(
        make_shared_key(job),
        "" if made.ranges is None else ranges_to_json(made.ranges).decode(),
        made.report,
        made.repairs,
        made.tensors,
        tuple(log.notes),
        tuple(log.warnings),
    )


def _find_same(job: Job, folders: Sequence[Path], private: Ed25519PrivateKey | None) -> EarlierBuild | None:
    """Returns the first earlier build that has the ranges of a job."""
    keys = {"ranges": job.keys["ranges"]}
    found = (find_earlier(folder, keys, private) for folder in folders)
    return next((item for item in found if item is not None), None)


def take_shared(job: Job, shared: SharedRanges | None, log: Log) -> JobRanges | None:
    """Returns the ranges that were made for a job and others; None if there are none, or they are not its."""
    if shared is None or not shared.ranges or not job.calibrates:
        return None
    if shared.key != make_shared_key(job):
        log.warn(
            "this build is calibrated separately, because it quantizes other layers or has other "
            "settings than the other kinds of machines: its quantized model differs from theirs"
        )
        return None
    for text in shared.notes:
        log.note(text)
    for text in shared.warnings:
        log.warn(text)
    ranges = parse_ranges(shared.ranges.encode(), "the shared ranges")
    return JobRanges(ranges, shared.report, shared.repairs, shared.tensors)
