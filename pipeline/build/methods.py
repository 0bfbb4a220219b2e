"""When the gate fails: whether the ranges are at fault, which other methods find in what was observed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from trtq.calibrators.entropy import Auto
from trtq.models.spec import AUTO
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keys import make_keys
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.build.ranges import JobRanges, observe_job, search_ranges
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import judge
from trtq.progress import Log
from trtq.records import REFERENCES

_CLEARLY_DB = 3.0
"""What other ranges must gain to be taken where the gate fails with them too: the noise halves in power."""


@dataclass(frozen=True, slots=True)
class RangedJob:
    """A job with its ranges, its models, and their comparison; `outcome` says what was done, if anything."""

    job: Job
    calibrated: JobRanges
    models: ModelFiles
    comparison: Comparison
    outcome: str = ""


def try_methods(
    start: RangedJob,
    write: Callable[[Job, JobRanges], ModelFiles],
    compare: Callable[[Job, ModelFiles], Comparison],
    log: Log,
) -> RangedJob:
    """Returns the job with ranges by another method, if the gate fails and these are clearly better.

    The method is the one with which the model loses least on calibration data held back, as without any named
    method; the real models are compared then. Ranges that are given, or were the best of all already, stay.

    Args:
        start: An INT8 build with Q/DQ, compared.
        write: Writes the models of a job in the place of those before.
        compare: Compares them.
        log: Is told of it.
    """
    job = start.job
    fails = judge(start.comparison, job.spec.accuracy, candidate=job.name).outcome == "fail"
    if not fails or not job.calibrates or isinstance(job.method, Auto):
        return start
    named = job.spec.calibration.method
    calibration = replace(job.spec.calibration, method=AUTO, parameters={})
    other = replace(job, spec=replace(job.spec, calibration=calibration), attention=None)
    with log.timed("auto"):
        calibrated = search_ranges(other, start.calibrated.statistics or observe_job(job, log), log)
        assert calibrated.ranges is not None
        other = replace(other, attention=calibrated.ranges.attention)
        models = write(other, calibrated)
        comparison = compare(other, models)
    before, after = find_worst_db(start.comparison), find_worst_db(comparison)
    holds = judge(comparison, job.spec.accuracy, candidate=other.name).outcome != "fail"
    method = calibrated.ranges.method.partition("(")[0]
    option, form = job.target.search_option, job.target.precision.upper()
    if not holds and not after - before >= _CLEARLY_DB:  # nor where both are broken
        log.note(
            f"{option}: other ranges than those by {named} gain too little: the best of all methods gives "
            f"{after:.1f} dB, they give {before:.1f} dB"
        )
        return replace(start, models=write(job, start.calibrated))
    outcome = (
        f"the ranges by {named} were at fault: with every layer in {form} they gave {before:.1f} dB, those "
        f"by {method} give {after:.1f} dB and are taken (--calib-method {AUTO})"
    )
    log.warn(f"{option}: {outcome}")
    keys = {**job.keys, "ranges": make_keys(other)["ranges"]}  # those of the folder are these from now on
    return RangedJob(replace(other, keys=keys), calibrated, models, comparison, outcome)


def find_worst_db(comparison: Comparison) -> float:
    """Returns the lowest SQNR of any output of the INT8 model; -inf if one is broken."""
    pairs = (item for item in comparison.outputs if item.candidate != "fp16" and item.reference in REFERENCES)
    return min((-math.inf if math.isnan(item.sqnr_db) else item.sqnr_db for item in pairs), default=0.0)
