"""The same build by NVIDIA's own tool, to reproduce it without trtq."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from trtq.models.operators import list_plugins
from trtq.models.spec import ProfileSpec
from trtq.numbers import format_shape
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.profiles import list_profiles

_HARDWARE = {"ampere+": "ampere+", "same-compute-capability": "sameComputeCapability"}
_CACHE, _ENTROPY2_CACHE = "calibration.cache", "calibration.entropy2.cache"


def format_trtexec(request: BuildRequest, *, has_typed_flag: bool) -> str:
    """Returns a `trtexec` command line for the folder that holds the model and the calibration cache.

    trtexec reads a cache as an entropy calibrator does, and silently ignores one of another calibrator: for
    such a cache the command begins with the conversion of its header.
    `has_typed_flag` says whether types are asked for by `--stronglyTyped`, as up to TensorRT 10.
    """
    command = shlex.join(_words(request, has_typed_flag=has_typed_flag))
    if request.implicit is not None and request.implicit.algorithm != "entropy2":
        return f"trtq cache convert {_CACHE} --to entropy2 -o {_ENTROPY2_CACHE} && {command}"
    return command


def _words(request: BuildRequest, *, has_typed_flag: bool) -> Iterator[str]:
    options = request.options
    yield "trtexec"
    yield f"--onnx={request.model.name}"
    yield "--saveEngine=model.engine"
    yield from (f"--{precision}" for precision in request.precisions)
    if not request.precisions and has_typed_flag:
        yield "--stronglyTyped"
    if request.implicit is not None:
        yield f"--calib={_CACHE if request.implicit.algorithm == 'entropy2' else _ENTROPY2_CACHE}"
    if request.kept:
        yield "--precisionConstraints=obey"
        pairs = ",".join(f"{_quoted(name)}:{precision}" for name, precision in request.kept.items())
        yield f"--layerPrecisions={pairs}"
        yield f"--layerOutputTypes={pairs}"
    yield from (f"--staticPlugins={path}" for path in list_plugins())
    profiles = list_profiles(request.profiles)
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            yield f"--profile={number}"
        yield from (f"--{kind}Shapes={_shapes(profile, kind)}" for kind in ("min", "opt", "max"))
    if request.workspace_bytes is not None:
        yield f"--memPoolSize=workspace:{request.workspace_bytes}B"
    if options.optimization_level is not None:
        yield f"--builderOptimizationLevel={options.optimization_level}"
    if options.hardware_compatibility in _HARDWARE:
        yield f"--hardwareCompatibilityLevel={_HARDWARE[options.hardware_compatibility]}"
    if options.version_compatible:
        yield "--versionCompatible"
    if options.timing_cache is not None:
        yield f"--timingCacheFile={options.timing_cache.absolute()}"
    yield "--profilingVerbosity=detailed"
    yield "--skipInference"


def _shapes(profiles: Mapping[str, ProfileSpec], kind: str) -> str:
    shapes = {name: format_shape(getattr(profile, kind)) for name, profile in profiles.items()}
    return ",".join(f"{_quoted(name)}:{shape}" for name, shape in shapes.items())


def _quoted(name: str) -> str:
    return f"'{name}'" if ":" in name else name
