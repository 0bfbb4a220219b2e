"""A build as the command line that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtq.models.spec import AccuracySpec, CalibrationSpec, EvaluationSpec, QuantizationSpec
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.target import Target

if TYPE_CHECKING:
    from trtq.pipeline.build.job import Job
    from trtq.pipeline.formats.scheme import WeightScheme

CALIBRATION = {
    "data": "--calib-data",
    "method": "--calib-method",
    "percentile": "--percentile",
    "samples": "--calib-samples",
    "batch_size": "--calib-batch-size",
    "device": "--calib-device",
    "memory_bytes": "--calib-memory",
    "num_bins": "--num-bins",
    "num_levels": "--num-levels",
    "max_clipped": "--max-clipped",
    "num_candidates": "--num-candidates",
    "smallest": "--smallest",
}
WEIGHTS = {"weight_granularity": "--weight-granularity"}
ACTIVATIONS = {"activations": "--activations"}
EVALUATION = {
    "data": "--eval-data",
    "labels": "--labels",
    "output": "--eval-output",
    "samples": "--eval-samples",
}
ACCURACY = {"min_cosine": "--min-cosine", "max_drop": "--max-drop", "metric": "--metric"}
TARGET = {
    "high_precision": "--high-precision",
    "backend": "--backend",
    "workspace_bytes": "--workspace",
    "quantization": "--quantization",
}
OPTIONS = {
    "timing_cache": "--timing-cache",
    "optimization_level": "--builder-optimization-level",
    "hardware_compatibility": "--hardware-compatibility",
}
"""The option of every setting that has one, by its field."""


def format_command(job: Job) -> str:
    """Returns the `trtq` command that does this build, quoted for a shell.

    What only model.toml can say, the preparation of pictures, is not in it.
    """
    migrates = job.ranges is not None
    words = ["trtq", "migrate" if migrates else "build", str(job.graph.path), *job.sources]
    words += _target(job.target, migrates=migrates)
    spec = job.spec
    if not migrates:
        words += _changed(spec.calibration, CalibrationSpec(), _calibration_options(spec.calibration))
        words += ["--random-data"] if job.is_random else []
        words += _changed(spec.quantization, QuantizationSpec(), ACTIVATIONS)
        if spec.quantization.repair != QuantizationSpec().repair:
            words += ["--repair", ",".join(spec.quantization.repair)]
    words += _changed(spec.quantization, QuantizationSpec(), WEIGHTS)
    words += _changed(spec.evaluation, EvaluationSpec(), EVALUATION)
    words += _changed(spec.accuracy, AccuracySpec(), ACCURACY)
    for option, patterns in (
        ("--skip", spec.layers.skip),
        ("--keep-fp32", spec.layers.keep_fp32),
        ("--force", spec.layers.force),
    ):
        words += [word for pattern in patterns for word in (option, pattern)]
    for kind in ("min", "opt", "max"):
        given = {name: getattr(item, kind) for name, item in spec.inputs.items()}
        words += _shapes(f"--{kind}-shapes", {**given, **getattr(job.target.shapes, kind)})
    return shlex.join([*words, "--output", str(job.folder)])


def _calibration_options(calibration: CalibrationSpec) -> dict[str, str]:
    """Returns the options, without `--percentile` where another method is asked for, which refuses it."""
    return {
        name: option
        for name, option in CALIBRATION.items()
        if name != "percentile" or calibration.method == "percentile"
    }


def _changed(settings: Any, defaults: Any, options: Mapping[str, str]) -> Iterator[str]:
    """Yields the options of the settings that differ from the defaults."""
    for name, option in options.items():
        value = getattr(settings, name)
        if value is not None and value != getattr(defaults, name):
            yield from (option, str(value))


def _target(target: Target, *, migrates: bool) -> Iterator[str]:
    if not migrates:
        yield from (f"--{target.precision}",) if target.precision != "weights" else ()
        yield from _weights(target.weights)
    yield from _changed(target, Target(), TARGET)
    for capability in target.compute_capabilities:
        yield from ("--compute-capability", capability)
    if target.op_types != Target().op_types:
        yield from ("--op-types", ",".join(target.op_types))
    yield from _changed(target.options, BuilderOptions(), OPTIONS)
    for given, option in (
        (target.options.version_compatible, "--version-compatible"),
        (target.auto, "--auto"),
        (target.requantize, "--requantize"),
    ):
        yield from (option,) if given else ()


def _weights(scheme: WeightScheme | None) -> Iterator[str]:
    if scheme is None:
        return
    yield from ("--weights", scheme.format)
    if len(scheme.number_format.methods) > 1:
        yield from ("--weight-method", scheme.method)
    if scheme.number_format.block_sizes:
        yield from ("--block-size", str(scheme.block_size))
    yield from ("--double-quant",) if scheme.double_quantization else ()
    yield from () if scheme.keep_sensitive else ("--quantize-sensitive",)


def _shapes(option: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        quote = '"' if "'" in name else "'"
        yield from (option, f"{quote}{name}{quote}:[{','.join(map(str, shape))}]")
