"""The builds of a file as jobs: the ranges of a model first, then the model on each kind of machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from trtq.cli.build_file import BuildEntry
from trtq.cli.build_kinds import refuse_unknown_kinds
from trtq.errors import UsageError
from trtq.pipeline.build_all import CommandJob


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        entries: The builds.
        jobs: Those of the builds, and those that make ranges for several.
        rows: The place of a job's build among `entries`, by the number of the job; ranges have none.
    """

    entries: tuple[BuildEntry, ...]
    jobs: tuple[CommandJob, ...]
    rows: dict[int, int]


def choose_entries(
    entries: Sequence[BuildEntry], kinds: Collection[str], *, is_farm: bool
) -> tuple[BuildEntry, ...]:
    """Returns what is built: for the kinds that are asked for, and what says no kind.

    Args:
        entries: All of the file.
        kinds: Those of `--on`; none: all, on a cluster.
        is_farm: Whether it is built on a cluster, whose machines say of which kinds they are.

    Raises:
        UsageError: A kind is in no build, or this machine would have to be of a kind that nobody said.
    """
    known = dict.fromkeys(entry.kind for entry in entries if entry.kind)
    refuse_unknown_kinds(kinds, known)
    if known and not kinds and not is_farm:
        first = next(entry for entry in entries if entry.kind)
        raise UsageError(
            f"{first.name} is for machines of the kind {first.kind}, and this machine is not known to "
            "be one; build on a cluster with --workers ray, or say what kind this machine is: --on "
            f"{first.kind}"
        )
    return tuple(entry for entry in entries if not (kinds and entry.kind) or entry.kind in kinds)


def plan_jobs(entries: Sequence[BuildEntry], everything: Sequence[BuildEntry]) -> Plan:
    """Returns the jobs for some builds of a file.

    Args:
        entries: What is built.
        everything: All builds of the file: ranges of a kind that is not built now may be used again.
    """
    several = [entry for entry in entries if entry.is_one_of_several]
    firsts = {entry.number: entry for entry in reversed(several)}
    places = {number: place for place, number in enumerate(sorted(firsts))}
    makers = [_make_ranges(firsts[number], everything) for number in places]
    builds = [_take_ranges(entry, places.get(entry.number)) for entry in entries]
    rows = {len(makers) + place: place for place in range(len(builds))}
    return Plan(tuple(entries), (*makers, *builds), rows)


def _make_ranges(entry: BuildEntry, everything: Sequence[BuildEntry]) -> CommandJob:
    """Returns the job that makes the ranges of a build; TensorRT's is done where TensorRT is."""
    job, needs_kind = entry.job, entry.job.needs_gpu
    folders = [other.output for other in everything if other.number == entry.number]
    return replace(
        job,
        arguments=(*job.arguments, "--share-ranges", *(f"--earlier={folder}" for folder in folders)),
        needs_gpu=False,
        uses_gpu=needs_kind,
        resources=job.resources if needs_kind else (),
        name=f"the calibration of {entry.name}",
        result=None,
    )


def _take_ranges(entry: BuildEntry, maker: int | None) -> CommandJob:
    job = entry.job
    if maker is None:
        return job
    return replace(job, arguments=(*job.arguments, "--take-shared"), after=maker)
