"""The whole job: from a float ONNX file to a verified engine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from trtq.calibrators.cache import format_cache, to_cache
from trtq.calibrators.memory import find_peak_bytes
from trtq.calibrators.ranges import Ranges, ranges_to_json, read_ranges
from trtq.errors import BuildError
from trtq.models.session import save
from trtq.models.spec import ModelSpec
from trtq.pipeline.build.candidate import build_candidate, describe_high_precision, report_job_weights
from trtq.pipeline.build.comparison import EnginePlan, compare_job, name_to_judge
from trtq.pipeline.build.engine import EngineBuild, ModelFiles, build_engine, find_layers_without_kernel
from trtq.pipeline.build.job import Job, prepare
from trtq.pipeline.build.narrow import NO_KERNEL, keep_layers
from trtq.pipeline.build.page import measure_sizes, write_page
from trtq.pipeline.build.search import search_layers
from trtq.pipeline.calibrate.data import observe_graph, options_from_spec, warn_of_dead
from trtq.pipeline.calibrate.improve import improve_ranges, take_ranges
from trtq.pipeline.deliver import manifest, report
from trtq.pipeline.deliver.earlier import EarlierBuild, find_earlier
from trtq.pipeline.deliver.folder import stage_folder
from trtq.pipeline.deliver.html.page_data import PageData
from trtq.pipeline.deliver.html.tensors import summarize_tensors
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import CACHE, ENGINE, FLOAT, RANGES, REPORT
from trtq.pipeline.deliver.report import CalibrationReport, Report
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.cache_ranges import rename_as_in_file
from trtq.pipeline.judge.gate import judge
from trtq.pipeline.rewrite.mixed import convert_to_fp16
from trtq.pipeline.sign import sign
from trtq.progress import Log, Silent, Watcher
from trtq.records import Repairs

_MOST_REBUILDS = 2
"""Where layers turn out to have no INT8 kernel."""


def build(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    random_data: bool = False,
    sign_key: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Returns the report of the engine that was built and compared with the float model.

    Writes to `output` the engine, the INT8 and FP16 models, the ranges, the calibration cache, the manifest
    and the report; the folder appears whole or not at all. What an earlier build in that folder has made of
    the same inputs is used again. The verdict of the report says whether the gate holds.

    Args:
        model: The ONNX file.
        spec: What is known of the model; None: read from `<name>.toml` or `model.toml` beside it.
        target: What is built; None: INT8 with the first engine builder that works here.
        output: The folder; None: `<name>.trtq` beside the model.
        random_data: Calibrate with random numbers, to try a build; the verdict is then "unverified".
        sign_key: A private Ed25519 key in PEM that signs the folder, unless the gate fails. Of an earlier
            build only what it has signed is used again.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        ArtifactError: The output folder cannot be written, or is not trtq's.
        BuildError: The engine was not built.
        MissingDependency: The engine builder, or what signs, is not installed.
    """
    private = read_private_key(Path(sign_key)) if sign_key is not None else None
    log = Log(watcher or Silent())
    job = prepare(Path(model), spec, target or Target(), output, random_data, log)
    earlier = find_earlier(job.folder, job.keys, private)
    if earlier is not None and "everything" in earlier.same:
        log.note(f"nothing has changed since {job.folder} was built")
        return replace(
            earlier.report, model=str(job.graph.path), output=str(job.folder), reused=("everything",)
        )
    result = run_job(job, log, earlier)
    if sign_key is not None and result.verdict != "fail":
        sign(job.folder, sign_key)
    return result


def run_job(job: Job, log: Log, earlier: EarlierBuild | None = None) -> Report:
    """Returns the report of a prepared build; `build` says what is written and raised.

    Args:
        job: What `prepare` or `migrate` decided.
        log: What was told so far; what is told from here on is added.
        earlier: A build in the same folder whose stages may be used again.
    """
    with stage_folder(job.folder) as stage:
        calibrated = _calibrate(job, earlier, log)
        ranges, calibration, seen = calibrated.ranges, calibrated.report, calibrated.seen
        if earlier is not None and "engine" in earlier.same and ranges is not None:
            job = _as_built(job, ranges, earlier.report)
        models = _quantize(job, ranges, stage, log)
        auto = comparison = None
        if job.target.auto and job.placement.quantized and ranges is not None:
            found = search_layers(
                job, ranges, models, partial(_quantize, ranges=ranges, stage=stage, log=log), log
            )
            job, models, auto, comparison = found.job, found.models, found.auto, found.comparison
        made = build_engine(job, ranges, models, earlier, stage, log)
        for _ in range(_MOST_REBUILDS):
            if ranges is None or not (reasons := find_layers_without_kernel(job, made.report)):
                break
            log.note(f"built in float, as the builder has no INT8 kernel for it: {_named(reasons)}")
            job, comparison = keep_layers(job, ranges, reasons), None
            if not job.placement.layers:
                log.warn("no layer of this model has an INT8 kernel here: nothing runs in INT8")
            models = _quantize(job, ranges, stage, log)
            made = build_engine(job, ranges, models, None, stage, log)
        calibration = calibration or made.calibration
        comparison = compare_job(job, models.files, log, EnginePlan(stage / ENGINE, made.report.profiles), comparison)
        judged = comparison if comparison is not None and not job.is_quantized else None
        candidate = name_to_judge(job, judged)
        verdict = judge(judged, job.spec.accuracy, candidate=candidate, is_random=job.is_random)
        result = Report(
            schema_version=report.SCHEMA_VERSION,
            verdict=verdict.outcome,
            reasons=verdict.reasons,
            model=str(job.graph.path),
            output=str(job.folder),
            backend=f"{job.backend.name} {job.backend.version()}",
            precision=job.target.name,
            high_precision="as it is" if job.is_quantized else describe_high_precision(job),
            calibration=calibration,
            repairs=calibrated.repairs,
            engine=made.report,
            comparison=comparison.outputs if comparison is not None else (),
            evaluated_samples=comparison.num_samples if comparison is not None else 0,
            evaluation_data=comparison.data if comparison is not None else "",
            accuracy=comparison.accuracy if comparison is not None else {},
            metric=job.spec.accuracy.metric,
            top5=comparison.top5 if comparison is not None else {},
            auto=auto,
            kept_float=job.placement.kept,
            kept_fp32=models.kept_fp32,
            notes=tuple(log.notes),
            warnings=tuple(log.warnings),
            reused=tuple(log.reused),
            timings_s={name: round(seconds, 3) for name, seconds in log.seconds.items()},
            weights=report_job_weights(job),
            logits=comparison.logits if comparison is not None else (),
            sizes_bytes=measure_sizes(job, stage),
        )
        contract = _write_rest(job, ranges, result, made, stage)
        contract = write_page(stage, job, result, contract, seen)
        (stage / manifest.NAME).write_bytes(manifest.to_json(contract))
    return result


def _named(names: Collection[str]) -> str:
    return ", ".join(list(names)[:4]) + (" ..." if len(names) > 4 else "")


def _as_built(job: Job, ranges: Ranges, built: Report) -> Job:
    """Returns the job with the layers in float that the engine, which is used again, was built without."""
    reasons = {node.name: node.reason for node in built.kept_float if node.reason.startswith(NO_KERNEL)}
    return keep_layers(job, ranges, reasons) if reasons else job


@dataclass(frozen=True, slots=True)
class _Calibrated:
    """The ranges, and what the report and the page say of them."""

    ranges: Ranges | None = None
    report: CalibrationReport | None = None
    repairs: Repairs | None = None
    seen: PageData = field(default_factory=PageData)


def _calibrate(job: Job, earlier: EarlierBuild | None, log: Log) -> _Calibrated:
    if job.ranges is not None or not job.calibrates:
        return _Calibrated(job.ranges)
    assert job.calibration is not None
    if earlier is not None and "ranges" in earlier.same and RANGES in earlier.manifest.outputs:
        log.note("model, data and method are unchanged: the ranges of the earlier build are used again")
        log.reused.append("ranges")
        ranges = read_ranges(earlier.folder / RANGES)
        warn_of_dead(ranges, log)
        known = earlier.report
        return _Calibrated(ranges, known.calibration, known.repairs, earlier.seen)
    with log.timed("calibrate"):
        how = options_from_spec(job.spec.calibration)
        statistics = observe_graph(job.graph, job.tensors, job.calibration, how, log)
    if job.is_implicit or not job.placement.layers:
        found = take_ranges(job.graph, job.tensors, statistics, job.calibration, job.spec, log)
    else:
        with log.timed("repair"):
            found = improve_ranges(job.graph, job.placement, statistics, job.calibration, job.spec, log)
    ranges = found.ranges
    warn_of_dead(ranges, log)
    if not ranges.tensors:
        return _Calibrated(ranges)
    seconds = round(log.seconds["calibrate"], 3)
    report = CalibrationReport(
        ranges.method, ranges.data, ranges.num_samples, seconds, find_peak_bytes(), ranges.is_random
    )
    return _Calibrated(ranges, report, found.repairs, summarize_tensors(statistics, ranges, found.method))


def _quantize(job: Job, ranges: Ranges | None, stage: Path, log: Log) -> ModelFiles:
    keep_fp32 = job.spec.layers.keep_fp32
    log.stage("Quantizing")
    with log.timed("quantize"):
        if job.is_quantized:
            path = _write_model(job.graph.model, stage / "model.int8.onnx")
            return ModelFiles({"int8": path}, path, job.graph.model, ())
        baseline = convert_to_fp16(job.graph, ranges, keep_fp32=keep_fp32)
        files = {"fp32": job.graph.path}
        if job.target.precision != "weights" or job.evaluation is not None:
            files["fp16"] = _write_model(baseline.model, stage / "model.fp16.onnx")
        kept_fp32 = baseline.kept_fp32 if job.way.fp16 else ()
        if job.is_implicit or (job.target.precision == "fp16" and not job.way.is_typed):
            return ModelFiles(files, _write_model(job.graph.model, stage / FLOAT), job.graph.model, kept_fp32)
        if job.target.precision == "fp16":
            return ModelFiles(files, files["fp16"], baseline.model, baseline.kept_fp32)
        mixed = build_candidate(job, ranges, baseline)
        name = job.target.name
        files[name] = _write_model(mixed.model, stage / f"model.{name}.onnx")
    if not job.way.is_typed:
        layers = {node.name for node in job.placement.layers}
        return ModelFiles(
            files, files[name], mixed.model, tuple(item for item in kept_fp32 if item.name not in layers)
        )
    return ModelFiles(files, files[name], mixed.model, mixed.kept_fp32)


def _write_model(model: ir.Model, path: Path) -> Path:
    save(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise BuildError(
            f"trtq made an invalid {path.name}, which is its fault: {str(error)[:400]}"
        ) from error
    return path


def _write_rest(job: Job, ranges: Ranges | None, result: Report, made: EngineBuild, stage: Path) -> Manifest:
    """Writes ranges, cache and report; returns the manifest, which lacks the digests of all files."""
    if ranges is not None:
        (stage / RANGES).write_bytes(ranges_to_json(ranges))
    if ranges is not None and ranges.tensors and not job.is_implicit:
        (stage / CACHE).write_bytes(format_cache(rename_as_in_file(to_cache(ranges), job.graph)))
    for name, content in job.extra_files.items():
        (stage / name).write_bytes(content)
    (stage / REPORT).write_bytes(report.to_json(result))
    data = {"calibration": job.calibration, "evaluation": job.evaluation}
    return Manifest(
        inputs={
            str(job.graph.path): job.graph.sha256,
            **job.sources,
            **{f"{use}: {item.origin}": _sha256(item.digest) for use, item in data.items() if item},
        },
        outputs={},
        versions={**manifest.collect_versions(), job.backend.name: job.backend.version()},
        settings={"model": asdict(job.spec), "target": asdict(job.target)},
        layers=made.layers,
        commands=made.commands,
        keys=job.keys,
    )


def _sha256(digest: str | None) -> str:
    """Returns the part of a data digest that is of its content alone, without batch size and count."""
    return re.split("[/:]", digest)[0] if digest else "unknown"
