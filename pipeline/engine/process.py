"""Has the builder work, in a child process or here, and makes of its answer an engine or an error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtq.errors import ArtifactError, BuildError, ModelError, UsageError
from trtq.pipeline.engine.backend import BuildRequest

_START = "import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main(sys.argv[1])"
_BUILDER = "trtq.pipeline.engine.builder"
_NOISE = ("catchCudaError", "cudaError 35", "CUDA driver version is insufficient", "no CUDA-capable device")


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of NVIDIA's builders.

    Attributes:
        module: Its Python module.
        product: What people call it, with the version where it matters to them.
        inspects: Whether engines are loaded where they are built, so that they tell of their layers.
    """

    module: str
    product: str
    inspects: bool


@dataclass(frozen=True, slots=True)
class ProcessOutcome:
    """A finished build.

    Attributes:
        plan: The engine.
        answer: What the builder told: `layers` or `inspector`.
        warnings: Its warnings, each once.
    """

    plan: bytes
    answer: Mapping[str, str]
    warnings: tuple[str, ...]


Work = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]
"""Builds a request in a folder: leaves `plan` and `build.log` there, returns the answer."""


def run_in_child(flavour: Flavour) -> Work:
    """Returns the way to build in a process of its own, which may crash."""

    def work(request: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
        (place / "request.json").write_text(json.dumps(request))
        process = run_child(_BUILDER, place)
        if process.returncode != 0:
            raise BuildError(_explain_crash(flavour, process, _own_lines(place / "build.log")))
        answer: dict[str, Any] = json.loads((place / "answer.json").read_text())
        return answer

    return work


def run(flavour: Flavour, request: BuildRequest, work: Work, **further: Any) -> ProcessOutcome:
    """Returns the finished build.

    Args:
        flavour: Whose builder it is.
        request: What is built.
        work: Where it is built.
        further: More for the builder's request, as JSON has it.

    Raises:
        ModelError: The parser refuses the model.
        UsageError: There is no such target or option, or the timing cache is another's.
        ArtifactError: The timing cache cannot be read.
        BuildError: The build failed or the builder crashed.
    """
    with tempfile.TemporaryDirectory(prefix="trtq-build-") as folder:
        place = Path(folder)
        answer = work({**to_json(flavour, request), **further}, place)
        log = _own_lines(place / "build.log")
        _raise_failure(flavour, answer, request, log)
        return ProcessOutcome((place / "plan").read_bytes(), answer, tuple(dict.fromkeys(log)))


def run_child(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Returns the finished process that ran `module.main(folder)`."""
    command = child_command(module, folder)
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def child_command(module: str, folder: Path) -> list[str]:
    """Returns the command that runs `module.main(folder)` with this process's own import path.

    The path is handed over, and set before anything is imported from it, so that neither the current folder
    nor a file beside the module can shadow a library.
    """
    return [sys.executable, "-c", _START.format(module=module), str(folder), *sys.path]


def to_json(flavour: Flavour, request: BuildRequest) -> dict[str, Any]:
    """Returns the request as the builder reads it."""
    options = request.options
    return {
        "module": flavour.module,
        "inspects": flavour.inspects,
        "model": str(request.model.resolve()),
        "profiles": {name: asdict(profile) for name, profile in request.profiles.items()},
        "compute_capabilities": list(request.compute_capabilities),
        "workspace_bytes": request.workspace_bytes,
        "optimization_level": options.optimization_level,
        "hardware_compatibility": options.hardware_compatibility,
        "version_compatible": options.version_compatible,
        "timing_cache": str(options.timing_cache.absolute()) if options.timing_cache else None,
        "precisions": list(request.precisions),
        "kept": dict(request.kept),
        "calibration_shapes": {},
    }


def _raise_failure(
    flavour: Flavour, answer: Mapping[str, Any], request: BuildRequest, log: list[str]
) -> None:
    product = flavour.product
    if "unknown_target" in answer:
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in answer["targets"])
        raise UsageError(
            f"{product} cannot build for compute capability {answer['unknown_target']}; it has {known}"
        )
    if "no_option" in answer:
        raise UsageError(f"{product} has no {answer['no_option']}; leave it out, or take a newer TensorRT")
    if "unreadable_timing_cache" in answer:
        raise ArtifactError(f"cannot read the timing cache {answer['unreadable_timing_cache']}")
    if "foreign_timing_cache" in answer:
        raise UsageError(
            f"{answer['foreign_timing_cache']} is no timing cache of {product} on this GPU; give another "
            f"file with --timing-cache"
        )
    if "parse_errors" in answer:
        errors = [_show_parse_error(error) for error in answer["parse_errors"]]
        shown = "; ".join(dict.fromkeys(errors[:8])) + (
            f"; and {len(errors) - 8} more" if len(errors) > 8 else ""
        )
        raise ModelError(f"{product} does not take this model: {shown}")
    lines = "\n  ".join(log[-12:]) or "it gave no reason"
    if "no_builder" in answer:
        raise BuildError(f"{product} gives no builder; see nvidia-smi:\n  {lines}")
    if "build_failed" in answer:
        raise BuildError(f"{product} could not build {request.model.name}:\n  {lines}")


def _show_parse_error(error: Mapping[str, str]) -> str:
    text = error["text"]
    if error["code"] == "UNSUPPORTED_NODE" and text == "false":
        text = "this operator is not supported"
    where = f"node {error['node']!r} ({error['op_type']}): " if error["op_type"] else ""
    return f"{where}{text}"


def _own_lines(path: Path) -> list[str]:
    """Returns the builder's warnings and errors without what every machine without a GPU makes it say."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    return [line for line in lines if not any(noise in line for noise in _NOISE)]


def describe_exit(status: int) -> str:
    """Returns how a process ended, by its exit status; negative: killed by this signal."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _explain_crash(flavour: Flavour, process: subprocess.CompletedProcess[str], log: list[str]) -> str:
    lines = (*log[-6:], *process.stderr.strip().splitlines()[-6:])
    first = f"the {flavour.product} builder {describe_exit(process.returncode)}; its last words:"
    return "\n  ".join((first, *(lines or ("none",))))
