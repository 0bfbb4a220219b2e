"""A build folder as a model that the Triton Inference Server serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.sources import open_batches
from trtq.errors import ArtifactError, DataError, UsageError
from trtq.models.preprocess import Preprocess, describe
from trtq.models.signature import TensorSpec
from trtq.models.toml import read_table
from trtq.numbers import format_shape
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.triton.config import ModelConfig, Serving, find_largest_batch, list_ports
from trtq.pipeline.deliver.triton.python_model import SCRIPT, list_script_files, refuse_bfloat16
from trtq.pipeline.deliver.triton.repository import (
    InstalledModel,
    PackageSource,
    RepositoryEntry,
    check_name,
    install,
)
from trtq.pipeline.deliver.triton.router import SCRIPT as ROUTER
from trtq.pipeline.deliver.triton.router import write_router
from trtq.pipeline.deliver.triton.warmup import Warmup, make_warmup
from trtq.pipeline.engine.profiles import list_profiles
from trtq.pipeline.package.source import BuiltModel, read_build

FALLBACKS = ("onnxruntime", "python")
"""The backends of Triton that can run an ONNX model: its own one, and the package of the same name."""
_INT64_SINCE = 10
"""The first TensorRT that has INT64; before, its parser makes INT32 of it, in inputs and outputs too."""
_RTX = (
    "was built by TensorRT-RTX, and Triton's TensorRT backend is linked with TensorRT, which does not read "
    "engines of TensorRT-RTX"
)


@dataclass(frozen=True, slots=True)
class PackageSpec:
    """What is wanted beside the engine.

    Attributes:
        name: Of the model; None: the folder's, without its suffix.
        fallback: The backend of Triton that runs the ONNX model, which is added as `<name>_onnx`:
            "onnxruntime", or "python", where the package onnxruntime runs it; None: it is not added.
        ab_percent: How many of a hundred requests a third model, `<name>_ab`, sends to that; None: there is
            no third.
        warmup_data: Data for the warm-up; None: the calibration data of the build, where it still is.
        ignore_gate: Whether a build may be packaged whose gate failed.
        key: A public Ed25519 key in PEM that must have signed the build; None: signatures are not checked.
        serving: How the server shall run it.
    """

    name: str | None = None
    fallback: str | None = None
    ab_percent: float | None = None
    warmup_data: str | None = None
    ignore_gate: bool = False
    key: Path | str | None = None
    serving: Serving = field(default_factory=Serving)

    def __post_init__(self) -> None:
        if self.fallback not in (None, *FALLBACKS):
            raise UsageError(f"--fallback is one of {', '.join(FALLBACKS)}, got {self.fallback!r}")
        if self.ab_percent is not None and not 0 <= self.ab_percent <= 100:
            raise UsageError(f"--ab is a percentage, 0 to 100, got {self.ab_percent:g}")


@dataclass(frozen=True, slots=True)
class Package:
    """What is in the repository now. The last of the models is the one for clients."""

    repository: str
    models: tuple[InstalledModel, ...]
    notes: tuple[str, ...]


def package(folder: Path | str, repository: Path | str, spec: PackageSpec | None = None) -> Package:
    """Returns what was added to a Triton model repository: a new version of the model, never another one's.

    Everything is made ready and compared with the manifest before any of it is visible to a server; then each
    model appears in one step. The build that is the newest version already is not added again.

    Args:
        folder: Of the build.
        repository: A folder of Triton models; made if there is none.
        spec: What is wanted beside the engine.

    Raises:
        ArtifactError: The folder is no build, was changed since, or is not signed by the key; Triton cannot
            serve it; the repository is none, or its model of this name is another one; something cannot be
            written.
        GateError: The build's gate failed.
        UsageError, DataError: Something that was given does not fit.
        MissingDependency: A key is given without `cryptography`.
    """
    spec = spec or PackageSpec()
    build = read_build(Path(folder), spec.key, ignore_gate=spec.ignore_gate)
    wants_onnx = spec.fallback is not None or spec.ab_percent is not None
    _refuse_useless(build, spec, wants_onnx=wants_onnx)
    name = spec.name or Path(folder).resolve().stem
    check_name(name)
    notes = [f"the build is {build.report.verdict}"] if build.report.verdict != "pass" else []
    max_batch, why = find_largest_batch(build.inputs, build.outputs, build.profiles, spec.serving.max_batch)
    if not max_batch:
        notes.append(f"requests are not joined to batches: {why}")
    arrays, note = _warmup_arrays(build, spec, batches=max_batch > 0)
    notes += [note] if note else []
    entries = []
    if build.has_plan and not build.is_rtx:
        entries.append(_entry(build, name, "tensorrt", max_batch, arrays, spec))
        notes += _conditions(build)
    if not build.has_plan or wants_onnx:
        second = f"{name}_onnx" if build.has_plan else name
        entries.append(_entry(build, second, spec.fallback or "onnxruntime", max_batch, arrays, spec))
    if build.is_rtx:
        notes.append(f"{build.folder / ENGINE} {_RTX}: the Q/DQ model alone was packaged")
    if spec.ab_percent is not None:
        router = write_router(f"{name}_ab", (entries[0].config, entries[1].config), spec.ab_percent)
        entries.append(RepositoryEntry(router, list_script_files(ROUTER)))
    installed = install(Path(repository), tuple(entries))
    notes += [f"{item.name}/config.pbtxt was edited and is kept" for item in installed if item.keeps_config]
    return Package(str(repository), installed, tuple(notes))


def _refuse_useless(build: BuiltModel, spec: PackageSpec, *, wants_onnx: bool) -> None:
    if build.is_rtx and (spec.ab_percent is not None or not wants_onnx):
        raise ArtifactError(
            f"{build.folder / ENGINE} {_RTX}; build it with --backend tensorrt on a machine like the "
            f"server's, or package its Q/DQ model for Triton's ONNX Runtime or Python backend, with "
            f"--fallback onnxruntime or --fallback python"
        )
    if wants_onnx and build.unrunnable:
        raise ArtifactError(
            f"{build.folder / build.onnx}: {build.unrunnable}, which ONNX Runtime cannot run; "
            f"leave --fallback and --ab out"
        )
    if not build.has_plan and (spec.fallback == "onnxruntime" or spec.ab_percent is not None):
        raise UsageError(f"{build.folder} is for ONNX Runtime as it is; leave --fallback and --ab out")


def _entry(
    build: BuiltModel,
    name: str,
    backend: str,
    max_batch: int,
    arrays: Mapping[str, NDArray[Any]] | None,
    spec: PackageSpec,
) -> RepositoryEntry:
    batches = max_batch > 0
    inputs, outputs = (
        list_ports(_as_built(build, specs) if backend == "tensorrt" else specs, batches=batches)
        for specs in (build.inputs, build.outputs)
    )
    if backend == "python":
        refuse_bfloat16((*inputs, *outputs))
    usual = min(build.usual_batch, max_batch)
    warmup: Warmup = make_warmup(inputs, arrays, build.profiles, (max_batch, usual))
    config = ModelConfig(
        name,
        backend,
        max_batch,
        inputs,
        outputs,
        usual,
        spec.serving,
        warmup.messages,
        comments=_shapes(build),
        num_profiles=max(1, len(list_profiles(build.report.engine.profiles))),
        is_exact=backend != "tensorrt" and build.has_plan,  # the gate saw it with each node as it stands
    )
    return RepositoryEntry(config, _files(build, backend), warmup.files)


def _as_built(build: BuiltModel, specs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
    """Returns inputs or outputs as the engine has them."""
    major = build.report.backend.partition(" ")[2].partition(".")[0]
    if not major.isdecimal() or int(major) >= _INT64_SINCE:
        return specs
    return [replace(spec, dtype="int32") if spec.dtype == "int64" else spec for spec in specs]


def _files(build: BuiltModel, backend: str) -> dict[str, PackageSource | bytes]:
    """Returns what a version holds: Triton wants the files of an ONNX model that has several in a folder."""
    if backend == "tensorrt":
        return {"model.plan": build.source(ENGINE)}
    script = list_script_files(SCRIPT) if backend == "python" else {}
    data = f"{build.onnx}.data"
    if data not in build.manifest.outputs:
        return {"model.onnx": build.source(build.onnx), **script}
    model = {"model.onnx/model.onnx": build.source(build.onnx), f"model.onnx/{data}": build.source(data)}
    return {**model, **script}


def _shapes(build: BuiltModel) -> tuple[str, ...]:
    """Returns the engine's optimization profiles, in words."""
    cross = format_shape
    return tuple(
        f"profile {number}, {name}: min {cross(item.min)}, opt {cross(item.opt)}, max {cross(item.max)}"
        for number, profile in enumerate(list_profiles(build.report.engine.profiles))
        for name, item in profile.items()
    )


def _conditions(build: BuiltModel) -> list[str]:
    """Returns what the server must be for the engine."""
    targets = ", ".join(build.report.engine.targets) or "that of the machine it was built on"
    needed = (
        f"the engine needs {build.report.backend} in the server, and a GPU of compute capability {targets}"
    )
    later = "start the server with --backend-config=tensorrt,version-compatible=true for a later version"
    is_compatible = build.manifest.find_setting("target", "options", "version_compatible")
    return [needed, later] if is_compatible else [needed]


def _warmup_arrays(
    build: BuiltModel, spec: PackageSpec, *, batches: bool
) -> tuple[Mapping[str, NDArray[Any]] | None, str]:
    """Returns real inputs for the warm-up, and how they were prepared or why there are none."""
    if spec.warmup_data is not None:
        return _first_sample(build, spec.warmup_data, batches=batches)
    data = build.manifest.find_setting("model", "calibration", "data")
    if not isinstance(data, str):
        return None, "the build names no data, so the warm-up is made of random bits; see --warmup-data"
    if ".py:" in data:
        why = "is a script, which is not run from here; give it with --warmup-data to warm up with it"
        return None, f"{data} {why}"
    try:
        return _first_sample(build, data, batches=batches)
    except DataError as error:
        return None, f"the warm-up is made of random bits, as the calibration data is not here: {error}"


def _first_sample(build: BuiltModel, data: str, *, batches: bool) -> tuple[Mapping[str, NDArray[Any]], str]:
    """Returns the first sample, and how it was prepared if it is a picture."""
    labels = build.manifest.find_setting("model", "evaluation", "labels")
    preprocess = build.manifest.find_setting("model", "preprocess")
    feeds = open_batches(
        data,
        build.inputs,
        1 if batches else max(1, build.usual_batch),
        preprocess=read_table(Preprocess, preprocess or {}, "[preprocess]"),
        extra=(labels,) if isinstance(labels, str) and labels else (),
    )
    feed, free = next(iter(feeds)), int(batches)
    for name, profile in build.profiles.items():
        shape = feed.arrays[name].shape
        sizes = zip(profile.min[free:], shape[free:], profile.max[free:], strict=True)
        if not all(low <= size <= high for low, size, high in sizes):
            raise DataError(
                f"input {name!r} of {feed.source} has shape {format_shape(shape)}, outside of the engine's "
                f"profile, {format_shape(profile.min)} to {format_shape(profile.max)}"
            )
    note = f"image preprocessing of the warm-up: {describe(steps)}" if (steps := feeds.preprocess) else ""
    first = 0 if batches else ...
    return {spec.name: np.asarray(feed.arrays[spec.name])[first] for spec in build.inputs}, note
