"""The whole job: from a float ONNX file to a verified engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trtq.calibrators.memory import give_back_memory
from trtq.calibrators.ranges import Ranges
from trtq.models.session import count_weight_bytes
from trtq.models.spec import ModelSpec
from trtq.pipeline.build.begin import begin_build
from trtq.pipeline.build.beside import ComparisonBeside, may_compare_beside
from trtq.pipeline.build.comparison import EnginePlan, compare_job, name_to_judge
from trtq.pipeline.build.engine import EngineBuild, build_engine, find_layers_without_kernel
from trtq.pipeline.build.folder import measure_sizes, write_folder
from trtq.pipeline.build.found import revise
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import NO_KERNEL, add_other_formats, keep_layers
from trtq.pipeline.build.methods import RangedJob, try_methods
from trtq.pipeline.build.models import ModelFiles, report_caches, report_job_weights, write_models
from trtq.pipeline.build.ranges import JobRanges, find_ranges
from trtq.pipeline.build.rounding import try_roundings
from trtq.pipeline.build.search import SearchResult, compare_written, search_layers
from trtq.pipeline.build.share import measure_quantized_share
from trtq.pipeline.build.shared import SharedRanges, take_shared
from trtq.pipeline.build.speed import judge_job_speed
from trtq.pipeline.build.unseen import doubt_zero_inputs, warn_of_other_scale
from trtq.pipeline.calibrate.data import find_shapes
from trtq.pipeline.deliver.earlier import EarlierBuild
from trtq.pipeline.deliver.folder import stage_folder
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.report import SCHEMA_VERSION, AutoReport, Report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.evaluate import find_labels
from trtq.pipeline.judge.gate import Outcome, Verdict, judge
from trtq.pipeline.judge.score import load_labels
from trtq.pipeline.judge.speed import SpeedVerdict
from trtq.pipeline.judge.witness import check_against_file
from trtq.pipeline.sign import sign
from trtq.progress import Log, Watcher, choose_watcher
from trtq.workers import Workers

_MOST_REBUILDS = 2
"""Where layers turn out to have no kernel for the format that they were asked in."""
_WORST_FIRST: tuple[Outcome, ...] = ("fail", "unverified", "pass")


def build(
    model: Path | str | onnx.ModelProto | ir.Model,
    data: Any = None,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    random_data: bool = False,
    sign_key: Path | str | None = None,
    watcher: Watcher | None = None,
    workers: Workers | None = None,
    shared: SharedRanges | None = None,
    **options: Any,
) -> Report:
    """Builds an engine, compares it with the float model, and returns the report.

    Writes the engine, the INT8 and FP16 models, the ranges, the calibration cache, the manifest and the
    report to `output`, atomically. Stages of an earlier build in that folder are reused if their inputs are
    unchanged; an undecided speed gate is measured again. The report's verdict is the result of the gate.

    Args:
        model: The ONNX file; or the model itself, which is then saved next to the output.
        data: Calibration data: anything that `--calib-data` takes; or an array, a dict of arrays or an
            iterable of dicts, which are saved next to the output. None: the data named in the settings.
        spec: The model settings; None: read from `<name>.toml` or `model.toml` next to it.
        target: What to build; None: INT8 with the first engine builder that works here.
        output: The build folder; None: `<name>.trtq` next to the model. If it ends in .engine, .plan or .trt,
            the engine is also copied to that file unless the gate fails, with the folder next to it.
        random_data: Calibrate with random numbers, to try out a build; the verdict is then "unverified".
        sign_key: Private Ed25519 key (PEM) to sign the folder with, unless the gate fails. An earlier build
            is reused only if this key signed it.
        watcher: Receives the progress; None: it is logged, and shown as a bar in a notebook.
        workers: Where calibration, trials, GPTQ and AWQ, the choice of formats and comparisons run:
            `trtq.Processes` or `trtq.Ray`; None: threads of this process. The result is the same.
        shared: Ranges made from the same arguments for builds on several kinds of machines; see
            `trtq build-all`. None: this build calibrates itself.
        **options: Options of `trtq build`, with underscores for dashes; they override `spec` and `target`:
            int8=True, skip=["^head"], min_cosine=0.999, backend="onnxruntime".

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used.
        ArtifactError: The output cannot be written, or its folder was not written by trtq.
        BuildError: The engine could not be built.
        MissingDependency: The engine builder, or the signing library, is not installed.
        WorkerError: The workers cannot be reached, or died.
    """
    log = Log(choose_watcher(watcher))
    start = begin_build(
        model, data, spec=spec, target=target, output=output, random_data=random_data, sign_key=sign_key,
        options=options, watcher=log,
    )  # fmt: skip
    job, places, earlier = replace(start.job, workers=workers), start.places, start.earlier
    if earlier is not None and "everything" in start.reused:
        log.note(f"nothing has changed since {job.folder} was built")
        known = replace(
            earlier.report, model=str(job.graph.path), output=str(job.folder), reused=("everything",)
        )
        places.deliver(known)
        return known
    result = run_job(job, log, earlier, shared)
    if sign_key is not None and result.verdict != "fail":
        sign(job.folder, sign_key)
    places.deliver(result)
    return result


def run_job(
    job: Job, log: Log, earlier: EarlierBuild | None = None, shared: SharedRanges | None = None
) -> Report:
    """Runs a prepared build and returns its report; `build` says what is written and raised.

    Args:
        job: What `prepare` decided.
        log: What was said so far; what is said from here on is added.
        earlier: A build in the same folder whose stages may be used again.
        shared: Ranges that were made for this build and others.
    """
    given = take_shared(job, shared, log)
    if given is None and (earlier is None or "ranges" not in earlier.same):  # else they were checked then
        data = job.calibration or job.evaluation
        check_against_file(job.graph, data, log, find_shapes(job.spec, job.target))
    with stage_folder(job.folder) as stage:
        calibrated = given or find_ranges(job, earlier, log)
        give_back_memory(weight_bytes := count_weight_bytes(job.graph.model))
        ranges = calibrated.ranges
        warn_of_other_scale(job, ranges, log)
        job = add_other_formats(replace(job, attention=() if ranges is None else ranges.attention))
        job = _keep_as_before(job, ranges, earlier)
        models = write_models(job, ranges, stage, log)
        give_back_memory(weight_bytes)
        auto = comparison = None
        if job.target.searches and job.placement.quantized and ranges is not None:
            calibrated, found = _search(job, calibrated, models, stage, log)
            ranges = calibrated.ranges
            job, models, auto, comparison = found.job, found.models, found.auto, found.comparison
        built = _build_where_kernels_are(_Work(job, models, comparison), ranges, earlier, stage, log)
        give_back_memory(weight_bytes)
        if auto is not None and built.job is not job:
            auto = revise(auto, built.job)
        plan = EnginePlan(stage / ENGINE, built.engine.report.profiles)
        comparison = built.comparison
        if not built.is_compared:
            comparison = compare_job(built.job, built.models.files, log, plan, comparison)
        give_back_memory(weight_bytes)
        speed = judge_job_speed(built.job, built.models, built.engine, stage, log)
        result = _report(built, calibrated, auto, comparison, speed, stage, log)
        write_folder(stage, built.job, ranges, result, built.engine, calibrated.tensors)
        return result


def _search(
    job: Job, calibrated: JobRanges, models: ModelFiles, stage: Path, log: Log
) -> tuple[JobRanges, SearchResult]:
    """Returns what `--auto` makes of a job with models: other ranges, rounded weights, then other formats."""
    labels = load_labels(find_labels(job.spec.evaluation, job.spec.accuracy.metric))

    def write(changed: Job, found: JobRanges) -> ModelFiles:
        return write_models(changed, found.ranges, stage, log)

    def compare(changed: Job, files: ModelFiles) -> Comparison:
        return compare_written(changed, files, labels, log)

    first = try_methods(RangedJob(job, calibrated, models, compare(job, models)), write, compare, log)
    start = try_roundings(first, write, compare, log)
    calibrated = start.calibrated
    assert calibrated.ranges is not None
    quantize = partial(write, found=calibrated)
    found = search_layers(start.job, calibrated.ranges, start.models, start.comparison, quantize, labels, log)
    outcome = "; ".join(filter(None, (first.outcome, found.auto.outcome, start.outcome)))
    method = start.job.spec.calibration.method if first.outcome else ""
    auto = replace(found.auto, outcome=outcome, method=method)
    return calibrated, replace(found, auto=auto)


@dataclass(frozen=True, slots=True)
class _Work:
    """A job, its models, and their comparison if they were compared."""

    job: Job
    models: ModelFiles
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class _BuiltWork(_Work):
    """The same with the engine, and whether what was built has been compared, where there is data."""

    engine: EngineBuild
    is_compared: bool = False


def _keep_as_before(job: Job, ranges: Ranges | None, earlier: EarlierBuild | None) -> Job:
    """Returns the job with the layers float that the engine, which is used again, was built without."""
    if earlier is None or "engine" not in earlier.same or ranges is None:
        return job
    kept = earlier.report.kept_float
    reasons = {node.name: node.reason for node in kept if node.reason.startswith(NO_KERNEL)}
    return keep_layers(job, ranges, reasons) if reasons else job


def _build_where_kernels_are(
    work: _Work, ranges: Ranges | None, earlier: EarlierBuild | None, stage: Path, log: Log
) -> _BuiltWork:
    """Builds the engine, and builds it again with those layers float that have no kernel.

    Where the engine itself is not run, the models are compared while it is built. If it has to be built
    again, that is given up at the next batch; that the builder changes its mind twice is rare.
    """
    job, models, comparison = work.job, work.models, work.comparison
    is_new = comparison is None and may_compare_beside(job)
    beside = ComparisonBeside(job, models.files, stage, log, ranges is not None) if is_new else None
    engine = build_engine(job, ranges, models, earlier, stage, log, beside)
    for _ in range(_MOST_REBUILDS):
        if ranges is None or not (reasons := find_layers_without_kernel(job, engine)):
            break
        shown = ", ".join(list(reasons)[:4]) + (" ..." if len(reasons) > 4 else "")
        log.note(f"built in float, as the builder has no {job.target.name.upper()} kernel for it: {shown}")
        job, comparison = keep_layers(job, ranges, reasons), None
        if not any(layer.scheme.form is job.target.form for layer in job.placement.layers):
            name = job.target.name.upper()
            log.warn(f"no layer of this model has an {name} kernel here: nothing runs in {name}")
        models = write_models(job, ranges, stage, log)
        is_run = job.backend.is_judged_by_engine
        beside = None if is_run else ComparisonBeside(job, models.files, stage, log, is_first=False)
        engine = build_engine(job, ranges, models, None, stage, log, beside)
    if beside is not None and beside.is_done:
        return _BuiltWork(job, models, beside.comparison, engine, is_compared=True)
    return _BuiltWork(job, models, comparison, engine)


def _report(
    work: _BuiltWork,
    calibrated: JobRanges,
    auto: AutoReport | None,
    comparison: Comparison | None,
    speed: SpeedVerdict | None,
    stage: Path,
    log: Log,
) -> Report:
    job = work.job
    verdict = _join(_judge(job, comparison, auto, calibrated.ranges), speed)
    seen = comparison if comparison is not None else Comparison()
    return Report(
        schema_version=SCHEMA_VERSION,
        verdict=verdict.outcome,
        reasons=verdict.reasons,
        model=str(job.graph.path),
        output=str(job.folder),
        backend=f"{job.backend.name} {job.backend.version()}",
        precision=job.name,
        high_precision="as it is" if job.is_as_given else job.strategy.rest.name,
        calibration=calibrated.report or work.engine.calibration,
        repairs=calibrated.repairs,
        engine=work.engine.report,
        comparison=seen.outputs,
        evaluated_samples=seen.num_samples,
        evaluation_data=seen.data,
        accuracy=seen.accuracy,
        metric=job.spec.accuracy.metric,
        top5=seen.top5,
        auto=auto,
        kept_float=job.placement.kept,
        kept_fp32=work.models.kept_fp32,
        notes=tuple(log.notes),
        warnings=tuple(log.warnings),
        reused=tuple(log.reused),
        timings_s={name: round(seconds, 3) for name, seconds in log.seconds.items()},
        weights=report_job_weights(job),
        logits=seen.logits,
        sizes_bytes=measure_sizes(job, stage),
        given=job.placement.given,
        quantized_macs=measure_quantized_share(job, work.models, work.engine.report),
        speed=speed,
        kv_cache=report_caches(work.models.built),
    )


def _join(accuracy: Verdict, speed: SpeedVerdict | None) -> Verdict:
    """Returns the worse of the two verdicts, with the reasons of both if they are the same."""
    verdicts = [accuracy, *(() if speed is None else (Verdict(speed.verdict, speed.reasons),))]
    worst = next(name for name in _WORST_FIRST if name in [item.outcome for item in verdicts])
    return Verdict(worst, tuple(text for item in verdicts if item.outcome == worst for text in item.reasons))


def _judge(
    job: Job, comparison: Comparison | None, auto: AutoReport | None, ranges: Ranges | None
) -> Verdict:
    """Returns the verdict; a model that was compared with itself alone does not pass.

    Where no choice of layers holds the gate, it has failed for what was asked, though floats hold it.
    """
    if job.unrunnable:
        return Verdict(
            "unverified", (f"{job.unrunnable}, which ONNX Runtime cannot run: nothing was compared",)
        )
    name = name_to_judge(job.name, comparison)
    inexact = job.graph.is_inexact
    verdict = judge(
        comparison, job.spec.accuracy, candidate=name, is_random=job.is_random, is_inexact=inexact
    )
    if verdict.outcome == "pass" and auto is not None and auto.quantized_macs == 0:
        return Verdict("fail", (auto.outcome,))
    if verdict.outcome == "pass" and (nothing := _find_nothing_done(job)):
        return Verdict("unverified", (f"{nothing}: float was compared with float",))
    if verdict.outcome == "pass" and (doubt := doubt_zero_inputs(job, ranges)):
        return Verdict("unverified", (doubt,))
    if verdict.outcome != "pass" or not job.is_as_given or job.spec.evaluation.reference is not None:
        return verdict
    reason = (
        "the model was already quantized and was compared with itself, which does not show what "
        "quantization cost; give the float model with --reference"
    )
    return Verdict("unverified", (reason,))


def _find_nothing_done(job: Job) -> str:
    """Returns what was asked for and is nowhere in what was built; empty if some of it is."""
    if job.target.precision == "fp16" or job.is_as_given or job.placement.quantized or job.placement.caches:
        return ""
    return (
        "no weight is stored in fewer bits" if job.target.precision == "weights" else "no layer is quantized"
    )
