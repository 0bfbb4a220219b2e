"""What `trtq bench` puts beside each other: the models and engines of its targets, and the inputs for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.sources import make_random_batches
from trtq.errors import ArtifactError, DataError, MissingDependency, TrtqError, UsageError
from trtq.files import hash_file
from trtq.models.session import list_providers
from trtq.models.signature import TensorSpec, require_same_inputs, show_shape
from trtq.models.spec import Data, ModelSpec, find_path
from trtq.numbers import format_count
from trtq.pipeline.bench.process import Request
from trtq.pipeline.calibrate.data import find_spec, open_calibration_data
from trtq.pipeline.deliver.integrity import read_intact_manifest
from trtq.pipeline.deliver.manifest import NAME, Manifest
from trtq.pipeline.deliver.names import ENGINE, ENGINE_SUFFIXES, FLOAT, REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.gpu import count_gpus, explain_missing_gpu
from trtq.pipeline.engine.plan_run import MODULES
from trtq.pipeline.engine.profiles import Shape
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.load import load as load_engine
from trtq.progress import Watcher, choose_watcher

Device = Literal["auto", "cpu", "cuda"]
ENGINE_OF_UNKNOWN = "engine"
"""The precision of an engine without its build."""


@dataclass(frozen=True, slots=True)
class RunOptions:
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
    """A model or engine on a device, "cpu" or "cuda".

    Its precision is "fp32", "fp16", "int8", "int4-weights" and so on; of a build for TensorRT, what is not
    quantized computes in `high_precision`. `source` is the SHA-256 of the model that it was built from, or of
    itself if it is float; empty where that is not known.
    """

    name: str
    precision: str
    device: str
    request: Request
    high_precision: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not measured, and why; its precision, "engine" for an engine of none that is known.

    `source` is as of `Runnable`.
    """

    name: str
    reason: str
    precision: str = ""
    is_engine: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What everything is run on: arrays by name, or None where an engine makes them up; and their origin."""

    feed: Mapping[str, NDArray[Any]] | None
    origin: str
    num_samples: int


def list_runnables(
    targets: Sequence[Path], options: RunOptions, watcher: Watcher | None = None
) -> tuple[tuple[Runnable, ...], tuple[Skipped, ...], Inputs]:
    """Returns what of build folders, `.onnx` and `.engine` files can be measured, what not, and the inputs.

    Raises:
        UsageError: There is no target, one cannot be measured, or shapes are missing.
        ModelError: A model cannot be used, or takes other inputs than the first.
        DataError: The data does not fit.
        ArtifactError, MissingDependency: Nothing can be measured; a build folder is not what was built.
    """
    if not targets:
        raise UsageError("there is nothing to measure; give a build folder, an .engine or an .onnx file")
    collector = _Collector(options)
    for target in targets:
        collector.add(target, f"{target.name} " if len(targets) > 1 else "")
    if not collector.runnables:
        none = UsageError(f"{targets[0]} has nothing to measure")
        raise next(iter(collector.errors), none)
    return _named(collector.runnables), tuple(collector.skipped), collector.inputs(choose_watcher(watcher))


class _Collector:
    """Collects what can run: graph and settings are of the first ONNX file, shapes of engines' profiles."""

    def __init__(self, options: RunOptions) -> None:
        self.runnables: list[Runnable] = []
        self.skipped: list[Skipped] = []
        self.errors: list[TrtqError] = []
        self._options = options
        self._graph: Graph | None = None
        self._spec = ModelSpec()
        self._opt: dict[str, Shape] = {}

    def add(self, target: Path, prefix: str) -> None:
        """Adds what a target has; `prefix` begins the names."""
        if target.is_dir():
            self._add_folder(target, prefix)
        elif not target.is_file():
            raise UsageError(f"there is no file or folder {target}")
        elif target.suffix in ENGINE_SUFFIXES:
            self._add_engine(target, f"{prefix}engine")
        elif target.suffix == ".onnx":
            precision = _precision(self._take_graph(target, find_spec(target, trust=True)).model)
            self._add_model(target.name, precision, target, source=_find_source(target, precision))
        else:
            raise UsageError(f"{target} is not a build folder, an .engine or an .onnx file")

    def inputs(self, watcher: Watcher) -> Inputs:
        """Returns the first samples of the data; random numbers without data, or where shapes are given."""
        options, graph = self._options, self._graph
        if graph is None:
            self._refuse_unused()
            return Inputs(None, "ones", 1)
        data = options.data or self._spec.calibration.data
        self._refuse_fixed(graph.inputs)
        if options.data is not None and options.shapes:
            raise UsageError("--data has its own shapes; leave --shapes out")
        if data is not None and not options.shapes and (options.data is not None or _is_here(data)):
            first = next((self._opt[item.name][0] for item in graph.inputs if self._opt.get(item.name)), 1)
            calibration = replace(self._spec.calibration, data=data, batch_size=options.batch or first or 1)
            spec = replace(self._spec, calibration=calibration)
            batches = open_calibration_data(graph, spec, Target(), random_data=False)
            tell_of_pictures(graph.model, watcher, batches)
            feed = next(iter(batches))
            if options.batch is not None and feed.num_samples < options.batch:
                raise DataError(
                    f"--batch {options.batch} is more than the {format_count(feed.num_samples, 'sample')} of "
                    f"{data}; give --data with more, or --shapes for random numbers"
                )
            arrays = {item.name: feed.arrays[item.name] for item in graph.inputs}
            return Inputs(
                arrays, f"the first {format_count(feed.num_samples, 'sample')} of {data}", feed.num_samples
            )
        shapes = {item.name: self._shape(item) for item in graph.inputs}
        if unknown := [name for name in options.shapes if name not in shapes]:
            raise UsageError(f"shapes are given for {unknown[0]!r}, but the inputs are {', '.join(shapes)}")
        feed = next(iter(make_random_batches(graph.inputs, shapes, 1)))
        return Inputs(feed.arrays, "random numbers", feed.num_samples)

    def _refuse_fixed(self, inputs: Sequence[TensorSpec]) -> None:
        """Refuses a batch of another size than that of a model in which it is fixed."""
        batch = self._options.batch
        fixed = [item for item in inputs if item.shape and isinstance(item.shape[0], int)]
        is_open = any(item.shape and not isinstance(item.shape[0], int) for item in inputs)
        if batch is not None and not is_open and batch not in [item.shape[0] for item in fixed]:
            listed = ", ".join(f"{item.name!r} is {show_shape(item.shape)}" for item in fixed)
            raise UsageError(
                f"--batch {batch} cannot be: no first axis is dynamic; {listed or 'there is none'}"
            )

    def _refuse_unused(self) -> None:
        """Refuses inputs that are asked for where no model says what they are."""
        given = {
            "--batch": self._options.batch,
            "--shapes": self._options.shapes,
            "--data": self._options.data,
        }
        if unused := [name for name, value in given.items() if value]:
            raise UsageError(
                f"{unused[0]} has no effect with engines alone, which run at the usual shapes of their "
                "profiles; give the build folder, or an .onnx file too"
            )

    def _add_folder(self, folder: Path, prefix: str) -> None:
        manifest = read_intact_manifest(folder)
        report = read_report(folder / REPORT)
        models = list(self._models_of(folder, prefix, manifest, report))
        if models:
            self._take_graph(models[0][1], _spec_of(report, manifest))
        self._opt.update({name: profile.opt for name, profile in report.engine.profiles.items()})
        is_for_cpu = report.backend.startswith("onnxruntime")
        for precision, path in models:
            high = "" if precision in ("fp32", "fp16") or is_for_cpu else report.high_precision
            self._add_model(f"{prefix}{precision}", precision, path, high, _source_of(report, manifest))
        if ENGINE in manifest.outputs:
            source = _source_of(report, manifest)
            self._add_built(folder, f"{prefix}{report.precision} engine", report.precision, source)

    def _models_of(
        self, folder: Path, prefix: str, manifest: Manifest, report: Report
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
            reason = f"{source} is gone or was changed since the build; give it as a target too"
            self.skipped.append(Skipped(f"{prefix}fp32", reason))
        for name in dict.fromkeys(("fp16", report.precision)):
            if f"model.{name}.onnx" in manifest.outputs:
                yield name, folder / f"model.{name}.onnx"

    def _add_engine(self, path: Path, name: str) -> None:
        """Adds an engine by its file: as its build says, if it lies in one; else as whatever loads it."""
        if path.name == ENGINE and (path.parent / NAME).is_file():
            self._add_built(path.parent, name, ENGINE_OF_UNKNOWN, "")
        elif self._can_run(path, name, ENGINE_OF_UNKNOWN):
            modules = tuple(MODULES.values())
            request = Request("plan", path.resolve(), "cuda", 0, modules, self._options.graph)
            self._add(Runnable(name, ENGINE_OF_UNKNOWN, "cuda", request))

    def _add_built(self, folder: Path, name: str, precision: str, source: str) -> None:
        """Adds the engine of a build folder, if it fits this machine and is the one that was built."""
        path = folder / ENGINE
        if not self._can_run(path, name, precision, source):
            return
        try:
            engine = load_engine(folder)
        except (ArtifactError, MissingDependency) as error:
            self._skip(Skipped(name, str(error), precision, is_engine=True, source=source), error)
            return
        modules, report = (MODULES[engine.backend.name],), engine.report
        request = Request("plan", path.resolve(), "cuda", 0, modules, self._options.graph, engine.sha256)
        source = _source_of(report, engine.manifest)
        self._add(Runnable(name, report.precision, "cuda", request, report.high_precision, source))

    def _add_model(
        self, name: str, precision: str, path: Path, high_precision: str = "", source: str = ""
    ) -> None:
        for device in _devices(self._options.device):
            request = Request("onnx", path.resolve(), device, self._options.num_threads)
            self._add(Runnable(name, precision, device, request, high_precision, source))

    def _add(self, item: Runnable) -> None:
        """Adds it, unless its file, such as the float model of two builds, is there already."""
        if item.request not in [other.request for other in self.runnables]:
            self.runnables.append(item)

    def _skip(self, item: Skipped, error: TrtqError) -> None:
        self.skipped.append(item)
        self.errors.append(error)

    def _can_run(self, path: Path, name: str, precision: str, source: str = "") -> bool:
        """Returns whether there is a GPU for an engine; skips the engine if not."""
        if missing := explain_missing_gpu():
            error = MissingDependency(f"{path} needs an NVIDIA GPU to run, and {missing} here")
            self._skip(Skipped(name, str(error), precision, is_engine=True, source=source), error)
        return not missing

    def _take_graph(self, path: Path, spec: ModelSpec) -> Graph:
        """Returns a model's graph; the first one's inputs and settings are those of all."""
        graph = load(path, min_opset=1)
        if self._graph is None:
            self._graph, self._spec = graph, spec
            self._opt = {**{name: item.opt for name, item in spec.inputs.items()}, **self._opt}
        require_same_inputs(str(self._graph.path), self._graph.inputs, str(path), graph.inputs)
        return graph

    def _shape(self, item: TensorSpec) -> Shape:
        """Returns the shape of an input: as given, else as usual, else as the model has it."""
        shape, usual = self._options.shapes.get(item.name), self._opt.get(item.name)
        wanted, batch = show_shape(item.shape), self._options.batch
        is_open = bool(item.shape) and not isinstance(item.shape[0], int)
        if shape is None:
            known = usual if usual is not None and len(usual) == len(item.shape) else item.shape
            if is_open:
                known = (batch or (usual[0] if usual else 1), *known[1:])
            shape = tuple(dim for dim in known if isinstance(dim, int))
            if len(shape) < len(known):
                raise UsageError(
                    f"input {item.name!r} is dynamic, {wanted}; give --shapes {item.name}:..., or --data "
                    f"with samples for it"
                )
        if is_open and batch is not None and shape[:1] != (batch,):
            raise UsageError(
                f"--batch {batch} and the shape {show_shape(shape)} of {item.name!r} contradict each other; "
                f"give one of them"
            )
        if not item.fits(shape):
            raise UsageError(f"shape {show_shape(shape)} does not fit input {item.name!r}, which is {wanted}")
        return shape


def _devices(device: Device) -> list[str]:
    if device != "auto":
        list_providers(device)  # refused here once, not by every model
        return [device]
    onnxruntime = lazy.require("onnxruntime", None, "running the model")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(count_gpus())
    return ["cpu", *(["cuda"] if has_cuda else [])]


def _named(runnables: Sequence[Runnable]) -> tuple[Runnable, ...]:
    """Returns them with names of their own: with the device where there are several, else with a number."""
    devices = {item.device for item in runnables if item.request.kind == "onnx"}
    seen = Counter[str]()
    named = []
    for item in runnables:
        is_on_gpu = len(devices) > 1 and item.request.kind == "onnx" and item.device == "cuda"
        name = f"{item.name} cuda" if is_on_gpu else item.name
        seen[name] += 1
        named.append(replace(item, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return tuple(named)


def _precision(model: ir.Model) -> str:
    """Returns "quantized" for a model with Q/DQ, else the float type of most of its weights."""
    if is_quantized(model):
        return "quantized"
    sizes = Counter[ir.DataType]()
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            sizes[value.const_value.dtype] += value.const_value.size
    return "fp16" if sizes[ir.DataType.FLOAT16] > sizes[ir.DataType.FLOAT] else "fp32"


def _find_source(path: Path, precision: str) -> str:
    """Returns the SHA-256 of the model behind a file: as its build says, if it lies in one."""
    if (path.parent / NAME).is_file():
        return _source_of(read_report(path.parent / REPORT), read_intact_manifest(path.parent))
    return hash_file(path) if precision == "fp32" else ""


def _source_of(report: Report, manifest: Manifest) -> str:
    """Returns the SHA-256 of the float model of a build; empty if it was quantized when it came."""
    return "" if report.high_precision == "as it is" else manifest.inputs.get(report.model, "")


def _is_here(data: Data) -> bool:
    """Returns whether data is read although nobody asked for it: from this machine."""
    path = find_path(data)
    return path is not None and Path(path).exists()


def _spec_of(report: Report, manifest: Manifest) -> ModelSpec:
    """Returns the settings beside the float model; the data is that of the build, if they name none."""
    spec = find_spec(Path(report.model), trust=True)  # only data in files is read here, see `inputs`
    known = manifest.settings.get("model")
    calibration = known.get("calibration") if isinstance(known, dict) else None
    data = calibration.get("data") if isinstance(calibration, dict) else None
    if spec.calibration.data is None and isinstance(data, str):
        return replace(spec, calibration=replace(spec.calibration, data=data))
    return spec
