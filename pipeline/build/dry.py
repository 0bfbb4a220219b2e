"""What a build would do, decided as a build decides it, and nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.json import to_plain
from trtq.models.spec import AccuracySpec, InputSpec, ModelSpec
from trtq.pipeline.build.begin import begin_build
from trtq.pipeline.build.command import format_command
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.models import name_models
from trtq.pipeline.calibrate.data import need_no_ranges
from trtq.pipeline.deliver.html.page import NAME as PAGE
from trtq.pipeline.deliver.html.page_data import NAME as TENSORS
from trtq.pipeline.deliver.html.thumbnails import can_draw
from trtq.pipeline.deliver.manifest import NAME as MANIFEST
from trtq.pipeline.deliver.names import CACHE, ENGINE, RANGES, REPORT
from trtq.pipeline.deliver.notebook import table_to_html
from trtq.pipeline.engine.profiles import check_profiles, resolve_profiles
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.placement import QuantizedNode
from trtq.pipeline.judge.evaluate import find_labels
from trtq.pipeline.judge.score import select_labels
from trtq.progress import Watcher, choose_watcher


@dataclass(frozen=True, slots=True)
class PlannedData:
    """Data of a build.

    Attributes:
        origin: Where it comes from, as a person reads it.
        num_samples: How many are used; None: a script tells later.
    """

    origin: str
    num_samples: int | None


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build would do.

    Attributes:
        model: The ONNX file.
        settings: The file that settings were read from; empty: none.
        command: The whole build as one command, with the settings of the file and what was given instead.
        backend: With its version.
        precision: Of the layers; `high_precision` is that of what is not quantized.
        targets: Compute capabilities; empty for the backend's default.
        quantization: "explicit" (Q/DQ in the model) or "implicit" (by TensorRT itself).
        calibration: The data for the ranges; None: none is needed.
        method: How the ranges are found; empty where none are.
        repairs: Which may be made.
        evaluation: The data to compare on; None: nothing is compared.
        gate: What must hold.
        layers: How many are asked to run in what, as in the report: "int8", "int4-weights", "int8 x int4".
        kept: How many layers with weights stay as they are, by the reason.
        profiles: Of the dynamic inputs; None: from the data.
        output: The folder, and its `files`; those of large models have a second one with weights.
        engine_file: Where else the engine is written; empty: nowhere.
        reused: What of an earlier build there would be used again: "ranges", "engine", "everything".
    """

    model: str
    settings: str
    command: str
    backend: str
    precision: str
    high_precision: str
    targets: tuple[str, ...]
    quantization: str
    calibration: PlannedData | None
    method: str
    repairs: tuple[str, ...]
    evaluation: PlannedData | None
    gate: AccuracySpec
    layers: Mapping[str, int]
    kept: Mapping[str, int]
    profiles: Mapping[str, InputSpec | None]
    output: str
    files: tuple[str, ...]
    engine_file: str = ""
    reused: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Returns what would be built, in one line."""
        layers = (
            ", ".join(f"{count} in {name}" for name, count in self.layers.items()) or "no layer quantized"
        )
        return f"<BuildPlan {self.model} in {self.precision.upper()} by {self.backend}: {layers}>"

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        rows = [
            (name, str(value)) for name, value in to_plain(self).items() if value not in (None, "", [], {})
        ]
        return table_to_html(("", "plan"), rows)


def plan_build(
    model: Path | str | onnx.ModelProto | ir.Model,
    data: Any = None,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    random_data: bool = False,
    sign_key: Path | str | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> BuildPlan:
    """Returns what `build` would do with the same arguments; runs no model.

    Nothing is written but a model and data that are in memory alone, as `build` does too. Of data in files,
    the first batch is read.

    Args:
        model: As all arguments, what `build` takes.
        data: The calibration data.
        spec: The settings; None: read from beside the model.
        target: What is built.
        output: The folder, or a file for the engine.
        random_data: Whether random numbers would calibrate the model.
        sign_key: The private key that would sign the folder.
        watcher: Receives notes and warnings.
        **options: Of `trtq build`, by name.

    Raises:
        ModelError, DataError, UsageError: As of `build`: what is wrong with the arguments is found here too.
        ArtifactError: The engine file cannot be written.
        MissingDependency: The engine builder, or what signs, is not installed.
    """
    start = begin_build(
        model, data, spec=spec, target=target, output=output, random_data=random_data, sign_key=sign_key,
        options=options, watcher=choose_watcher(watcher),
    )  # fmt: skip
    job, engine = start.job, start.places.engine
    _check_data(job)
    rest = "as it is" if job.is_as_given else job.strategy.rest.name
    placement = job.placement
    return BuildPlan(
        model=str(job.graph.path),
        settings=job.spec.file or "",
        command=format_command(job),
        backend=f"{job.backend.name} {job.backend.version()}",
        precision=job.name,
        high_precision=rest,
        targets=job.target.compute_capabilities,
        quantization=job.strategy.quantization,
        calibration=_describe(job.calibration),
        method=job.spec.calibration.method if job.calibrates else "",
        repairs=job.spec.quantization.repairs if job.calibrates else (),
        evaluation=_describe(job.evaluation),
        gate=job.spec.accuracy,
        layers=dict(Counter(_name_asked(node) for node in placement.layers).most_common()),
        kept=dict(Counter(node.reason for node in (*placement.given, *placement.kept)).most_common()),
        profiles=_find_profiles(job),
        output=str(job.folder),
        files=tuple(_name_files(job)),
        engine_file="" if engine is None else str(engine),
        reused=start.reused,
    )


def _check_data(job: Job) -> None:
    """Reads the first batches, unless a script would run for them.

    Raises:
        DataError: The arrays are not those that the model takes, or there are no such labels.
    """
    labels = None if job.spec.evaluation.data is None else find_labels(job.spec.evaluation)
    array = None if labels is None else labels.array
    for batches in (job.calibration, job.evaluation):
        if batches is None or batches.num_samples is None:
            continue
        for feed in batches.first(1):
            if array is not None and batches is job.evaluation:
                select_labels(feed, array)


def _name_asked(node: QuantizedNode) -> str:
    """Returns what a layer is asked to run in, as the report has it."""
    parts = str(node.scheme).split(" x ")
    if parts[0] == "float":
        return f"{parts[-1]}-weights"
    return parts[0] if len({*parts}) == 1 else " x ".join(parts)


def _describe(batches: Batches | None) -> PlannedData | None:
    return None if batches is None else PlannedData(batches.origin, batches.num_samples)


def _find_profiles(job: Job) -> dict[str, InputSpec | None]:
    """Returns the profile of each dynamic input; None for one whose shapes the data tells."""
    shapes = job.target.shapes
    if job.shape_data is None:  # then all must be given
        return {**resolve_profiles(job.graph.inputs, shapes, job.spec.inputs, {})[0]}
    return check_profiles(job.graph.inputs, shapes, job.spec.inputs)


def _name_files(job: Job) -> Iterator[str]:
    """Yields the names of the files of the folder, as `build` writes them."""
    if job.backend.name != "onnxruntime":
        yield ENGINE
    yield from name_models(job)
    finds_none = job.is_implicit or job.is_as_given or need_no_ranges(job.graph, job.placement) is None
    if job.calibrates or not finds_none:
        yield RANGES
    is_int8 = job.tensors and all(form is INT8 for form in job.tensors.values())
    if job.is_implicit or (job.calibrates and is_int8):
        yield CACHE
    if job.placement.layers or (job.calibrates and job.tensors) or can_draw(job.evaluation):
        yield TENSORS
    yield from (REPORT, PAGE, MANIFEST)
