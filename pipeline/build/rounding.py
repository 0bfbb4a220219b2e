"""When the gate fails: whether weights that are rounded by data bring the outputs nearer, in every format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trtq.models.spec import AUTO, SLOW_REPAIRS
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import place_in
from trtq.pipeline.build.keys import make_keys
from trtq.pipeline.build.methods import RangedJob, find_worst_db
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.build.ranges import JobRanges
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import judge
from trtq.progress import Log

_MOST_LOST_DB = 0.2
"""With all layers in the cheapest format, rounding may gain nothing, and gain in the other ones."""


def try_roundings(
    start: RangedJob,
    write: Callable[[Job, JobRanges], ModelFiles],
    compare: Callable[[Job, ModelFiles], Comparison],
    log: Log,
) -> RangedJob:
    """Returns the job with its weights rounded by data in each of several formats, if its gate fails without.

    The repair is `adaround`, which `auto` leaves out in INT8 because it is slow. The real models are compared
    then, with every layer in the cheapest format: if that is farther from the float model, all stays.

    Args:
        start: A build with Q/DQ, compared. The outcome of what is returned says what is done here alone.
        write: Writes the models of a job in the place of those before.
        compare: Compares them.
        log: Is told of it.
    """
    job, ranges = start.job, start.calibrated.ranges
    if not (forms := _list_forms(start)) or ranges is None or job.calibration is None:
        return replace(start, outcome="")
    repairs = tuple(dict.fromkeys((*job.spec.quantization.repair, *SLOW_REPAIRS)))
    quantization = replace(job.spec.quantization, repair=repairs)
    other = replace(job, spec=replace(job.spec, quantization=quantization))
    log.stage("Rounding weights")
    with log.timed("auto"):
        found: dict[str, bytes] = {}
        for form in forms:
            found |= find_roundings(job.graph.model, place_in(job, form), ranges, job.calibration)
        if not found:
            return replace(start, outcome="")
        rounded = replace(ranges, roundings={**found, **ranges.roundings})
        calibrated = replace(start.calibrated, ranges=rounded)
        models = write(other, calibrated)
        comparison = compare(other, models)
    before, after = find_worst_db(start.comparison), find_worst_db(comparison)
    option, asked = job.target.search_option, f"--repair {','.join(repairs)}"
    if not after >= before - _MOST_LOST_DB:
        log.note(
            f"{option}: weights are not rounded by data: {after:.1f} dB with it, {before:.1f} dB without"
        )
        return replace(start, models=write(job, start.calibrated), outcome="")
    outcome = f"weights are rounded by data ({asked})"
    log.note(
        f"{option}: {outcome}: {after:.1f} dB with every layer in the cheapest format, {before:.1f} before"
    )
    keys = {**job.keys, "ranges": make_keys(other)["ranges"]}
    return RangedJob(replace(other, keys=keys), calibrated, models, comparison, outcome)


def _list_forms(start: RangedJob) -> list[Precision]:
    """Returns the formats whose weights are not rounded yet; none where that is not asked for, or needed.

    In INT8 alone it gains little for its time.
    """
    job, tried = start.job, start.calibrated.repairs
    own = job.spec.quantization
    if len(job.target.code_formats) < 2:
        return []
    fails = judge(start.comparison, job.spec.accuracy, candidate=job.name).outcome == "fail"
    if not fails or own.effort == "quick" or job.is_random or not job.calibrates:
        return []
    if not {*own.repair} & {AUTO, *SLOW_REPAIRS}:
        return []
    names = () if tried is None else tuple(item.name for item in tried.tried)
    is_done = not {*names}.isdisjoint(SLOW_REPAIRS)
    return [form for form in job.target.code_formats if not (is_done and form == job.target.precision)]
