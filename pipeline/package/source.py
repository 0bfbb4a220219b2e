"""The build folder that is packaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from trtq.errors import ArtifactError, GateError
from trtq.files import refuse_damage
from trtq.models.signature import TensorSpec, outputs_of, read_inputs
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.integrity import read_intact_manifest
from trtq.pipeline.deliver.manifest import NAME, Manifest
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.deliver.report import Report, find_model, read_report
from trtq.pipeline.deliver.triton.repository import PackageSource
from trtq.pipeline.graph.foreign_operators import explain_unrunnable


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A build folder that is as its manifest says, and what its model takes and gives.

    Attributes:
        folder: Of the build.
        manifest: Of the folder.
        report: Of the build.
        onnx: The name of its ONNX file.
        inputs: Of that file.
        outputs: Of that file.
        unrunnable: Why ONNX Runtime cannot run it; empty if it can.
    """

    folder: Path
    manifest: Manifest
    report: Report
    onnx: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unrunnable: str = ""

    @property
    def has_plan(self) -> bool:
        """Whether there is an engine beside the ONNX file."""
        return self.report.engine.path == ENGINE

    @property
    def is_rtx(self) -> bool:
        """Whether the engine is one of TensorRT-RTX, which TensorRT does not read."""
        return self.has_plan and self.report.backend.startswith("tensorrt-rtx ")

    @property
    def profiles(self) -> Mapping[str, InputSpec]:
        """The shapes that the engine takes, by input."""
        return {name: item.hull for name, item in self.report.engine.profiles.items()}

    @property
    def usual_batch(self) -> int:
        """The batch that the engine is made for."""
        return min((profile.opt[0] for profile in self.profiles.values()), default=1)

    def source(self, name: str) -> PackageSource:
        """Returns a file of the folder with its digest."""
        return PackageSource(self.folder / name, self.manifest.outputs[name])


def read_build(folder: Path, key: Path | str | None, *, ignore_gate: bool) -> BuiltModel:
    """Returns the build; one that is not as it was built, and signed if there is a key, is refused.

    Raises:
        ArtifactError: The folder is no build, was changed since, or is not signed by the key.
        GateError: The build's gate failed, and that is not ignored.
        UsageError, MissingDependency: The key cannot be used.
    """
    manifest = read_intact_manifest(folder, key=key)
    report = read_report(folder)
    onnx = find_model(report, manifest.outputs)
    for name in (report.engine.path, onnx):
        if name not in manifest.outputs:
            raise ArtifactError(f"{folder} has no {name} by its {NAME}; build again")
    with refuse_damage(ArtifactError, f"{folder / onnx} is not a whole model; build again"):
        model = ir.load(folder / onnx)
    ports = read_inputs(model), outputs_of(model)
    if report.verdict == "fail" and not ignore_gate:
        raise GateError(
            f"the accuracy gate of {folder} failed: {'; '.join(report.reasons)}; "
            f"--ignore-gate packages it all the same"
        )
    return BuiltModel(folder, manifest, report, onnx, *ports, explain_unrunnable(model))
