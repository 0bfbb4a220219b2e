"""A built engine, ready to run where it can run: checked against what its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trtq.errors import ArtifactError, MissingDependency
from trtq.pipeline.deliver.integrity import read_whole_manifest, refuse_changed
from trtq.pipeline.deliver.names import ENGINE, REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.backend import Backend, split_version
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.gpu import find_compute_capability
from trtq.pipeline.graph.tidy import list_tensors

_AMPERE = 8


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A build folder whose engine fits this machine.

    Attributes:
        folder: Where it is.
        backend: Who runs it.
        report: Of the build.
        onnx: The file to run, where the backend runs ONNX itself; None where there is a plan.
        sha256: Of the plan or the ONNX file.
        weights: SHA-256 of the files with the weights of a large ONNX file, by name.
    """

    folder: Path
    backend: Backend
    report: Report
    onnx: Path | None
    sha256: str
    weights: Mapping[str, str] = field(default_factory=dict)

    def runner(self, name: str) -> Any:
        """Returns a Polygraphy runner of the engine; what is run is what was hashed.

        Raises:
            ArtifactError: The file was changed since it was loaded, or engines of this backend are not run.
        """
        if self.onnx is not None:
            content = self._read(self.onnx.name, self.sha256)
            return self.backend.model_runner(self._put_weights(content) if self.weights else content, name)
        found = self.backend.runner(self.plan(), name)
        if found is None:
            raise ArtifactError(
                f"{self.folder / ENGINE} is an engine of {self.backend.name}, which trtq does not run; "
                f"take model.{self.report.precision}.onnx of the same folder"
            )
        return found

    def plan(self) -> bytes:
        """Returns the plan; what is returned is what was hashed.

        Raises:
            ArtifactError: It cannot be read, or is another than when it was loaded.
        """
        return self._read(ENGINE, self.sha256)

    def _read(self, name: str, sha256: str) -> bytes:
        """Returns the content of a file that has this digest; refuses another one."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArtifactError(f"{path} was changed since it was loaded; load the folder again")
        return content

    def _put_weights(self, content: bytes) -> ir.Model:
        """Returns the model of an ONNX file with the weights of other files in it, which are read once."""
        files = {name: self._read(name, sha256) for name, sha256 in self.weights.items()}
        model = onnx.load_model_from_string(content)
        for tensor in list_tensors(model):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where.get("location") not in files:
                raise ArtifactError(
                    f"{self.onnx} has weights in {where.get('location')!r}, which is not a file of the "
                    f"build; build again"
                )
            data, start = files[where["location"]], int(where.get("offset", 0))
            tensor.raw_data = data[start : start + int(where.get("length", len(data)))]
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return ir.from_proto(model)


def load(folder: Path | str, *, key: Path | str | None = None) -> LoadedEngine:
    """Returns the engine of a build folder.

    Args:
        folder: Of a build.
        key: A public Ed25519 key in PEM that must have signed the folder; None: signatures are not checked.

    Raises:
        ArtifactError: The folder is not a build, a file that is needed was changed since or lies outside, the
            key is given and has not signed it, or the engine was built by another version or for another GPU
            than those here: both are named.
        UsageError: The key cannot be used.
        MissingDependency: Its backend does not work here, or a key is given without `cryptography`.
    """
    folder = Path(folder)
    manifest = read_whole_manifest(folder, key=key)
    refuse_changed(folder, manifest, REPORT)
    report = read_report(folder / REPORT)
    name, _, built_by = report.backend.partition(" ")
    if name not in BACKENDS:
        raise ArtifactError(f"{folder} was built by {name!r}, which this trtq does not know")
    backend = BACKENDS[name]
    path = folder / report.engine.path
    if path.name != report.engine.path or path.name in ("", ".."):
        raise ArtifactError(
            f"{folder / REPORT} names the engine {report.engine.path!r}, which is not a file of the folder; "
            f"build again"
        )
    beside = {f"{path.name}.data"} & set(manifest.outputs)
    refuse_changed(folder, manifest, path.name, *beside)
    if reason := backend.why_not():
        raise MissingDependency(f"backend {name}, for {folder}: {reason}")
    is_plan = path.name == ENGINE
    if is_plan:
        options = manifest.find_setting("target", "options")
        _refuse_misfit(
            path, report, built_by, backend.version(), options if isinstance(options, dict) else {}
        )
    weights = {name: manifest.outputs[name] for name in beside}
    return LoadedEngine(
        folder, backend, report, None if is_plan else path, manifest.outputs[path.name], weights
    )


def _refuse_misfit(path: Path, report: Report, there: str, here: str, options: Mapping[str, Any]) -> None:
    """Refuses an engine of another version or for another GPU; says what was built, and what is here."""
    built, found = split_version(there), split_version(here)
    fits_version = there == here or bool(
        options.get("version_compatible") and built[:1] == found[:1] and found >= built
    )
    gpu, targets = find_compute_capability(), report.engine.targets
    fits_gpu = not gpu or not targets or gpu in targets
    if options.get("hardware_compatibility") == "ampere+":
        fits_gpu = fits_gpu or int(gpu.split(".")[0]) >= _AMPERE
    if fits_version and fits_gpu:
        return
    name = report.backend.partition(" ")[0]
    built_for = f" for compute capability {', '.join(targets)}" if targets else ""
    runs_on = f" on compute capability {gpu}" if gpu else ""
    advice = [] if fits_version else ["--version-compatible for later versions of the same major one"]
    advice += [] if fits_gpu else ["--hardware-compatibility for other GPUs"]
    raise ArtifactError(
        f"{path} was built by {name} {there}{built_for}; here is {name} {here}{runs_on}; "
        f"build it again here, or with {' and '.join(advice)}"
    )
