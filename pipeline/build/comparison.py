"""The models of a job, and its engine where it can be run, against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtq.calibrators.batches import Batches
from trtq.calibrators.memory import is_memory_short
from trtq.calibrators.observe import Progress
from trtq.models.spec import InputSpec
from trtq.numbers import format_shape
from trtq.pipeline.build.job import Job
from trtq.pipeline.engine.profiles import list_profiles
from trtq.pipeline.judge.compare import Comparison, compare_models, read_coded_caches
from trtq.pipeline.judge.evaluate import filter_by_profiles, find_labels
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.settled import FailureRule
from trtq.progress import Log
from trtq.records import REFERENCES

_NONE_FITS = (
    "no sample of {} fits the engine's profiles, so nothing was compared that the engine takes; "
    "see --min-shapes and --max-shapes"
)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The file of an engine, which need not be there, and the profiles that it was built for.

    `is_coming` tells of one that is being built, and that will not be run here.
    """

    path: Path
    profiles: Mapping[str, InputSpec]
    is_coming: bool = False


def compare_job(
    job: Job,
    files: Mapping[str, Path],
    log: Log,
    plan: EnginePlan | None = None,
    known: Comparison | None = None,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> Comparison | None:
    """Returns the models, and the engine where it can be run, against each other; None without data.

    Args:
        job: With the data.
        files: The models by precision.
        log: Is told of the progress, and of data that the engine does not take.
        plan: The engine.
        known: The comparison of the models alone, if it was made.
        labels: Those of the job, if they were loaded before.
        progress: Called after every batch in place of the log; what it raises ends the comparison.
    """
    if job.evaluation is None:
        return None
    labels = labels or find_labels(job.spec.evaluation, job.spec.accuracy.metric)
    engine = open_engine(job, files.get(job.name), plan)
    data, left_out = job.evaluation, list[int]()
    doubts: tuple[str, ...] = ()
    dynamic = _find_profiles(job, plan)
    if engine is not None and dynamic:
        data = filter_by_profiles(job.evaluation, dynamic, left_out)
        if next(iter(data), None) is None:
            log.warn("no sample of the evaluation data fits the engine's profiles, so the engine was not run")
            engine = None
    if engine is None and dynamic:
        data = filter_by_profiles(job.evaluation, dynamic, left_out, any_batch=True)
        num_fitting = sum(feed.num_samples for feed in data)
        if not num_fitting:
            data, doubts = job.evaluation, (_NONE_FITS.format(data.origin),)
            left_out.clear()
    _tell_of_profiles(data, dynamic, log, any_batch=engine is None)
    if known is not None and engine is None and not left_out:
        return replace(known, doubts=(*known.doubts, *doubts))
    names = (*files, *(("engine",) if engine is not None else ()))
    own = () if job.name == "fp16" else (job.name,)
    truth = next(name for name in files if name in REFERENCES)
    wanted = [(name, other) for name in ("engine", *own) for other in (truth, "fp16")] + [("fp16", truth)]
    pairs = [pair for pair in wanted if set(pair) <= set(names)]
    if not pairs and labels is None:
        return None
    log.stage("Comparing", data.num_samples)
    with log.timed("compare"):
        engines = () if engine is None else (engine,)
        held = job.name if job.target.kv_cache is not None and job.name in files else None
        coded = {"engine": read_coded_caches(files[held])} if held is not None else {}
        is_last = plan is not None and data is job.evaluation and not job.is_random
        judged = "engine" if engine is not None else job.name
        failure = FailureRule(judged, job.spec.accuracy.min_cosine) if is_last else None
        comparison = compare_models(
            files,
            pairs,
            data,
            labels,
            progress or log.advance,
            engines,
            workers=job.workers,
            coded=coded,
            failure=failure,
            saves_memory=is_memory_short(job.spec.calibration.memory_bytes),
        )
    if left_out:
        log.warn(
            f"{sum(left_out)} samples of {data.origin} do not fit the engine's profiles and were not "
            f"compared; see --min-shapes and --max-shapes"
        )
    return replace(comparison, doubts=(*comparison.doubts, *doubts))


def _tell_of_profiles(data: Batches, dynamic: Mapping[str, InputSpec], log: Log, *, any_batch: bool) -> None:
    """Warns of optimization profiles, where there are several, that no sample fits: they are not compared."""
    profiles = list_profiles(dynamic)
    for number, profile in enumerate(profiles if len(profiles) > 1 else ()):
        alone = {name: InputSpec(item.min, item.opt, item.max) for name, item in profile.items()}
        if next(iter(filter_by_profiles(data, alone, [], any_batch=any_batch)), None) is None:
            shapes = ", ".join(f"{name} {format_shape(item.opt)}" for name, item in profile.items())
            log.warn(
                f"no sample of {data.origin} fits optimization profile {number} ({shapes}), so it was not "
                f"compared; give --eval-data of its shapes too"
            )


def _find_profiles(job: Job, plan: EnginePlan | None) -> dict[str, InputSpec]:
    """Returns the profiles of an engine's inputs with open shapes; none where the model itself is run."""
    if plan is None or not (plan.is_coming or plan.path.exists()):
        return {}
    return {item.name: plan.profiles[item.name] for item in job.graph.inputs if item.is_dynamic}


def open_engine(job: Job, file: Path | None, plan: EnginePlan | None) -> Any:
    """Returns a runner of what was built, as it will run; None if it is not built yet or not run here."""
    if plan is None or plan.is_coming:
        return None
    if plan.path.exists():
        return job.backend.runner(plan.path.read_bytes(), "engine")
    return None if file is None else job.backend.model_runner(file, "engine")


def name_to_judge(model: str, comparison: Comparison | None) -> str:
    """Returns which of the compared models is judged: the engine where it was run, else its model."""
    ran = comparison is not None and any(candidate == "engine" for candidate, _ in comparison.pairs)
    return "engine" if ran else model
