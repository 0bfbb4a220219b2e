"""TensorRT-RTX: builds engines without a GPU, takes precision from the graph only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtq.errors import BuildError, MissingDependency, ModelError, UsageError
from trtq.pipeline.engine.backend import BuildRequest, Built, Kernel

_START = "import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main(sys.argv[1])"
_PROCESS = "trtq.pipeline.engine.rtx_process"
_KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: \d+(?:, Metadata: (?P<metadata>.*))?"
)
_NODE = re.compile(r"\[ONNX Layer: (.*)\]$", re.DOTALL)
_SEPARATOR = "\x1f"
_NOISE = ("catchCudaError", "cudaError 35", "CUDA driver version is insufficient", "no CUDA-capable device")


@dataclass(frozen=True, slots=True)
class TensorRtRtx:
    """NVIDIA TensorRT-RTX, from the wheel `tensorrt-rtx-cu12`."""

    name: str = "tensorrt-rtx"
    runs_fp16: bool = True

    def version(self) -> str:
        """Returns the version of the wheel; empty if it is not installed."""
        for package in ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"):
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def why_not(self) -> str:
        """Returns why it cannot build here; empty if it can."""
        if importlib.util.find_spec("tensorrt_rtx") is None:
            return "tensorrt_rtx is not installed; pip install 'trtq[rtx]' (builds without a GPU)"
        return ""

    def build(self, request: BuildRequest) -> Built:
        """Returns the engine, built in a child process.

        Raises:
            MissingDependency: TensorRT-RTX is not installed.
            ModelError: Its parser refuses the model.
            UsageError: It has no such target.
            BuildError: The build failed or the builder crashed.
        """
        if reason := self.why_not():
            raise MissingDependency(f"backend {self.name}: {reason}")
        with tempfile.TemporaryDirectory(prefix="trtq-rtx-") as folder:
            place = Path(folder)
            (place / "request.json").write_text(json.dumps(_to_json(request)))
            process = run_child(_PROCESS, place)
            log = _own_lines(place / "build.log")
            if process.returncode != 0:
                raise BuildError(_crash(process, log))
            answer = json.loads((place / "answer.json").read_text())
            _raise_failure(answer, request, log)
            plan = (place / "plan").read_bytes()
        return Built(plan, tuple(parse_kernels(answer["layers"])), tuple(dict.fromkeys(log)))


def run_child(module: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Returns the finished process that ran `module.main(folder)` with this process's own import path.

    The path is handed over, and set before anything is imported from it, so that neither the current folder
    nor a file beside the module can shadow a library.
    """
    command = [sys.executable, "-c", _START.format(module=module), str(folder), *sys.path]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def parse_kernels(layers: str) -> Iterator[Kernel]:
    """Yields the kernels of the builder's `Layers:` message (detailed profiling verbosity)."""
    for line in layers.split("\n"):  # splitlines would also split at rarer characters in names
        found = _KERNEL.match(line)
        if found:
            yield Kernel(
                found["name"],
                found["kind"],
                tuple(_nodes(found["metadata"] or "")),
                tuple(re.findall(r"Datatype: (\w+)", found["inputs"])),
                tuple(re.findall(r"Datatype: (\w+)", found["constants"])),
            )


def _nodes(metadata: str) -> Iterator[str]:
    for part in metadata.split(_SEPARATOR):
        if node := _NODE.match(part.strip(" ")):
            yield node[1]


def _to_json(request: BuildRequest) -> dict[str, Any]:
    return {
        "model": str(request.model.resolve()),
        "profiles": {name: asdict(profile) for name, profile in request.profiles.items()},
        "compute_capabilities": list(request.compute_capabilities),
        "workspace_bytes": request.workspace_bytes,
    }


def _raise_failure(answer: Mapping[str, Any], request: BuildRequest, log: list[str]) -> None:
    if "unknown_target" in answer:
        known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in answer["targets"])
        raise UsageError(
            f"TensorRT-RTX cannot build for compute capability {answer['unknown_target']}; it has {known}"
        )
    if "parse_errors" in answer:
        errors = [_show_parse_error(error) for error in answer["parse_errors"]]
        shown = "; ".join(dict.fromkeys(errors[:8])) + (
            f"; and {len(errors) - 8} more" if len(errors) > 8 else ""
        )
        raise ModelError(f"TensorRT-RTX does not take this model: {shown}")
    if "build_failed" in answer:
        lines = "\n  ".join(log[-12:]) or "it gave no reason"
        raise BuildError(f"TensorRT-RTX could not build {request.model.name}:\n  {lines}")


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


def _crash(process: subprocess.CompletedProcess[str], log: list[str]) -> str:
    if process.returncode < 0:
        how = f"was killed by {signal.Signals(-process.returncode).name}"
    else:
        how = f"ended with status {process.returncode}"
    lines = (*log[-6:], *process.stderr.strip().splitlines()[-6:])
    return "\n  ".join((f"the TensorRT-RTX builder {how}; its last words:", *(lines or ("none",))))
