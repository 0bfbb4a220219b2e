"""A built engine, ready to run where it can run: checked against what its manifest says."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.feeds import Signature, infer_in_batches, settle, take_feed
from trtq.pipeline.graph.tidy import list_tensors
from trtq.pipeline.load.fit import ANYWHERE, find_misfit
from trtq.pipeline.load.index import open_best


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


@dataclass(frozen=True)
class LoadedEngine:
    """A build folder whose engine fits this machine. As a context manager it frees the memory at the end.

    Attributes:
        folder: The build folder.
        backend: The backend that runs it.
        report: The report of the build.
        onnx: The ONNX file to run; None if there is a plan.
        sha256: Digest of the plan or the ONNX file.
        model: Name of the ONNX file with the inputs and outputs of the engine.
        manifest: The manifest of the folder.
        is_exact: Whether an ONNX file made for another backend runs here, with graph optimizations off.
    """

    folder: Path
    backend: Backend
    report: Report
    onnx: Path | None
    sha256: str
    model: str
    manifest: Manifest
    is_exact: bool = False
    _running: _Running = field(default_factory=_Running, init=False, compare=False)

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
        signature = settle(self.signature, inputs)
        feed = take_feed(signature, inputs)
        with self._running.lock:
            return infer_in_batches(signature, feed, self._running.open(self).infer)

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
        with self._refuse_damage(self.model):
            model = ir.from_proto(onnx.load_model_from_string(content))
        profiles = {name: item.hull for name, item in self.report.engine.profiles.items()}
        return Signature(read_inputs(model), outputs_of(model), profiles, is_bound=self.onnx is None)

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
                f"use {self.model} of the same folder"
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

    def _refuse_damage(self, name: str) -> AbstractContextManager[None]:
        return refuse_damage(ArtifactError, f"{self.folder / name} is not a whole model; build again")

    def _put_weights(self, content: bytes) -> ir.Model | bytes:
        """Returns an ONNX file, or its model with the weights of another file in it, which is read once."""
        assert self.onnx is not None
        digests = self.manifest.outputs
        files = {name: self._read(name, digests[name]) for name in _name_weights(self.onnx, digests)}
        with self._refuse_damage(self.onnx.name):
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


def load(
    folder: Path | str,
    *,
    name: str | None = None,
    key: Path | str | None = None,
    backend: str | None = None,
) -> LoadedEngine:
    """Opens the engine of a build folder, or the engine for this machine from an index.

    Args:
        folder: The build folder; or the index that `trtq build-all` wrote.
        name: The build in an index; None: its only build.
        key: Public Ed25519 key (PEM) that must have signed the folder or the index; None: signatures are not
            checked.
        backend: What runs it; None: the backend of the build. "onnxruntime" runs the Q/DQ model of any build
            on the CPU; that of a TensorRT build with graph optimizations off.

    Raises:
        ArtifactError: The folder is not a build, a file has changed since the build or is outside, `key` did
            not sign it, the engine was built with another version or for another GPU, or the folder has no
            model for ONNX Runtime; or an index has no engine for this machine.
        UsageError: The key cannot be used, this backend cannot run the folder, or an index has no build of
            this name.
        MissingDependency: The engine does not run here, or a key is given without `cryptography`.
    """
    path = Path(folder)
    if path.suffix == ".json" and not path.is_dir():
        return open_best(path, name, key, backend, _open)
    if name is not None:
        raise UsageError(f"{path} is a build folder, which has no build {name!r}; leave the name out")
    return _open(path, read_whole_manifest(path, key=key), backend)


def _open(folder: Path, manifest: Manifest, backend: str | None) -> LoadedEngine:
    """Returns the engine of a folder with this manifest; see `load`."""
    refuse_changed(folder, manifest, REPORT)
    report = read_report(folder / REPORT)
    name = report.backend.partition(" ")[0]
    if name not in BACKENDS:
        raise ArtifactError(f"{folder} was built by {name!r}, which this trtq does not know")
    if backend not in (None, name, ANYWHERE):
        others = "" if name == ANYWHERE else f", or {ANYWHERE} for its ONNX model"
        raise UsageError(
            f"{folder} was built for {name}, it cannot be run by {backend!r}; use {name}{others}"
        )
    path = folder / report.engine.path
    if path.name != report.engine.path or path.name in ("", ".."):
        raise ArtifactError(
            f"{folder / REPORT} names the engine {report.engine.path!r}, which is not a file of the folder; "
            f"build again"
        )
    model = find_model(report, manifest.outputs)
    is_exact = backend == ANYWHERE != name
    if is_exact:
        path = folder / _find_runnable(folder, report, manifest.outputs)
    refuse_changed(folder, manifest, path.name, *_name_weights(path, manifest.outputs))
    chosen = BACKENDS[ANYWHERE if is_exact else name]
    if reason := chosen.why_not_run():
        raise MissingDependency(
            f"backend {chosen.name}, for {folder}: {reason}{_offer(report, manifest.outputs)}"
        )
    is_plan = path.name == ENGINE
    if is_plan and (misfit := find_misfit(report, manifest, chosen)):
        raise ArtifactError(f"{path} was {misfit}; build it again here, or with {misfit.advice}")
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
            f"{folder} holds no model.{report.precision}.onnx that {ANYWHERE} could run: TensorRT quantized "
            f"the float model itself; build with --quantization explicit"
        )
    return name


def _offer(report: Report, digests: Mapping[str, str]) -> str:
    """Returns what can be run here in place of an engine."""
    name = find_model(report, digests)
    if report.engine.path != ENGINE or name != f"model.{report.precision}.onnx" or name not in digests:
        return ""
    return (
        f'; {name} of the same folder runs on the CPU, with load(..., backend="{ANYWHERE}") or '
        f"trtq run --backend {ANYWHERE}"
    )
