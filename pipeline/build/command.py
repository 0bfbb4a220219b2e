"""A build as the command line that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtq.calibrators import create_method
from trtq.models.option import list_options
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.target import Target

if TYPE_CHECKING:
    from trtq.pipeline.build.job import Job
    from trtq.pipeline.formats.scheme import WeightScheme

TARGET = {
    "high_precision": "--high-precision",
    "backend": "--backend",
    "workspace_bytes": "--workspace",
    "quantization": "--quantization",
    "auto": "--auto",
    "requantize": "--requantize",
}
BUILDER = {
    "timing_cache": "--timing-cache",
    "optimization_level": "--builder-optimization-level",
    "hardware_compatibility": "--hardware-compatibility",
    "version_compatible": "--version-compatible",
}
"""The options of what has one beside the settings, by field."""


def format_command(job: Job) -> str:
    """Returns the `trtq` command that does this build, quoted for a shell.

    What only model.toml can say, the preparation of pictures, is not in it.
    """
    spec, migrates = job.spec, job.ranges is not None
    words = ["trtq", "migrate" if migrates else "build", str(job.graph.path), *job.sources]
    if not migrates:
        words += [f"--{job.target.precision}"] if job.target.precision != "weights" else []
        words += _list_weights(job.target.weights)
    words += _list_target(job.target)
    if not migrates:
        words += _list_settings(spec.calibration)
        words += _list_settings(create_method(spec.calibration))
        words += ["--random-data"] if job.is_random else []
    names = ("weight_granularity",) if migrates else ()
    words += _list_settings(spec.quantization, *names)
    for settings in (spec.evaluation, spec.accuracy, spec.layers):
        words += _list_settings(settings)
    for kind in ("min", "opt", "max"):
        known = {name: getattr(item, kind) for name, item in spec.inputs.items()}
        words += _list_shapes(f"--{kind}-shapes", {**known, **getattr(job.target.shapes, kind)})
    return shlex.join([*words, "--output", str(job.folder)])


def _list_settings(settings: Any, *names: str) -> Iterator[str]:
    """Yields the options of the settings, or of some of them, that differ from the defaults."""
    options = {name: option.name for name, option in list_options(type(settings)).items()}
    chosen = {name: option for name, option in options.items() if name in (names or options)}
    yield from _list_changed(settings, type(settings)(), chosen)


def _list_changed(settings: Any, defaults: Any, options: Mapping[str, str]) -> Iterator[str]:
    for name, option in options.items():
        value = getattr(settings, name)
        if value is not None and value != getattr(defaults, name):
            if value is True:
                yield option
            else:
                for item in value if isinstance(value, tuple) else (value,):
                    yield from (option, str(item))


def _list_target(target: Target) -> Iterator[str]:
    yield from _list_changed(target, Target(), TARGET)
    for capability in target.compute_capabilities:
        yield from ("--compute-capability", capability)
    if target.op_types != Target().op_types:
        yield from ("--op-types", ",".join(target.op_types))
    yield from _list_changed(target.options, BuilderOptions(), BUILDER)


def _list_weights(scheme: WeightScheme | None) -> Iterator[str]:
    if scheme is None:
        return
    yield from ("--weights", scheme.format)
    if len(scheme.number_format.methods) > 1:
        yield from ("--weight-method", scheme.method)
    if scheme.number_format.block_sizes:
        yield from ("--block-size", str(scheme.block_size))
    yield from ("--double-quant",) if scheme.double_quantization else ()
    yield from () if scheme.keep_sensitive else ("--quantize-sensitive",)


def _list_shapes(option: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        quote = '"' if "'" in name else "'"
        yield from (option, f"{quote}{name}{quote}:[{','.join(map(str, shape))}]")
