"""A build as the command line that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtq.calibrators import create_method
from trtq.models.option import list_kinds, list_options
from trtq.models.spec import InputSpec, ProfileSpec
from trtq.numbers import format_shape

if TYPE_CHECKING:
    from trtq.pipeline.build.job import Job
    from trtq.pipeline.formats.scheme import WeightScheme


def format_command(job: Job) -> str:
    """Returns the `trtq` command that does this build, quoted for a shell."""
    spec, migrates = job.spec.shown, job.ranges is not None
    words = ["trtq", "migrate" if migrates else "build", str(job.graph.path), *job.sources]
    if not migrates:
        is_named = job.target.precision == "weights" or job.target.formats
        words += [] if is_named else [f"--{job.target.precision}"]
        words += _list_weights(job.target.weights)
    words += _list_settings(job.target)
    words += _list_settings(job.target.options)
    if not migrates:
        words += _list_settings(spec.calibration)
        words += _list_settings(create_method(spec.calibration))
        words += ["--random-data"] if job.is_random else []
        words += _list_settings(spec.preprocess)
    names = ("weight_granularity",) if migrates else ()
    words += _list_settings(spec.quantization, *names)
    for settings in (spec.evaluation, spec.accuracy, spec.layers, spec.operators):
        words += _list_settings(settings)
    shapes = job.target.shapes
    for kind in ("min", "opt", "max"):
        given = {*shapes.min, *shapes.opt, *shapes.max}
        known = {name: getattr(item, kind) for name, item in spec.inputs.items() if name not in given}
        words += _list_shapes(f"--{kind}-shapes", {**known, **getattr(shapes, kind)})
    for profile in (*_list_further(spec.inputs), *shapes.profiles):
        words += ["--profile", ",".join(f"{_quote(name)}:{_cross(item)}" for name, item in profile.items())]
    return shlex.join([*words, "--output", str(job.folder)])


def _list_settings(settings: Any, *names: str) -> Iterator[str]:
    """Yields the options of the settings, or of some of them, that differ from the defaults."""
    defaults = type(settings)()
    for name, option in list_options(type(settings)).items():
        value = getattr(settings, name)
        if name not in (names or (name,)) or value is None or value == getattr(defaults, name):
            continue
        if value is True:
            yield option.name
        elif list_kinds(type(settings))[name].type in (int, float) and isinstance(value, tuple):
            yield from (option.name, ",".join(map(str, value)))
        else:
            for item in value if isinstance(value, tuple) else (value,):
                yield from (option.name, str(item))


def _list_weights(scheme: WeightScheme | None) -> Iterator[str]:
    if scheme is None:
        return
    yield from ("--weights", scheme.format)
    if len(scheme.number_format.methods) > 1:
        yield from ("--weight-method", scheme.method)
    if scheme.has_blocks:
        yield from ("--block-size", str(scheme.block_size))
    yield from ("--double-quant",) if scheme.double_quantization else ()
    yield from ("--w4a8",) if scheme.in_products else ()
    yield from () if scheme.keep_sensitive else ("--quantize-sensitive",)
    for pattern, form in scheme.others:
        yield from ("--weights-for", f"{pattern}={form}")


def _list_further(inputs: Mapping[str, InputSpec]) -> list[dict[str, ProfileSpec]]:
    """Returns the profiles of the settings after the first, each of the inputs that have one in its place."""
    most = max((len(item.profiles) for item in inputs.values()), default=0)
    return [
        {name: item.profiles[number] for name, item in inputs.items() if number < len(item.profiles)}
        for number in range(most)
    ]


def _cross(item: ProfileSpec) -> str:
    return ":".join(map(format_shape, (item.min, item.opt, item.max)))


def _quote(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"{quote}{name}{quote}"


def _list_shapes(option: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, shape in shapes.items():
        yield from (option, f"{_quote(name)}:[{','.join(map(str, shape))}]")
