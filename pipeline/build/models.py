"""The models of a build: those that are compared, and the one that the engine is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from trtq.calibrators.ranges import Ranges
from trtq.errors import BuildError
from trtq.kept import KeptFp32
from trtq.models.session import save
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.names import FLOAT
from trtq.pipeline.deliver.report import KvCacheReport, WeightsReport
from trtq.pipeline.formats import FP16
from trtq.pipeline.graph.kv_cache import find_coded_caches
from trtq.pipeline.quantize.weights import find_runtime, report_weights
from trtq.pipeline.rewrite.biases import quantize_biases
from trtq.pipeline.rewrite.coded import complete_codes
from trtq.pipeline.rewrite.mixed import MixedModel, WeightEncoding, convert_floats, quantize_graph
from trtq.pipeline.rewrite.weights.choose import group_stored
from trtq.progress import Log
from trtq.records import GIVEN


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The models of a build.

    Attributes:
        files: Those that are compared, by precision.
        source: The file that the engine is built from.
        built: The same as a graph.
        kept_fp32: The nodes that stay FP32 although the rest is FP16.
    """

    files: dict[str, Path]
    source: Path
    built: ir.Model
    kept_fp32: tuple[KeptFp32, ...]


def write_models(job: Job, ranges: Ranges | None, stage: Path, log: Log) -> ModelFiles:
    """Returns the models of a job, written to its folder.

    Args:
        job: What is built.
        ranges: Of the activations; None where nothing is calibrated.
        stage: The folder.
        log: Hears of the progress.

    Raises:
        BuildError: A model is not valid ONNX.
    """
    log.stage("Quantizing")
    with log.timed("quantize"):
        if job.is_as_given:
            path = _write(job.graph.model, stage / f"model.{job.name}.onnx")
            return ModelFiles({**_find_reference(job), job.name: path}, path, job.graph.model, ())
        return _write_all(job, ranges, stage, log)


def _find_reference(job: Job) -> dict[str, Path]:
    """Returns what the models are compared with: the float model, or the one that came with Q/DQ."""
    reference = job.spec.evaluation.reference
    return {GIVEN if reference is None and job.has_given else "fp32": Path(reference or job.graph.path)}


def name_models(job: Job) -> tuple[str, ...]:
    """Returns the names of the files that `write_models` writes."""
    own = f"model.{job.name}.onnx"
    if job.is_as_given:
        return (own,)
    is_fp16 = job.target.name == "fp16"
    half = ("model.fp16.onnx",) if is_fp16 or _has_baseline(job) else ()
    if job.is_implicit or (is_fp16 and not job.strategy.is_typed):
        return (*half, FLOAT)
    return half if is_fp16 else (*half, own)


def _has_baseline(job: Job) -> bool:
    """Returns whether the model is compared with its FP16 form too."""
    is_alone = not job.has_given or GIVEN in _find_reference(job)  # else it differs by the model's own Q/DQ
    return is_alone and (job.target.form is not None or job.evaluation is not None)


def _write_all(job: Job, ranges: Ranges | None, stage: Path, log: Log) -> ModelFiles:
    target, strategy = job.target, job.strategy
    baseline = convert_floats(job.graph.model, FP16, ranges, keep_fp32=job.spec.layers.keep_fp32)
    kept_fp32 = baseline.kept_fp32 if strategy.rest is FP16 else ()
    files = _find_reference(job)
    if target.name == "fp16" or _has_baseline(job):
        files["fp16"] = _write(baseline.model, stage / "model.fp16.onnx")
    if job.is_implicit or (target.name == "fp16" and not strategy.is_typed):
        return ModelFiles(files, _write(job.graph.model, stage / FLOAT), job.graph.model, kept_fp32)
    if target.name == "fp16":
        return ModelFiles(files, files["fp16"], baseline.model, kept_fp32)
    candidate = _quantize(job, ranges, baseline)
    for sentence in candidate.notes:
        log.note(sentence)
    if job.backend.needs_coded_outputs:
        complete_codes(candidate.model)
        quantize_biases(candidate.model)
    files[job.name] = _write(candidate.model, stage / f"model.{job.name}.onnx")
    if strategy.is_typed:
        return ModelFiles(files, files[job.name], candidate.model, candidate.kept_fp32)
    layers = {node.name for node in job.placement.layers}
    unquantized = tuple(item for item in kept_fp32 if item.name not in layers)
    return ModelFiles(files, files[job.name], candidate.model, unquantized)


def _quantize(job: Job, ranges: Ranges | None, baseline: MixedModel) -> MixedModel:
    """Returns the model with Q/DQ, weights in few bits, or caches of codes."""
    scheme = job.target.weights
    is_baseline = job.target.precision == "weights" and job.strategy.graph_float is FP16
    return quantize_graph(
        job.graph,
        job.placement,
        ranges,
        rest=job.strategy.graph_float,
        keep_fp32=job.spec.layers.keep_fp32,
        weights=WeightEncoding(
            scheme.method if scheme is not None else "rtn",
            find_runtime(job.backend.name),
            job.calibration,
            job.workers,
            rotates="rotate" in job.spec.quantization.repairs,
        ),
        floats=baseline if is_baseline else None,
    )


def report_caches(built: ir.Model) -> KvCacheReport | None:
    """Returns what the report says of caches of codes; None if the model has none."""
    found = find_coded_caches(built)
    if not found:
        return None
    return KvCacheReport(found[0].form.name, {item.past: item.scale for item in found})


def report_job_weights(job: Job) -> WeightsReport | None:
    """Returns what the report says of weights in few bits; None if there are none."""
    chosen = group_stored(job.graph.model, job.placement)
    if not chosen:
        return None
    return report_weights(chosen, job.target, backend=job.backend.name, rest=job.strategy.graph_float)


def _write(model: ir.Model, path: Path) -> Path:
    save(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise BuildError(
            f"trtq made an invalid {path.name}, which is its fault: {str(error)[:400]}"
        ) from error
    return path
