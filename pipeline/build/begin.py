"""What a build begins with, and the plan of one: everything that is decided before a model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq.models.spec import ModelSpec
from trtq.pipeline.build.arguments import gather_arguments
from trtq.pipeline.build.delivery import Places, choose_places
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.deliver.earlier import EarlierBuild, find_earlier
from trtq.pipeline.deliver.folder import refuse_foreign
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.engine.gpu import explain_missing_gpu
from trtq.pipeline.engine.target import Target
from trtq.progress import Watcher


@dataclass(frozen=True, slots=True)
class BuildStart:
    """What is to be done, where it goes, and what an earlier build there has done already."""

    job: Job
    places: Places
    earlier: EarlierBuild | None

    @property
    def reused(self) -> tuple[str, ...]:
        """The stages whose results are used again: "ranges", "engine"; or "everything"."""
        if self.earlier is None:
            return ()
        if "everything" in self.earlier.same and not _is_open(self.earlier):
            return ("everything",)
        return tuple(name for name in self.job.keys if name in self.earlier.same - {"everything"})


def begin_build(
    model: Any,
    data: Any,
    *,
    spec: ModelSpec | None,
    target: Target | None,
    output: Path | str | None,
    random_data: bool,
    sign_key: Path | str | None,
    options: Mapping[str, Any],
    watcher: Watcher,
) -> BuildStart:
    """Returns the start of a build; the arguments are those of `build`, which says what is raised."""
    private = read_private_key(Path(sign_key)) if sign_key is not None else None
    given = gather_arguments(model, data, output, spec, target, dict(options))
    places = choose_places(output)
    job = prepare(given.model, given.spec, given.target, places.folder, random_data, watcher)
    places.check(job)
    start = BuildStart(job, places, find_earlier(job.folder, job.keys, private))
    if start.reused != ("everything",):
        refuse_foreign(job.folder)
    return start


def _is_open(earlier: EarlierBuild) -> bool:
    """Returns whether the speed was not decided, and another measurement here may do it."""
    speed, is_engine = earlier.report.speed, earlier.report.engine.path == ENGINE
    is_undecided = speed is not None and speed.verdict == "unverified"
    return is_undecided and not (is_engine and explain_missing_gpu())
