"""What a build decides before any work begins."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtq.calibrators import Method, create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.entropy import Auto
from trtq.calibrators.estimate import describe
from trtq.calibrators.ranges import Ranges
from trtq.errors import DataError, UsageError
from trtq.files import hash_file
from trtq.models.script import load_function
from trtq.models.spec import InputSpec, ModelSpec
from trtq.pipeline.calibrate.data import (
    find_spec,
    open_calibration_data,
    place_layers,
    warn_of_preprocess,
    warn_of_unmatched,
)
from trtq.pipeline.deliver.manifest import collect_versions, make_key
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.backends import choose_backend, refuse_unsupported
from trtq.pipeline.engine.gpu import find_compute_capability
from trtq.pipeline.engine.profiles import resolve_profiles
from trtq.pipeline.engine.strategy import (
    Strategy,
    choose_strategy,
    find_tensorrt_algorithm,
    list_float_tensors,
)
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.lint import lint, refuse
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.repair import repair, summarize_changes
from trtq.pipeline.judge.evaluate import open_evaluation_data
from trtq.pipeline.quantize.weights import place_weights, refuse_weights
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.progress import Watcher


@dataclass(frozen=True, slots=True)
class Job:
    """A build before it begins.

    Attributes:
        graph: The loaded model.
        spec: What is known of it.
        target: What is wanted.
        backend: Who builds it.
        folder: Where the result goes.
        way: How precisions get into the engine.
        is_quantized: Whether the model came with Q/DQ: then it is built as it is.
        placement: What will be quantized.
        method: How ranges are estimated.
        calibration: The data for the ranges; None if there is none, and none is needed.
        evaluation: The data to compare on; None if there is none.
        keys: A digest for each stage of all that its result depends on.
        ranges: Given ones, instead of calibrating.
        extra_files: Further files for the folder, by name; they win over those that a build would write.
        sources: SHA-256 of further inputs by path, for the manifest.
        weights: Those that are stored in fewer bits.
    """

    graph: Graph
    spec: ModelSpec
    target: Target
    backend: Backend
    folder: Path
    way: Strategy
    is_quantized: bool
    placement: Placement
    method: Method
    calibration: Batches | None
    evaluation: Batches | None
    keys: Mapping[str, str] = field(default_factory=dict)
    ranges: Ranges | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[ChosenWeight, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether the data was made up."""
        return self.calibration is not None and self.calibration.is_random

    @property
    def is_implicit(self) -> bool:
        """Whether TensorRT quantizes the float model itself."""
        return self.way.quantization == "implicit"

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that need a range."""
        return list_float_tensors(self.graph) if self.is_implicit else self.placement.activations

    @property
    def calibrates(self) -> bool:
        """Whether ranges are estimated here, and not given, needless or TensorRT's own affair."""
        needs = self.ranges is None and self.calibration is not None and not self.is_quantized
        return needs and not (self.is_implicit and find_tensorrt_algorithm(self.spec.calibration))

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
    spec = spec if spec is not None else find_spec(path)
    backend = choose_backend(target.backend)
    refuse_unsupported(backend, target.options, target.compute_capabilities)
    watcher.stage("Loading")
    way = choose_strategy(target, backend)
    refuse_weights(target, backend, way)
    _refuse_scales(spec, target, way, backend)
    graph = load(path, min_opset=max(19 if way.fp16_graph else 13, target.min_opset))
    for note in graph.notes:
        watcher.note(note)
    folder = Path(output or path.with_suffix(".trtq")).absolute()
    refuse_inputs_in(
        folder, graph.path, spec.calibration.data, spec.evaluation.data, target.options.timing_cache
    )
    _check_shapes(graph, spec, target)
    quantized = is_quantized(graph.model)
    if quantized:
        if way.quantization == "implicit":
            raise UsageError(
                f"{path} is quantized already, so TensorRT cannot quantize it implicitly; give the float "
                f"model, or leave --quantization implicit out"
            )
        if target.weights is not None:
            raise UsageError(f"{path} is quantized already; --weights needs the float model")
        graph = _repaired(graph, target, watcher)
        target = replace(target, precision="int8")
        watcher.note("the model is quantized already: it is built as it is, without calibration")
    as_is = quantized or target.precision != "int8"
    placement = Placement((), ()) if as_is else place_layers(graph, spec, target, watcher)
    weights: tuple[ChosenWeight, ...] = ()
    if target.weights is not None:
        placement, weights = place_weights(graph, spec, target, placement, watcher)
    elif not as_is and not placement.layers:
        watcher.warn("no layer can be quantized; the report tells why")
    if target.precision == "fp16":
        warn_of_unmatched(graph, spec.layers.keep_fp32, watcher)
    if way.quantization == "implicit" and spec.quantization.repair not in (("auto",), ("none",)):
        raise UsageError(
            f"--repair {','.join(spec.quantization.repair)} is for Q/DQ: quantized implicitly, TensorRT "
            f"gets ranges and nothing else; leave --repair or --quantization implicit out"
        )
    if random_data:
        watcher.warn("calibrating with random numbers: the accuracy of this engine is meaningless")
    needs = target.weights is not None and target.weights.method == "gptq"
    wanted = not as_is or needs or random_data or spec.calibration.data is not None
    calibration = open_calibration_data(graph, spec, target, random_data=random_data) if wanted else None
    evaluation = open_evaluation_data(graph, spec, calibration)
    for batches in (calibration, evaluation if calibration is None else None):
        if batches is not None:
            warn_of_preprocess(batches, spec, watcher)
    if target.auto:
        _refuse_auto_without(graph, evaluation, is_quantized=quantized)
    job = Job(
        graph=graph,
        spec=spec,
        target=target,
        backend=backend,
        folder=folder,
        way=way,
        is_quantized=quantized,
        placement=placement,
        method=create_method(spec.calibration),
        calibration=calibration,
        evaluation=evaluation,
        weights=weights,
    )
    return replace(job, keys=_keys(job))


def _refuse_scales(spec: ModelSpec, target: Target, way: Strategy, backend: Backend) -> None:
    """Refuses scales and zero points that this way of building does not have."""
    by_tensor = spec.quantization.weight_granularity == "per-tensor"
    if by_tensor and (way.quantization == "implicit" or target.precision == "weights"):
        raise UsageError(
            "--weight-granularity per-tensor is for INT8 by Q/DQ: quantizing implicitly, TensorRT picks the "
            "scales of weights itself, and --weights alone has its own; leave one of the two out"
        )
    asks = spec.quantization.activations == "asymmetric" and target.precision == "int8"
    if asks and backend.name != "onnxruntime":
        raise UsageError(
            f"--activations asymmetric is for --backend onnxruntime, not {backend.name}: TensorRT takes no "
            f"zero points other than 0"
        )


def _repaired(graph: Graph, target: Target, watcher: Watcher) -> Graph:
    """Returns a Q/DQ model with everything repaired that TensorRT would not take.

    Raises:
        ModelError: Something has no repair.
    """
    repaired = repair(graph.model, requantize=target.requantize)
    for sentence, is_exact in summarize_changes(repaired.changes):
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


def _refuse_auto_without(graph: Graph, evaluation: Batches | None, *, is_quantized: bool) -> None:
    if is_quantized:
        raise UsageError(f"{graph.path} is quantized already, so --auto has no layers to choose among")
    if evaluation is None or evaluation.is_random:
        raise DataError(
            f"--auto chooses layers by what they cost on real data, and {graph.path} comes with "
            f"{'none' if evaluation is None else evaluation.origin}; give --calib-data or --eval-data"
        )


def _check_shapes(graph: Graph, spec: ModelSpec, target: Target) -> None:
    """Checks the given shapes before any work; shapes that the data will tell are taken to be 1."""
    ones = [tuple(dim if isinstance(dim, int) else 1 for dim in item.shape) for item in graph.inputs]
    seen = {item.name: InputSpec(one, one, one) for item, one in zip(graph.inputs, ones, strict=True)}
    resolve_profiles(graph.inputs, target.shapes, spec.inputs, seen)


def _keys(job: Job) -> dict[str, str]:
    tries = isinstance(job.method, Auto) or job.spec.quantization.repairs
    ranges = make_key(
        collect_versions(),
        job.graph.sha256,
        _digest(job.shape_data),
        (describe(job.method), job.spec.calibration.method, job.spec.quantization),
        job.tensors,
        job.placement.quantized if tries else (),
    )
    judged = (_digest(job.evaluation), job.spec.evaluation, job.spec.accuracy, _script_digest(job.spec))
    engine = make_key(
        ranges,
        job.spec.layers,
        job.spec.inputs,
        job.target,
        job.way,
        job.backend.name,
        job.backend.version(),
        judged if job.target.auto else (),  # then they decide which layers are quantized
        find_compute_capability() if "compute_capabilities" in job.backend.lacks else "",
    )
    everything = make_key(engine, *judged)
    return {"ranges": ranges, "engine": engine, "everything": everything}


def _script_digest(spec: ModelSpec) -> str:
    """Returns the digest of the script of a metric of the user's own, which is run once to see it works."""
    if spec.accuracy.script is None:
        return "no script"
    load_function(*spec.accuracy.script)
    return hash_file(spec.accuracy.script[0])


def _digest(batches: Batches | None) -> str:
    if batches is None:
        return "no data"
    return batches.digest or f"known only by running it, at {time.time_ns()}"
