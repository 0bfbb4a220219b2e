"""The engine of a job's models: what the builder is asked for, and what came of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from trtq.calibrators.cache import ALGORITHMS, parse_cache
from trtq.calibrators.memory import find_peak_bytes
from trtq.calibrators.observe import observe
from trtq.calibrators.ranges import Ranges, Shapes
from trtq.models.spec import InputSpec
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.keep import NO_KERNEL, find_float_fallbacks
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.earlier import EarlierBuild
from trtq.pipeline.deliver.names import CACHE, ENGINE
from trtq.pipeline.deliver.report import CalibrationReport, EngineReport
from trtq.pipeline.engine.backend import BuildRequest, BuiltEngine
from trtq.pipeline.engine.coverage import list_precisions, measure_coverage
from trtq.pipeline.engine.fused import find_unfused
from trtq.pipeline.engine.implicit import list_implicit_layers, plan_implicit
from trtq.pipeline.engine.profiles import resolve_profiles
from trtq.pipeline.engine.strategy import pin_precisions
from trtq.pipeline.graph.attention import find_attentions
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.placement import holds_weights
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.progress import Log


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """The engine: what the report says of it, what each layer runs as, and how to build it without trtq.

    `unfused` are the products of attention in 8 bits that the builder did not fuse, and what runs instead.
    """

    report: EngineReport
    layers: dict[str, str]
    commands: dict[str, str]
    calibration: CalibrationReport | None = None
    unfused: Mapping[str, str] = field(default_factory=dict)


Beside = Callable[[Mapping[str, InputSpec], Callable[[], EngineBuild | None]], None]
"""Is told the profiles that the engine gets, and how to ask for it; None: it is not there yet."""


def build_engine(
    job: Job,
    ranges: Ranges | None,
    models: ModelFiles,
    earlier: EarlierBuild | None,
    stage: Path,
    log: Log,
    beside: Beside | None = None,
) -> EngineBuild:
    """Returns what was built; writes the plan, and the calibration cache where TensorRT calibrated.

    Args:
        job: What is built.
        ranges: Of the activations; None where nothing is calibrated.
        models: What the engine is built from.
        earlier: A build whose engine may be used again.
        stage: The folder.
        log: Is told of it; of time spent on `beside` nothing counts as building.
        beside: Is called while the builder works; None: nothing is done meanwhile.

    Raises:
        BuildError: The builder failed; also from within `beside`, where that asks for the engine.
    """
    if earlier is not None and "engine" in earlier.same:
        log.note("model and settings are unchanged: reusing the engine of the earlier build")
        log.reused.append("engine")
        names = (ENGINE, *((CACHE,) if job.is_implicit else ()))
        earlier.copy([name for name in names if name in earlier.manifest.outputs], stage)
        commands = dict(earlier.manifest.commands)
        return EngineBuild(
            earlier.report.engine, dict(earlier.manifest.layers), commands, earlier.report.calibration
        )
    with log.timed("build"):
        request = _request(job, ranges, models, log)
    log.stage(f"Building with {job.backend.name}")
    if beside is not None:
        built, described = _build_beside(job, models, request, beside, log)
    else:
        with log.timed("build"):
            built, described = _build(job, models, request)
    if built.plan is not None:
        (stage / ENGINE).write_bytes(built.plan)
    if built.calibration_cache is not None:
        (stage / CACHE).write_bytes(built.calibration_cache)
    return described


def _build_beside(
    job: Job, models: ModelFiles, request: BuildRequest, beside: Beside, log: Log
) -> tuple[BuiltEngine, EngineBuild]:
    """Returns what the builder made while `beside` was called; ends the builder where that is interrupted."""
    processes: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(1) as thread:
        building = thread.submit(_build, job, models, replace(request, started=processes.append))
        try:
            beside(request.profiles, partial(_find_result, building))
            with log.timed("build"):
                return building.result()
        except BaseException:
            for process in processes:
                process.kill()
            raise


def _find_result(building: Future[tuple[BuiltEngine, EngineBuild]]) -> EngineBuild | None:
    return building.result()[1] if building.done() else None


def _build(job: Job, models: ModelFiles, request: BuildRequest) -> tuple[BuiltEngine, EngineBuild]:
    """Returns what the builder made, and what there is to say of it."""
    built = job.backend.build(request)
    wanted = list_implicit_layers(job.placement) if job.is_implicit else find_quantized_layers(models.built)
    targets = built.targets or job.target.compute_capabilities
    covered = measure_coverage(wanted, built, targets)
    engine = EngineReport(
        path=models.source.name if built.plan is None else ENGINE,
        bytes=models.source.stat().st_size if built.plan is None else len(built.plan),
        quantization=job.strategy.quantization,
        quantization_reason=job.strategy.reason,
        layers_quantized=covered.layers_quantized,
        layers_realized=covered.layers_realized,
        fallbacks=covered.fallbacks,
        profiles=request.profiles,
        targets=targets,
        warnings=built.warnings,
    )
    weighted = [str(node.name) for node in filter(holds_weights, models.built.graph)]
    command = job.backend.command(request)
    return built, EngineBuild(
        engine,
        list_precisions(weighted, built),
        {"engine": command} if command else {},
        _calibrated_by_builder(job, built),
        find_unfused(find_attentions(job.graph.model.graph), job.placement, built),
    )


def _request(job: Job, ranges: Ranges | None, models: ModelFiles, log: Log) -> BuildRequest:
    profiles, notes = resolve_profiles(
        job.graph.inputs, job.target.shapes, job.spec.inputs, _shapes_of_data(job, ranges)
    )
    for note in notes:
        log.note(note)
    implicit = None
    if job.is_implicit:
        implicit = plan_implicit(job.graph, job.spec.calibration, batches=job.calibration, ranges=ranges)
        log.note(
            "TensorRT gets our ranges, as a calibration cache"
            if implicit.scales
            else f"TensorRT's own {ALGORITHMS[implicit.algorithm]} runs over the data"
        )
    fp32 = (item.name for item in models.kept_fp32)
    kept = pin_precisions(job.graph, job.placement, job.strategy, job.spec.layers, fp32)
    return BuildRequest(
        models.source,
        profiles,
        job.target.compute_capabilities,
        job.target.workspace_bytes,
        job.target.options,
        job.strategy.list_precisions(job.target.precision),
        implicit,
        kept,
    )


def _calibrated_by_builder(job: Job, built: BuiltEngine) -> CalibrationReport | None:
    """Returns how TensorRT's own calibrator found the ranges; None where it did not."""
    if built.calibration_cache is None or job.calibrates or job.calibration is None:
        return None
    cache = parse_cache(built.calibration_cache)
    return CalibrationReport(
        method=f"TensorRT's own {cache.algorithm}",
        data=job.calibration.origin,
        samples=built.calibration_samples,
        seconds=None,
        peak_rss_bytes=find_peak_bytes(),
        random=job.is_random,
    )


def _shapes_of_data(job: Job, ranges: Ranges | None) -> Mapping[str, Shapes]:
    """Returns the shapes of the inputs in the data; nothing without data, or if no input is dynamic."""
    if ranges is not None and ranges.shapes:
        return ranges.shapes
    if job.shape_data is None or not any(item.is_dynamic for item in job.graph.inputs):
        return {}
    return observe(without_fp4(job.graph.model), (), job.shape_data).shapes


def find_layers_without_kernel(job: Job, engine: EngineBuild) -> dict[str, str]:
    """Returns the layers to build again in float, and why; none where a target runs all Q/DQ in float."""
    report = engine.report
    if report.path != ENGINE or job.is_implicit or "7.5" in report.targets:
        return {}
    unfused = {name: f"{NO_KERNEL}{reason}" for name, reason in engine.unfused.items()}
    return {**find_float_fallbacks(job, report.fallbacks), **unfused}
