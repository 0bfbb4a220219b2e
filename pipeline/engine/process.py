"""Has the builder work, in a child process or here, and makes of its answer an engine or an error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtq import errors
from trtq.errors import BuildError, TrtqError
from trtq.models.operators import list_plugins
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.profiles import list_profiles
from trtq.temporary import open_temporary_folder

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from trtq.lazy import defer; defer(); "
    "from {module} import main; main(sys.argv[1])"
)
_BUILDER = "trtq.pipeline.engine.builder"
_MOST_LINES = 12
_NOISE = ("catchCudaError", "cudaError 35", "CUDA driver version is insufficient", "no CUDA-capable device")


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of NVIDIA's builders: its Python module, its name in messages, and whether it inspects its engines.

    An engine that can be loaded where it is built says what its layers are.
    """

    module: str
    product: str
    inspects: bool


@dataclass(frozen=True, slots=True)
class ProcessOutcome:
    """A finished build: the engine, what the builder says of its layers, and its warnings, each once."""

    plan: bytes
    answer: Mapping[str, str]
    warnings: tuple[str, ...]


Started = Callable[[subprocess.Popen[str]], None]
Work = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]
"""Builds a request in a folder: leaves `plan` and `build.log` there, returns the answer."""


def run_in_child(flavour: Flavour, started: Started | None = None) -> Work:
    """Returns the way to build in a process of its own, which may crash; `started` is given the process."""

    def work(request: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
        (place / "request.json").write_text(json.dumps(request))
        process = run_child(_BUILDER, place, started)
        if process.returncode != 0:
            with (place / "build.log").open("a") as log:
                log.writelines(f"{line}\n" for line in process.stderr.strip().splitlines()[-6:])
            how = describe_exit(process.returncode)
            raise BuildError(f"the {flavour.product} builder {how}; its last output")
        answer: dict[str, Any] = json.loads((place / "answer.json").read_text())
        raise_error(answer)
        return answer

    return work


def run(flavour: Flavour, request: BuildRequest, work: Work, **further: Any) -> ProcessOutcome:
    """Returns the finished build; `further` goes into the builder's request.

    Raises:
        ModelError: The parser refuses the model.
        UsageError: There is no such target or option, or the timing cache is another's.
        ArtifactError: The timing cache cannot be read.
        BuildError: The build failed or the builder crashed; its last lines are added.
    """
    with open_temporary_folder() as place:
        try:
            answer = work({**to_json(flavour, request), **further}, place)
        except BuildError as error:
            lines = _own_lines(place / "build.log")[-_MOST_LINES:] or ["it gave no reason"]
            raise BuildError("\n  ".join([f"{error}:", *lines])) from error
        log = _own_lines(place / "build.log")
        return ProcessOutcome((place / "plan").read_bytes(), answer, tuple(dict.fromkeys(log)))


def run_child(module: str, folder: Path, started: Started | None = None) -> subprocess.CompletedProcess[str]:
    """Returns the finished process that ran `module.main(folder)`; it is ended where this is interrupted."""
    command, pipe = child_command(module, folder), subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace") as process:
        try:
            if started is not None:
                started(process)
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def child_command(module: str, folder: Path) -> list[str]:
    """Returns the command that runs `module.main(folder)` with this process's own import path.

    The path is handed over, and set before anything is imported from it, so that neither the current folder
    nor a file beside the module can shadow a library.
    """
    return [sys.executable, "-c", _START.format(module=module), str(folder), *sys.path]


def to_json(flavour: Flavour, request: BuildRequest) -> dict[str, Any]:
    """Returns the request as the builder reads it."""
    timing_cache = request.options.timing_cache
    return {
        **asdict(flavour),
        **asdict(request.options),
        "timing_cache": str(timing_cache.absolute()) if timing_cache else None,
        "model": str(request.model.resolve()),
        "profiles": [
            {name: asdict(profile) for name, profile in profiles.items()}
            for profiles in list_profiles(request.profiles)
        ],
        "compute_capabilities": list(request.compute_capabilities),
        "workspace_bytes": request.workspace_bytes,
        "precisions": list(request.precisions),
        "kept": dict(request.kept),
        "plugins": list(list_plugins()),
        "calibration_shapes": {},
    }


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raises the error of trtq that a process answered with, if it is one."""
    if "error" in answer:
        kind: type[TrtqError] = getattr(errors, answer["error"])
        raise kind(answer["text"])


def _own_lines(path: Path) -> list[str]:
    """Returns the builder's warnings and errors, without those that it gives on every machine with no GPU."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    return [line for line in lines if not any(noise in line for noise in _NOISE)]


def describe_exit(status: int) -> str:
    """Returns how a process ended, by its exit status; negative: killed by this signal."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
