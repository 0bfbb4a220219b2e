"""A built engine, ready to run where it can run: checked against what its manifest says."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ArtifactError, MissingDependency, UsageError
from trtq.files import refuse_damage
from trtq.models.runner import create_runner
from trtq.models.session import open_session
from trtq.models.signature import TensorSpec, outputs_of, read_inputs
from trtq.pipeline.deliver.integrity import read_whole_manifest, refuse_changed
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import ENGINE, REPORT
from trtq.pipeline.deliver.report import Report, find_model, read_report
from trtq.pipeline.engine.backend import Backend, split_version
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.feeds import Signature, infer_in_batches, take_feed
from trtq.pipeline.engine.gpu import find_compute_capability
from trtq.pipeline.graph.tidy import list_tensors

_AMPERE = 8
_ANYWHERE = "onnxruntime"
"""The backend that runs the ONNX file of any build."""


@dataclass(frozen=True)
class LoadedEngine:
    """A build folder whose engine fits this machine. As a context manager it gives memory back at the end.

    Attributes:
        folder: Where it is.
        backend: Who runs it.
        report: Of the build.
        onnx: The file to run, where the backend runs ONNX itself; None where there is a plan.
        sha256: Of the plan or the ONNX file.
        model: The name of the ONNX file with the inputs and outputs of the engine.
        manifest: Of the folder.
        is_exact: Whether an ONNX file that was made for another backend is run, each node as it stands.
    """

    folder: Path
    backend: Backend
    report: Report
    onnx: Path | None
    sha256: str
    model: str
    manifest: Manifest
    is_exact: bool = False

    def __repr__(self) -> str:
        """Returns what is run, and by whom, in one line."""
        file = ENGINE if self.onnx is None else self.onnx.name
        return f"LoadedEngine({str(self.folder)!r}, {self.backend.name} runs {file})"

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, NDArray[Any]]:
        """Returns the outputs by name for any number of samples along the first axis of the inputs.

        More samples than the engine takes at once are split, fewer are filled up and the outputs cut. The
        engine is opened by the first call and stays; calls from several threads wait for each other.

        Args:
            inputs: Arrays by the names of the inputs; or the array itself where there is one input.

        Raises:
            DataError: A name, a dtype or a shape is not the engine's; or samples must be split or filled up,
                and an output has no axis of samples.
            ArtifactError: A file was changed since it was loaded, or the engine does not run.
            ModelError: ONNX Runtime cannot run the model.
        """
        feed = take_feed(self.signature, inputs)
        with self._running.lock:
            return infer_in_batches(self.signature, feed, self._running.open(self).infer)

    def close(self) -> None:
        """Ends what `run` has opened and gives its memory back; a later `run` opens it again."""
        with self._running.lock:
            self._running.close()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs: names, dtypes and shapes; an open dim has a name or is None."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, likewise."""
        return self.signature.outputs

    @cached_property
    def signature(self) -> Signature:
        """What the engine takes and gives, and how many samples at once.

        Raises:
            ArtifactError: The ONNX file that says so is not there, or was changed.
        """
        content = self._read(self.model, self.manifest.outputs.get(self.model, ""))
        with refuse_damage(ArtifactError, f"{self.folder / self.model} is not a whole model; build again"):
            model = ir.from_proto(onnx.load_model_from_string(content))
        profiles = {name: item.hull for name, item in self.report.engine.profiles.items()}
        return Signature(read_inputs(model), outputs_of(model), profiles, is_bound=self.onnx is None)

    @cached_property
    def _running(self) -> _Running:
        return _Running()

    def runner(self, name: str) -> Any:
        """Returns a Polygraphy runner of the engine; what is run is what was hashed.

        Raises:
            ArtifactError: The file was changed since it was loaded, or engines of this backend are not run.
        """
        if self.onnx is not None:
            model = self._put_weights(self._read(self.onnx.name, self.sha256))
            if self.is_exact:
                return create_runner(open_session(model, optimize=False), name)
            return self.backend.model_runner(model, name)
        found = self.backend.engine_runner(self.plan(), name)
        if found is None:
            raise ArtifactError(
                f"{self.folder / ENGINE} is an engine of {self.backend.name}, which trtq does not run; "
                f"take {self.model} of the same folder"
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

    def _put_weights(self, content: bytes) -> ir.Model | bytes:
        """Returns an ONNX file, or its model with the weights of another file in it, which is read once."""
        assert self.onnx is not None
        digests = self.manifest.outputs
        files = {name: self._read(name, digests[name]) for name in _name_weights(self.onnx, digests)}
        with refuse_damage(ArtifactError, f"{self.onnx} is not a whole model; build again"):
            model = onnx.load_model_from_string(content)
        outside = [item for item in list_tensors(model) if item.data_location == onnx.TensorProto.EXTERNAL]
        for tensor in outside:
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
        return ir.from_proto(model) if outside else content


class _Running:
    """The open engine of a `LoadedEngine`, and the lock of who uses it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._end: weakref.finalize[..., Any] | None = None
        self._runner: Any = None

    def open(self, engine: LoadedEngine) -> Any:
        """Returns a runner at work, the same one until it is closed, which the end of the engine does too."""
        if self._end is None or not self._end.alive:
            self._runner = engine.runner("engine")
            self._runner.activate()
            self._end = weakref.finalize(engine, self._runner.deactivate)
        return self._runner

    def close(self) -> None:
        """Ends the runner, if there is one."""
        if self._end is not None:
            self._end()
        self._runner = None


def load(folder: Path | str, *, key: Path | str | None = None, backend: str | None = None) -> LoadedEngine:
    """Returns the engine of a build folder.

    Args:
        folder: Of a build.
        key: A public Ed25519 key in PEM that must have signed the folder; None: signatures are not checked.
        backend: Who runs it; None: what it was built for. "onnxruntime" runs the Q/DQ model of any build on
            the CPU, each node as it stands.

    Raises:
        ArtifactError: The folder is not a build, a file that is needed was changed since or lies outside, the
            key is given and has not signed it, the engine was built by another version or for another GPU
            than those here (both are named), or the folder has no model for ONNX Runtime.
        UsageError: The key cannot be used, or the folder cannot be run by this backend.
        MissingDependency: Its engine does not run here (what does is named), or a key is given without
            `cryptography`.
    """
    folder = Path(folder)
    manifest = read_whole_manifest(folder, key=key)
    refuse_changed(folder, manifest, REPORT)
    report = read_report(folder / REPORT)
    name, _, built_by = report.backend.partition(" ")
    if name not in BACKENDS:
        raise ArtifactError(f"{folder} was built by {name!r}, which this trtq does not know")
    if backend not in (None, name, _ANYWHERE):
        others = "" if name == _ANYWHERE else f", or {_ANYWHERE} for its ONNX model"
        raise UsageError(
            f"{folder} was built for {name}, it cannot be run by {backend!r}; take {name}{others}"
        )
    path = folder / report.engine.path
    if path.name != report.engine.path or path.name in ("", ".."):
        raise ArtifactError(
            f"{folder / REPORT} names the engine {report.engine.path!r}, which is not a file of the folder; "
            f"build again"
        )
    model = find_model(report, manifest.outputs)
    is_exact = backend == _ANYWHERE != name
    if is_exact:
        path = folder / _find_runnable(folder, report, manifest.outputs)
    refuse_changed(folder, manifest, path.name, *_name_weights(path, manifest.outputs))
    chosen = BACKENDS[_ANYWHERE if is_exact else name]
    if reason := chosen.why_not_run():
        raise MissingDependency(
            f"backend {chosen.name}, for {folder}: {reason}{_offer(report, manifest.outputs)}"
        )
    is_plan = path.name == ENGINE
    if is_plan:
        options = manifest.find_setting("target", "options")
        _refuse_misfit(path, report, built_by, chosen.version(), options if isinstance(options, dict) else {})
    sha256, onnx_file = manifest.outputs[path.name], None if is_plan else path
    return LoadedEngine(folder, chosen, report, onnx_file, sha256, model, manifest, is_exact)


def _name_weights(path: Path, digests: Mapping[str, str]) -> list[str]:
    """Returns the file with the weights of a large ONNX file, if it has one."""
    return [name for name in (f"{path.name}.data",) if name in digests]


def _find_runnable(folder: Path, report: Report, digests: Mapping[str, str]) -> str:
    """Returns the name of the ONNX file that computes what the engine does."""
    name = find_model(report, digests)
    if name != f"model.{report.precision}.onnx":
        raise ArtifactError(
            f"{folder} holds no model.{report.precision}.onnx that {_ANYWHERE} could run: TensorRT quantized "
            f"the float model itself; build with --quantization explicit"
        )
    return name


def _offer(report: Report, digests: Mapping[str, str]) -> str:
    """Returns what can be run here in place of an engine."""
    name = find_model(report, digests)
    if report.engine.path != ENGINE or name != f"model.{report.precision}.onnx" or name not in digests:
        return ""
    return (
        f'; {name} of the same folder runs on the CPU, with load(..., backend="{_ANYWHERE}") or '
        f"trtq run --backend {_ANYWHERE}"
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
