"""A built engine, ready to run where it can run: checked against what its manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq import lazy
from trtq.errors import ArtifactError, MissingDependency
from trtq.files import sha256_of
from trtq.models.session import open_session
from trtq.pipeline.build import ENGINE
from trtq.pipeline.deliver.earlier import REPORT
from trtq.pipeline.deliver.manifest import Manifest, read_manifest
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine import BACKENDS
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.gpu import compute_capability


@dataclass(frozen=True, slots=True)
class Engine:
    """A build folder whose engine fits this machine.

    Attributes:
        folder: Where it is.
        backend: Who runs it.
        report: Of the build.
        onnx: The file to run, where the backend runs ONNX itself; None where there is a plan.
    """

    folder: Path
    backend: Backend
    report: Report
    onnx: Path | None

    def runner(self, name: str) -> Any:
        """Returns a Polygraphy runner of the engine.

        Raises:
            ArtifactError: Engines of this backend are not run by trtq.
        """
        if self.onnx is not None:
            onnxrt = lazy.require("polygraphy.backend.onnxrt", None, "running the engine")
            return onnxrt.OnnxrtRunner(open_session(self.onnx, optimize=True), name=name)
        found = self.backend.runner((self.folder / ENGINE).read_bytes(), name)
        if found is None:
            raise ArtifactError(
                f"{self.folder / ENGINE} is an engine of {self.backend.name}, which trtq does not run; "
                f"take model.int8.onnx of the same folder"
            )
        return found


def load(folder: Path | str) -> Engine:
    """Returns the engine of a build folder.

    Raises:
        ArtifactError: The folder is no build, a file was changed since, or the engine was built by another
            version or for another GPU than those here: both are named.
        MissingDependency: Its backend does not work here.
    """
    folder = Path(folder)
    manifest, report = read_manifest(folder), read_report(folder / REPORT)
    name, _, built_by = report.backend.partition(" ")
    if name not in BACKENDS:
        raise ArtifactError(f"{folder} was built by {name!r}, which this trtq does not know")
    backend = BACKENDS[name]
    _refuse_changed(folder, manifest, report.engine.path)
    if reason := backend.why_not():
        raise MissingDependency(f"backend {name}, for {folder}: {reason}")
    path = folder / report.engine.path
    if path.name != ENGINE:
        return Engine(folder, backend, report, path)
    options = manifest.settings.get("target", {}).get("options", {})
    _refuse_version(path, name, built_by, backend.version(), bool(options.get("version_compatible")))
    _refuse_gpu(path, report, str(options.get("hardware_compatibility", "none")))
    return Engine(folder, backend, report, None)


def _refuse_changed(folder: Path, manifest: Manifest, name: str) -> None:
    """Refuses an engine that is not the one that was built: a plan can hold code."""
    path = folder / name
    if not path.is_file() or sha256_of(path) != manifest.outputs.get(name):
        raise ArtifactError(
            f"{path} is not the file that was built: its SHA-256 is not that of the manifest; build again"
        )


def _refuse_version(path: Path, name: str, there: str, here: str, is_compatible: bool) -> None:
    same_major = there.split(".")[0] == here.split(".")[0]
    is_newer = _numbers(here) >= _numbers(there)
    if there == here or (is_compatible and same_major and is_newer):
        return
    raise ArtifactError(
        f"{path} was built by {name} {there}, here is {here}; build it again here, or with "
        f"--version-compatible for later versions of the same major one"
    )


def _refuse_gpu(path: Path, report: Report, hardware_compatibility: str) -> None:
    here = compute_capability()
    if not here or not report.engine.targets or here in report.engine.targets:
        return
    if hardware_compatibility == "ampere+" and int(here.split(".")[0]) >= 8:
        return
    raise ArtifactError(
        f"{path} was built for compute capability {', '.join(report.engine.targets)}, the GPU here has "
        f"{here}; build it again here, or with --hardware-compatibility"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
