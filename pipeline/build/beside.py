"""The models of a job compared while the builder works, which keeps one core busy at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trtq.calibrators.memory import is_memory_short
from trtq.models.session import count_weight_bytes
from trtq.models.spec import InputSpec
from trtq.pipeline.build.comparison import EnginePlan, compare_job
from trtq.pipeline.build.engine import EngineBuild, find_layers_without_kernel
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.judge.compare import Comparison
from trtq.progress import Log

_LARGE_BYTES = 10**8
"""Of weights that are not held by the builder and the comparison at a time."""


class _RejectedError(Exception):
    """The builder has no kernel for some of the layers, so that other models will be compared."""


@dataclass(slots=True)
class ComparisonBeside:
    """A comparison that is made while an engine is built.

    Attributes:
        job: What is built.
        files: The models by precision.
        stage: The folder.
        log: Is told of the progress.
        is_first: Whether layers that turn out to have no kernel are built in float, so that what was
            compared of them is of no use.
        is_done: Whether it has come to its end.
        comparison: What it found; None without data.
    """

    job: Job
    files: Mapping[str, Path]
    stage: Path
    log: Log
    is_first: bool
    is_done: bool = False
    comparison: Comparison | None = None

    def __call__(
        self, profiles: Mapping[str, InputSpec], find_engine: Callable[[], EngineBuild | None]
    ) -> None:
        """Compares the models, until the builder turns out to reject layers; see `build_engine`."""

        def advance(num_samples: int) -> None:
            self.log.advance(num_samples)
            engine = find_engine() if self.is_first else None
            if engine is not None and find_layers_without_kernel(self.job, engine):
                raise _RejectedError

        plan = EnginePlan(self.stage / ENGINE, profiles, is_coming=True)
        with suppress(_RejectedError):
            self.comparison = compare_job(self.job, self.files, self.log, plan, progress=advance)
            self.is_done = True


def may_compare_beside(job: Job) -> bool:
    """Whether models are compared while the engine is built: it is not run, and there is memory for both."""
    is_small = count_weight_bytes(job.graph.model) < _LARGE_BYTES
    is_judged_alone = not job.backend.is_judged_by_engine
    return is_judged_alone and is_small and not is_memory_short(job.spec.calibration.memory_bytes)
