"""What a build decides before any work begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtq.calibrators import Method
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import describe
from trtq.calibrators.ranges import Ranges
from trtq.errors import UsageError
from trtq.models.spec import InputSpec, ModelSpec
from trtq.pipeline.calibrate import (
    calibration_data,
    method_of,
    placement_of,
    spec_beside,
    warn_of_preprocess,
    warn_of_unmatched,
)
from trtq.pipeline.deliver.manifest import key_of, versions
from trtq.pipeline.engine import choose
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.profiles import resolve_profiles
from trtq.pipeline.graph.lint import lint, refuse
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.repair import repair, summary
from trtq.pipeline.target import Target
from trtq.pipeline.verify.evaluate import evaluation_data
from trtq.pipeline.watch import Watcher


@dataclass(frozen=True, slots=True)
class Job:
    """A build before it begins.

    Attributes:
        graph: The loaded model.
        spec: What is known of it.
        target: What is wanted.
        backend: Who builds it.
        folder: Where the result goes.
        fp16: Whether what is not quantized becomes FP16.
        is_quantized: Whether the model came with Q/DQ: then it is built as it is.
        placement: What will be quantized.
        method: How ranges are estimated.
        calibration: The data for the ranges; None if there is none, and none is needed.
        evaluation: The data to compare on; None if there is none.
        keys: A digest for each stage of all that its result depends on.
        ranges: Given ones, instead of calibrating.
        extra_files: Further files for the folder, by name; they win over those that a build would write.
        sources: SHA-256 of further inputs by path, for the manifest.
    """

    graph: Graph
    spec: ModelSpec
    target: Target
    backend: Backend
    folder: Path
    fp16: bool
    is_quantized: bool
    placement: Placement
    method: Method
    calibration: Batches | None
    evaluation: Batches | None
    keys: Mapping[str, str] = field(default_factory=dict)
    ranges: Ranges | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether the data was made up."""
        return self.calibration is not None and self.calibration.is_random

    @property
    def shape_data(self) -> Batches | None:
        """The data whose shapes become the profiles of dynamic inputs."""
        return self.calibration if self.calibration is not None else self.evaluation


def prepare(
    path: Path,
    spec: ModelSpec | None,
    target: Target,
    output: Path | str | None,
    random_data: bool,
    watcher: Watcher,
) -> Job:
    """Returns the job, with everything checked that can be checked without running the model.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        MissingDependency: The backend does not work here.
    """
    spec = spec if spec is not None else spec_beside(path)
    backend = choose(target.backend)
    gains = target.high_precision == "auto" and backend.runs_fp16
    fp16 = gains or "fp16" in (target.precision, target.high_precision)
    watcher.stage("Loading")
    graph = load(path, min_opset=19 if fp16 else 13)
    for note in graph.notes:
        watcher.note(note)
    folder = Path(output or path.with_suffix(".trtq")).absolute()
    refuse_inputs_in(folder, graph.path, spec.calibration.data, spec.evaluation.data)
    _check_shapes(graph, spec, target)
    quantized = is_quantized(graph.model)
    if quantized:
        graph = _repaired(graph, target, watcher)
        target = replace(target, precision="int8")
        watcher.note("the model is quantized already: it is built as it is, without calibration")
    as_is = quantized or target.precision != "int8"
    placement = Placement((), ()) if as_is else placement_of(graph, spec, target, watcher)
    if not as_is and not placement.layers:
        watcher.warn("no layer can be quantized; the report tells why")
    if target.precision == "fp16":
        warn_of_unmatched(graph, spec.layers.keep_fp32, watcher)
    if random_data:
        watcher.warn("calibrating with random numbers: the accuracy of this engine is meaningless")
    wanted = not as_is or random_data or spec.calibration.data is not None
    calibration = calibration_data(graph, spec, target, random_data=random_data) if wanted else None
    evaluation = evaluation_data(graph, spec, calibration)
    for batches in (calibration, evaluation if calibration is None else None):
        if batches is not None:
            warn_of_preprocess(batches, spec, watcher)
    job = Job(
        graph=graph,
        spec=spec,
        target=target,
        backend=backend,
        folder=folder,
        fp16=fp16,
        is_quantized=quantized,
        placement=placement,
        method=method_of(spec.calibration),
        calibration=calibration,
        evaluation=evaluation,
    )
    return replace(job, keys=_keys(job))


def _repaired(graph: Graph, target: Target, watcher: Watcher) -> Graph:
    """Returns a Q/DQ model with everything repaired that TensorRT would not take.

    Raises:
        ModelError: Something has no repair.
    """
    repaired = repair(graph.model, requantize=target.requantize)
    for sentence, is_exact in summary(repaired.changes):
        (watcher.note if is_exact else watcher.warn)(sentence)
    refuse(lint(repaired.model))
    return replace(graph, model=repaired.model)


def refuse_inputs_in(folder: Path, *sources: Path | str | None) -> None:
    """Refuses an output folder that holds what is read: it will be replaced as a whole.

    Raises:
        UsageError: One of the sources lies in the folder.
    """
    for source in sources:
        if source is not None and folder.resolve() in Path(source).resolve().parents:
            raise UsageError(
                f"{source} lies in the output folder {folder}, which is replaced as a whole; "
                f"choose another folder with --output"
            )


def _check_shapes(graph: Graph, spec: ModelSpec, target: Target) -> None:
    """Checks the given shapes before any work; shapes that the data will tell are taken to be 1."""
    ones = [tuple(dim if isinstance(dim, int) else 1 for dim in item.shape) for item in graph.inputs]
    seen = {item.name: InputSpec(one, one, one) for item, one in zip(graph.inputs, ones, strict=True)}
    resolve_profiles(graph.inputs, target.shapes, spec.inputs, seen)


def _keys(job: Job) -> dict[str, str]:
    ranges = key_of(
        versions(),
        job.graph.sha256,
        _digest(job.shape_data),
        describe(job.method),
        job.placement.activations,
    )
    engine = key_of(
        ranges,
        job.spec.layers,
        job.spec.inputs,
        job.target,
        job.fp16,
        job.backend.name,
        job.backend.version(),
    )
    everything = key_of(engine, _digest(job.evaluation), job.spec.evaluation, job.spec.accuracy)
    return {"ranges": ranges, "engine": engine, "everything": everything}


def _digest(batches: Batches | None) -> str:
    if batches is None:
        return "no data"
    return batches.digest or f"known only by running it, at {time.time_ns()}"
