"""From a PyTorch module to an ONNX file that `trtq build` takes, with the settings that are known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtq.errors import DataError, ModelError, UsageError
from trtq.files import check_output, move_atomically, refuse_damage, write_atomically
from trtq.models.checkpoint import load_weights
from trtq.models.export import to_onnx
from trtq.models.families import FAMILIES, describe_family, list_batches
from trtq.models.generation import OTHER_SIZES, take_caches
from trtq.models.inputs import ModuleInput, check_sizes
from trtq.models.parity import check_parity, find_tolerance, run_outputs, set_to_eval
from trtq.models.session import save
from trtq.models.spec import InputSpec, ModelSpec
from trtq.models.target import TASKS, LoadedModule, import_from_here, load_module, sort_by_position
from trtq.models.toml import format_spec
from trtq.models.wrapped import to_float32
from trtq.pipeline.graph.load import Graph, load
from trtq.progress import Watcher, choose_watcher
from trtq.temporary import open_temporary_folder

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 18
_NUM_RANDOM = 3


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a module is exported.

    Attributes:
        inputs: What it takes; empty: what its source says.
        sizes: Of open dims in the example, by name.
        weights: A checkpoint to load into it.
        trust: Whether pickles may be loaded, which runs the code in them.
        pretrained: Whether a library's own weights are wanted where no checkpoint is given.
        opset: The version of ONNX's operators.
        data: An .npz with further inputs to compare on.
        task: Of `trtq.models.target.TASKS`: a language model with its cache; None: a model without one.
        family: A name of `trtq.models.families.FAMILIES`, for the settings; None: what the source says.
    """

    inputs: tuple[ModuleInput, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    weights: str | Path | None = None
    trust: bool = False
    pretrained: bool = True
    opset: int = DEFAULT_OPSET
    data: str | Path | None = None
    family: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if self.task not in (None, *TASKS):
            raise UsageError(f"there is no task {self.task!r}; use {', '.join(TASKS)}")
        if self.family is not None and self.family not in FAMILIES:
            raise UsageError(f"there is no family {self.family!r}; use {', '.join(FAMILIES)}")
        names = [item.name for item in self.inputs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(
                f"input {twice[0]!r} is given twice; give each input of the module once, in its order"
            )


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What was written.

    Attributes:
        path: The ONNX file.
        settings: The `.toml` beside the ONNX file; None if nothing was known, or if there was one.
        difference: The largest from PyTorch, relative to an output's range, on `num_compared` inputs.
        num_nodes: Of the graph.
    """

    path: Path
    settings: Path | None
    difference: float
    num_compared: int
    num_nodes: int


def export(
    target: str, output: str | Path, *, options: ExportOptions | None = None, watcher: Watcher | None = None
) -> ExportedFile:
    """Returns what was exported: an ONNX file that computes the same as the module, simplified.

    Constants and BatchNormalization are folded, and what nothing uses is dropped. PyTorch and ONNX Runtime
    are compared on random inputs, on other sizes of the open dims, and on the data that is given; only a file
    that agrees is written. The settings that the module's family brings go to
    `<name>.toml` beside it.

    Args:
        target: As `trtq.models.target.load_module` takes it.
        output: The ONNX file to write.
        options: How.
        watcher: Receives the progress.

    Raises:
        UsageError, ModelError, DataError: An argument cannot be used.
        GateError: The exported model computes something else.
        ArtifactError: A file cannot be written.
        MissingDependency: PyTorch, or the library that the target names, is not installed.
    """
    options, watcher, output = options or ExportOptions(), choose_watcher(watcher), Path(output)
    check_output(output, target, options.weights, options.data)
    with import_from_here():
        watcher.stage("Loading")
        loaded = load_module(
            target,
            pretrained=options.pretrained and options.weights is None,
            trust=options.trust,
            task=options.task,
        )
        if options.weights is not None:
            for sentence in load_weights(loaded.module, Path(options.weights), trust=options.trust):
                watcher.note(sentence)
        elif not loaded.holds_weights:
            watcher.note("no --weights were given: the module has those that it was made with")
        return _export(loaded, output, options, watcher)


def _export(loaded: LoadedModule, output: Path, options: ExportOptions, watcher: Watcher) -> ExportedFile:
    inputs = options.inputs or loaded.inputs
    if not inputs:
        raise UsageError(
            "the inputs of this module are not known; give one --input NAME:DIMS:DTYPE for each, such as "
            "--input x:Nx3x224x224:float32"
        )
    check_sizes(options.sizes, inputs)
    inputs, others = to_float32(loaded.module, inputs)
    if others:
        watcher.note(f"the module has {' and '.join(others)}; it is exported in float32, with float32 inputs")
    sizes = {**_usual_sizes(inputs, loaded.spec), **options.sizes}
    names = [item.name for item in inputs]
    module = sort_by_position(loaded.module, names) if loaded.takes_names else loaded.module
    if loaded.caches is not None:
        module = take_caches(module)
    watcher.stage("Exporting")
    example = _tensors(inputs, sizes, 0)
    with set_to_eval(module):
        run_outputs(module, example)  # what the module itself says is clearer than what the exporter says
    open_axes = {item.name: item.open_axes for item in inputs}
    outputs = None if loaded.caches is None else loaded.caches.outputs
    model, note = to_onnx(module, example, open_axes, opset=options.opset, output_names=outputs)
    if note:
        watcher.warn(note)
    tolerance, lower = find_tolerance(model)
    if lower:
        watcher.warn(
            f"the module computes in {lower} inside (autocast?): differences of up to {tolerance:g} of an "
            f"output's range are taken for its rounding"
        )
    with open_temporary_folder(output) as exported, open_temporary_folder(output) as folder:
        raw, whole = exported / output.name, folder / output.name
        save(model, raw)
        graph = load(raw, min_opset=options.opset)
        for sentence in graph.notes:
            watcher.note(sentence)
        save(graph.model, whole)
        feeds = [*_random_feeds(module, inputs, sizes), *_given_feeds(options.data, inputs)]
        if loaded.caches is not None:
            feeds += [_tensors(inputs, {**sizes, **other}, 50) for other in OTHER_SIZES]
        watcher.stage("Comparing", len(feeds))
        difference = 0.0
        with set_to_eval(module):
            for feed in feeds:
                difference = max(difference, check_parity(module, whole, feed, tolerance=tolerance))
                watcher.advance(1)
        move_atomically(folder, output.parent)
    spec = loaded.spec if options.family is None else describe_family(options.family, inputs)
    spec = replace(spec, inputs=_profiles(spec, graph))
    if loaded.unknown:
        watcher.warn(f"{loaded.unknown}; set them in {output.with_suffix('.toml')}")
    settings = _write_settings(spec, output, watcher)
    return ExportedFile(output, settings, difference, len(feeds), len(graph.model.graph))


def _usual_sizes(inputs: Sequence[ModuleInput], spec: ModelSpec) -> dict[str, int]:
    """Returns the sizes of open dims that the settings call usual: a short text may be all a model takes."""
    return {
        dim: spec.inputs[item.name].opt[axis]
        for item in inputs
        if item.name in spec.inputs and len(spec.inputs[item.name].opt) == len(item.dims)
        for axis, dim in item.open_axes.items()
        if axis and spec.inputs[item.name].opt[axis] and "+" not in dim  # not empty, and no sum of others
    }


def _profiles(spec: ModelSpec, graph: Graph) -> dict[str, InputSpec]:
    """Returns the profiles of the open inputs: by name, else one that fits, else with an open batch alone.

    Of other open dims nothing is known; a build takes them from the data.
    """
    found: dict[str, InputSpec] = {}
    for item in graph.inputs:
        known = sorted(spec.inputs, key=lambda name: name != item.name)
        profiles = [spec.inputs[name] for name in known]
        fitting = [each for each in profiles if all(map(item.fits, (each.min, each.opt, each.max)))]
        rest = [dim for dim in item.shape[1:] if isinstance(dim, int)]
        if item.is_dynamic and fitting:
            found[item.name] = fitting[0]
        elif item.is_dynamic and len(rest) == len(item.shape) - 1:
            found[item.name] = list_batches(tuple(rest))
    return found


def _tensors(inputs: Sequence[ModuleInput], sizes: Mapping[str, int], seed: int) -> list[torch.Tensor]:
    import torch

    return [torch.from_numpy(item.example(sizes, seed + index)) for index, item in enumerate(inputs)]


def _random_feeds(
    module: torch.nn.Module, inputs: Sequence[ModuleInput], sizes: Mapping[str, int]
) -> list[list[torch.Tensor]]:
    """Returns random inputs; in the last, open dims are larger on axis 0, halved elsewhere if possible."""
    feeds = [_tensors(inputs, sizes, 10 * seed) for seed in range(_NUM_RANDOM)]
    shapes = {dim: (axis, item.shape(sizes)[axis]) for item in inputs for axis, dim in item.open_axes.items()}
    if not shapes:
        return feeds
    larger = {dim: size + 1 for dim, (axis, size) in shapes.items() if axis == 0}
    smaller = {dim: -(-size // 2) for dim, (axis, size) in shapes.items() if dim not in larger}
    other = _tensors(inputs, {**larger, **smaller}, 99)
    try:
        with set_to_eval(module):
            run_outputs(module, other)
    except ModelError:
        other = _tensors(inputs, {**sizes, **larger}, 99)
    return [*feeds, other]


def _given_feeds(path: str | Path | None, inputs: Sequence[ModuleInput]) -> list[list[torch.Tensor]]:
    """Returns the arrays of an .npz as one feed, batch included."""
    import torch

    if path is None:
        return []
    with refuse_damage(DataError, f"cannot read the inputs {path}"), np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    if missing := [item.name for item in inputs if item.name not in arrays]:
        raise DataError(f"{path} has no array {missing[0]!r}; it has {', '.join(arrays)}")
    for item in inputs:
        shape = arrays[item.name].shape
        if not item.fits(shape):
            raise DataError(f"array {item.name!r} of {path} has shape {shape}, the input is {item}")
    return [[torch.from_numpy(arrays[item.name].astype(item.dtype)) for item in inputs]]


def _write_settings(spec: ModelSpec, output: Path, watcher: Watcher) -> Path | None:
    text, path = format_spec(spec), output.with_suffix(".toml")
    if text and path.exists():
        watcher.note(f"{path} stays as it is")
    elif text:
        write_atomically(path, text.encode())
        return path
    return None
