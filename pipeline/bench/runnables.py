"""What `trtq bench` puts beside each other: the models and engines of its targets, and the inputs for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.sources import make_random_batches
from trtq.errors import ArtifactError, MissingDependency, ModelError, TrtqError, UsageError
from trtq.files import hash_file
from trtq.models.session import list_providers
from trtq.models.signature import TensorSpec, show_shape
from trtq.models.spec import ModelSpec
from trtq.pipeline.bench.process import Request
from trtq.pipeline.calibrate.data import find_spec, open_calibration_data
from trtq.pipeline.deliver.integrity import read_intact_manifest
from trtq.pipeline.deliver.manifest import NAME, Manifest
from trtq.pipeline.deliver.names import ENGINE, FLOAT, REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.gpu import count_gpus
from trtq.pipeline.engine.plan_run import MODULES
from trtq.pipeline.engine.profiles import Shape
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.load import load as load_engine

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Runs:
    """How models and engines are run.

    Attributes:
        device: Where ONNX models run: "auto" is the CPU, and CUDA too where ONNX Runtime has it.
        num_threads: Of ONNX Runtime for one run; 0: as many as there are cores.
        graph: Whether engines are launched as CUDA graphs.
        batch: The size of the open first axes; None: that of the engine's profile, else 1.
        shapes: Whole shapes of inputs, by name.
        data: Whose first samples are the inputs; None: the calibration data where it is there, else random.
    """

    device: Device = "auto"
    num_threads: int = 0
    graph: bool = True
    batch: int | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    data: str | None = None

    def __post_init__(self) -> None:
        if self.num_threads < 0:
            raise UsageError(f"--threads is a number of threads, 0 for all cores, got {self.num_threads}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch is at least 1, got {self.batch}")


@dataclass(frozen=True, slots=True)
class Runnable:
    """One of them.

    Attributes:
        name: Of its own.
        precision: "fp32", "fp16", "int8", "int4-weights" and so on.
        device: "cpu", or "cuda" for a GPU.
        request: What is run.
        high_precision: What is not quantized computes in this, where that is known.
    """

    name: str
    precision: str
    device: str
    request: Request
    high_precision: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """What everything is run on.

    Attributes:
        feed: The inputs by name; None where an engine makes them up.
        origin: Where they come from.
        num_samples: In one run.
    """

    feed: Mapping[str, NDArray[Any]] | None
    origin: str
    num_samples: int


@dataclass(slots=True)
class _Found:
    """What was found so far: `graph` and `spec` are of the first ONNX file, `opt` is by the profiles."""

    runnables: list[Runnable] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    graph: Graph | None = None
    spec: ModelSpec = field(default_factory=ModelSpec)
    opt: dict[str, Shape] = field(default_factory=dict)
    errors: list[TrtqError] = field(default_factory=list)

    def add(self, item: Runnable) -> None:
        """Takes a contender, unless its file, such as the float model of two builds, is there already."""
        if item.request not in [other.request for other in self.runnables]:
            self.runnables.append(item)

    def skip(self, name: str, error: TrtqError) -> None:
        """Leaves something out, for this reason."""
        self.skipped.append(Skipped(name, str(error)))
        self.errors.append(error)


def list_runnables(
    targets: Sequence[Path], runs: Runs
) -> tuple[tuple[Runnable, ...], tuple[Skipped, ...], Inputs]:
    """Returns what can be measured, what cannot and why, and the inputs.

    Args:
        targets: Build folders, `.onnx` and `.engine` files; they take the same inputs.
        runs: How they are run.

    Raises:
        UsageError: There is no target, one is of no kind that can be measured, or shapes are missing.
        ModelError: A model cannot be used, or takes other inputs than the first.
        DataError: The data does not fit.
        ArtifactError, MissingDependency: Nothing can be measured; a build folder is not what was built.
    """
    if not targets:
        raise UsageError("there is nothing to measure; give a build folder, an .engine or an .onnx file")
    found = _Found()
    for target in targets:
        prefix = f"{target.name} " if len(targets) > 1 else ""
        if target.is_dir():
            _add_folder(found, target, prefix, runs)
        elif not target.is_file():
            raise UsageError(f"there is no file or folder {target}")
        elif target.suffix in (".engine", ".plan"):
            _add_engine(found, target, prefix, runs)
        elif target.suffix == ".onnx":
            _add_model(found, target, runs)
        else:
            raise UsageError(f"{target} is no build folder, .engine or .onnx file")
    if not found.runnables:
        raise found.errors[0] if found.errors else UsageError(f"{targets[0]} holds nothing to measure")
    inputs = Inputs(None, "ones", 1) if found.graph is None else _inputs(found.graph, found, runs)
    return _named(found.runnables), tuple(found.skipped), inputs


def _add_folder(found: _Found, folder: Path, prefix: str, runs: Runs) -> None:
    manifest = read_intact_manifest(folder)
    report = read_report(folder / REPORT)
    models = list(_models(found, folder, prefix, manifest, report))
    if models:
        _take_graph(found, models[0][1], _spec_of(report, manifest))
    found.opt.update({name: profile.opt for name, profile in report.engine.profiles.items()})
    for precision, path in models:
        for device in _devices(runs):
            request = Request("onnx", path.resolve(), device, runs.num_threads)
            high = report.high_precision if precision not in ("fp32", "fp16") else ""
            found.add(Runnable(f"{prefix}{precision}", precision, device, request, high))
    if ENGINE in manifest.outputs:
        _add_built(found, folder, f"{prefix}{report.precision} engine", runs)


def _models(
    found: _Found, folder: Path, prefix: str, manifest: Manifest, report: Report
) -> Iterator[tuple[str, Path]]:
    """Yields the models of a build by their precision; the float model lies where the build found it."""
    source = Path(report.model)
    if FLOAT in manifest.outputs:
        yield "fp32", folder / FLOAT
    elif report.high_precision == "as it is":
        pass  # it was quantized when it came
    elif source.is_file() and hash_file(source) == manifest.inputs.get(report.model):
        yield "fp32", source
    else:
        reason = f"{source} is not here any more, or was changed; give it as a target too"
        found.skipped.append(Skipped(f"{prefix}fp32", reason))
    for name in dict.fromkeys(("fp16", report.precision)):
        if f"model.{name}.onnx" in manifest.outputs:
            yield name, folder / f"model.{name}.onnx"


def _add_engine(found: _Found, path: Path, prefix: str, runs: Runs) -> None:
    """Adds an engine by its file: as its build says, if it lies in one; else as whatever loads it."""
    if path.name == ENGINE and (path.parent / NAME).is_file():
        _add_built(found, path.parent, f"{prefix}engine", runs)
        return
    try:
        _refuse_without_gpu(path)
    except MissingDependency as error:
        found.skip(f"{prefix}engine", error)
        return
    request = Request("plan", path.resolve(), "cuda", 0, tuple(MODULES.values()), runs.graph)
    found.add(Runnable(f"{prefix}engine", "engine", "cuda", request))


def _add_built(found: _Found, folder: Path, name: str, runs: Runs) -> None:
    """Adds the engine of a build folder, if it fits this machine and is the one that was built."""
    try:
        _refuse_without_gpu(folder / ENGINE)
        engine = load_engine(folder)
    except (ArtifactError, MissingDependency) as error:
        found.skip(name, error)
        return
    modules, report = (MODULES[engine.backend.name],), engine.report
    path = (folder / ENGINE).resolve()
    request = Request("plan", path, "cuda", 0, modules, runs.graph, engine.sha256)
    found.add(Runnable(name, report.precision, "cuda", request, report.high_precision))


def _add_model(found: _Found, path: Path, runs: Runs) -> None:
    graph = _take_graph(found, path, find_spec(path))
    for device in _devices(runs):
        request = Request("onnx", path.resolve(), device, runs.num_threads)
        found.add(Runnable(path.name, _precision(graph.model), device, request))


def _take_graph(found: _Found, path: Path, spec: ModelSpec) -> Graph:
    """Returns a model's graph; the first one's inputs and settings are those of all."""
    graph = load(path, min_opset=1)
    if found.graph is None:
        found.graph, found.spec = graph, spec
        found.opt = {**{name: item.opt for name, item in spec.inputs.items()}, **found.opt}
    ours, theirs = ([(item.name, item.dtype) for item in each.inputs] for each in (found.graph, graph))
    if sorted(ours) != sorted(theirs):
        raise ModelError(
            f"{path} takes {_show(graph.inputs)}, {found.graph.path} takes {_show(found.graph.inputs)}; "
            f"measure them apart"
        )
    return graph


def _refuse_without_gpu(path: Path) -> None:
    count = count_gpus()
    if not count:
        why = "there is no NVIDIA driver here" if count is None else "the NVIDIA driver here shows none"
        raise MissingDependency(f"{path} needs an NVIDIA GPU to run, and {why}")


def _devices(runs: Runs) -> list[str]:
    if runs.device != "auto":
        list_providers(runs.device)  # told now, not by every model
        return [runs.device]
    onnxruntime = lazy.require("onnxruntime", None, "running the model")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(count_gpus())
    return ["cpu", *(["cuda"] if has_cuda else [])]


def _named(runnables: Sequence[Runnable]) -> tuple[Runnable, ...]:
    """Returns them with names of their own: with the device where there are several, else with a number."""
    devices = {item.device for item in runnables if item.request.kind == "onnx"}
    seen: dict[str, int] = {}
    named = []
    for item in runnables:
        is_on_gpu = len(devices) > 1 and item.request.kind == "onnx" and item.device == "cuda"
        name = f"{item.name} cuda" if is_on_gpu else item.name
        seen[name] = seen.get(name, 0) + 1
        named.append(replace(item, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return tuple(named)


def _precision(model: ir.Model) -> str:
    """Returns "quantized" for a model with Q/DQ, else the float type of most of its weights."""
    if is_quantized(model):
        return "quantized"
    sizes = {ir.DataType.FLOAT: 0, ir.DataType.FLOAT16: 0}
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in sizes:
            sizes[value.const_value.dtype] += value.const_value.size
    return "fp16" if sizes[ir.DataType.FLOAT16] > sizes[ir.DataType.FLOAT] else "fp32"


def _spec_of(report: Report, manifest: Manifest) -> ModelSpec:
    """Returns the settings beside the float model; the data is that of the build, if they name none."""
    spec = find_spec(Path(report.model))
    known = manifest.settings.get("model")
    calibration = known.get("calibration") if isinstance(known, dict) else None
    data = calibration.get("data") if isinstance(calibration, dict) else None
    if spec.calibration.data is None and isinstance(data, str):
        return replace(spec, calibration=replace(spec.calibration, data=data))
    return spec


def _inputs(graph: Graph, found: _Found, runs: Runs) -> Inputs:
    """Returns the first samples of the data; without data, or with shapes that were given, random numbers."""
    data = runs.data or found.spec.calibration.data
    if runs.data is not None and runs.shapes:
        raise UsageError("--data has its own shapes; leave --shapes out")
    if data is not None and not runs.shapes and (runs.data is not None or Path(data).exists()):
        first = next((found.opt[item.name][0] for item in graph.inputs if found.opt.get(item.name)), 1)
        calibration = replace(found.spec.calibration, data=data, batch_size=runs.batch or first or 1)
        spec = replace(found.spec, calibration=calibration)
        feed = next(iter(open_calibration_data(graph, spec, Target(), random_data=False)))
        arrays = {item.name: feed.arrays[item.name] for item in graph.inputs}
        return Inputs(arrays, f"the first {feed.num_samples} samples of {data}", feed.num_samples)
    shapes = {item.name: _shape(item, found.opt.get(item.name), runs) for item in graph.inputs}
    if unknown := [name for name in runs.shapes if name not in shapes]:
        raise UsageError(f"shapes are given for {unknown[0]!r}, but the inputs are {', '.join(shapes)}")
    feed = next(iter(make_random_batches(graph.inputs, shapes, 1)))
    return Inputs(feed.arrays, "random numbers", feed.num_samples)


def _shape(item: TensorSpec, usual: Shape | None, runs: Runs) -> Shape:
    shape = runs.shapes.get(item.name)
    if shape is None:
        known = usual if usual is not None and len(usual) == len(item.shape) else item.shape
        batch = runs.batch or (usual[0] if usual else 1)
        is_open = bool(item.shape) and not isinstance(item.shape[0], int)
        known = (batch, *known[1:]) if is_open else known
        if not all(isinstance(dim, int) for dim in known):
            raise UsageError(
                f"input {item.name!r} is dynamic, {show_shape(item.shape)}; give --shapes {item.name}:..., "
                f"or --data with samples for it"
            )
        shape = tuple(int(dim) for dim in known if isinstance(dim, int))
    if not item.fits(shape):
        raise UsageError(
            f"shape {show_shape(shape)} does not fit input {item.name!r}, which is {show_shape(item.shape)}"
        )
    return shape


def _show(inputs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{item.name} {item.dtype}" for item in inputs)
