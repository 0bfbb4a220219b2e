"""The backends by name, and which of them is taken."""

from __future__ import annotations

from collections.abc import Mapping

from trtq.errors import MissingDependency, UsageError
from trtq.pipeline.engine.backend import Backend, BuilderOptions
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.tensorrt import TensorRt

BACKENDS: Mapping[str, Backend] = {
    "tensorrt": TensorRt(),
    "tensorrt-rtx": TensorRtRtx(),
    "onnxruntime": OnnxRuntime(),
}
_BUILDS_ENGINES = ("tensorrt", "tensorrt-rtx")


def choose_backend(name: str) -> Backend:
    """Returns the backend of this name; for "auto" the first engine builder that works here.

    Raises:
        UsageError: There is no such backend.
        MissingDependency: It does not work here, or, for "auto", none does; the message says what to install.
    """
    if name == "auto":
        reasons = {candidate: BACKENDS[candidate].why_not() for candidate in _BUILDS_ENGINES}
        found = next((candidate for candidate, reason in reasons.items() if not reason), None)
        if found is None:
            listed = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
            raise MissingDependency(
                f"no engine builder works here: {listed}; or take --backend onnxruntime, which needs none"
            )
        return BACKENDS[found]
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}; use auto, {', '.join(BACKENDS)}")
    if reason := BACKENDS[name].why_not():
        raise MissingDependency(f"backend {name}: {reason}")
    return BACKENDS[name]


def refuse_unsupported(
    backend: Backend, options: BuilderOptions, compute_capabilities: tuple[str, ...] = ()
) -> None:
    """Refuses options that a backend does not have.

    Raises:
        UsageError: An option is given that the backend lacks; the message says why.
    """
    given = {
        "compute_capabilities": ("--compute-capability", bool(compute_capabilities)),
        "timing_cache": ("--timing-cache", options.timing_cache is not None),
        "optimization_level": ("--builder-optimization-level", options.optimization_level is not None),
        "hardware_compatibility": ("--hardware-compatibility", options.hardware_compatibility != "none"),
        "version_compatible": ("--version-compatible", options.version_compatible),
    }
    lacks = backend.lacks
    for field, (option, is_given) in given.items():
        if is_given and field in lacks:
            raise UsageError(f"backend {backend.name} has no {option}: {lacks[field]}")
