"""From a PyTorch module to an ONNX file that `trtq build` takes, with the settings that are known of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtq.errors import ArtifactError, DataError, UsageError
from trtq.files import write_atomically
from trtq.models.checkpoint import load_weights
from trtq.models.export import check_parity, evaluating, to_onnx
from trtq.models.families import FAMILIES
from trtq.models.inputs import ModuleInput
from trtq.models.session import save
from trtq.models.spec import InputSpec, ModelSpec
from trtq.models.target import LoadedModule, importable_here, load_module
from trtq.models.toml import format_spec
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.watch import Silent, Watcher

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 18
_NUM_RANDOM = 3


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a module is exported.

    Attributes:
        inputs: What it takes; empty: what its source tells.
        sizes: Of open dims in the example, by name.
        weights: A checkpoint to load into it.
        trust: Whether pickles may be loaded, which runs the code in them.
        pretrained: Whether a library's own weights are wanted where no checkpoint is given.
        opset: The version of ONNX's operators.
        data: An .npz with further inputs to compare on.
        family: A name of `trtq.models.families.FAMILIES`, for the settings; None: what the source tells.
    """

    inputs: tuple[ModuleInput, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    weights: Path | None = None
    trust: bool = False
    pretrained: bool = True
    opset: int = DEFAULT_OPSET
    data: Path | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.family is not None and self.family not in FAMILIES:
            raise UsageError(f"there is no family {self.family!r}; take {', '.join(FAMILIES)}")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The ONNX file.
        settings: The `.toml` beside it; None if nothing was known, or if there was one.
        difference: The largest from PyTorch, relative to an output's range.
        num_compared: On how many inputs.
        num_nodes: In the file.
    """

    path: Path
    settings: Path | None
    difference: float
    num_compared: int
    num_nodes: int


def export(
    target: str, output: Path, *, options: ExportOptions | None = None, watcher: Watcher | None = None
) -> Exported:
    """Returns what was exported: an ONNX file that computes the same as the module, simplified.

    Constants and BatchNormalization are folded, and what nothing uses is dropped. PyTorch and ONNX Runtime
    are compared on random inputs, on another size of every open dim on axis 0, and on the data that is given;
    only a file that agrees is written. The settings that the module's family brings go to
    `<name>.toml` beside it.

    Args:
        target: As `trtq.models.target.load_module` takes it.
        output: The ONNX file to write.
        options: How.
        watcher: Is told of the progress.

    Raises:
        UsageError, ModelError, DataError: Something that was given cannot be used.
        GateError: The exported model computes something else.
        ArtifactError: A file cannot be written.
        MissingDependency: PyTorch, or the library that the target names, is not installed.
    """
    options, watcher = options or ExportOptions(), watcher or Silent()
    if not output.parent.is_dir():
        raise ArtifactError(f"cannot write {output}: there is no folder {output.parent}")
    with importable_here():
        watcher.stage("Loading")
        loaded = load_module(
            target, pretrained=options.pretrained and options.weights is None, trust=options.trust
        )
        if options.weights is not None:
            load_weights(loaded.module, options.weights, trust=options.trust)
        elif not loaded.holds_weights:
            watcher.note("no --weights were given: the module's own are exported")
        return _export(loaded, output, options, watcher)


def _export(loaded: LoadedModule, output: Path, options: ExportOptions, watcher: Watcher) -> Exported:
    inputs = options.inputs or loaded.inputs
    if not inputs:
        raise UsageError(
            "the inputs of this module are not known; give one --input NAME:DIMS:DTYPE for each, such as "
            "--input x:Nx3x224x224:float32"
        )
    watcher.stage("Exporting")
    open_axes = {item.name: item.open_axes for item in inputs}
    data, note = to_onnx(loaded.module, _tensors(inputs, options.sizes, 0), open_axes, opset=options.opset)
    if note:
        watcher.warn(note)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        raw, whole = Path(folder) / "raw.onnx", Path(folder) / output.name
        raw.write_bytes(data)
        graph = load(raw, min_opset=options.opset)
        for sentence in graph.notes:
            watcher.note(sentence)
        save(graph.model, whole)
        feeds = [*_random_feeds(inputs, options.sizes), *_given_feeds(options.data, inputs)]
        watcher.stage("Comparing", len(feeds))
        difference = _compare(loaded.module, whole, feeds, watcher)
        for part in sorted(
            Path(folder).glob(f"{output.name}*"), reverse=True
        ):  # the weights before the graph
            part.replace(output.parent / part.name)
    spec = loaded.spec if options.family is None else FAMILIES[options.family]()
    settings = _write_settings(replace(spec, inputs=_fitting(spec, graph)), output, watcher)
    return Exported(output, settings, difference, len(feeds), len(graph.model.graph))


def _fitting(spec: ModelSpec, graph: Graph) -> dict[str, InputSpec]:
    """Returns the profiles that the exported model can have."""
    open_inputs = {item.name: item for item in graph.inputs if item.is_dynamic}
    return {
        name: profile
        for name, profile in spec.inputs.items()
        if name in open_inputs
        and all(open_inputs[name].fits(shape) for shape in (profile.min, profile.opt, profile.max))
    }


def _compare(
    module: torch.nn.Module, path: Path, feeds: Sequence[Sequence[torch.Tensor]], watcher: Watcher
) -> float:
    import torch

    worst = 0.0
    with evaluating(module), torch.no_grad():
        for feed in feeds:
            worst = max(worst, check_parity(module, path.read_bytes(), feed))
            watcher.advance(1)
    return worst


def _tensors(inputs: Sequence[ModuleInput], sizes: Mapping[str, int], seed: int) -> list[torch.Tensor]:
    import torch

    return [torch.from_numpy(item.example(sizes, seed + index)) for index, item in enumerate(inputs)]


def _random_feeds(inputs: Sequence[ModuleInput], sizes: Mapping[str, int]) -> list[list[torch.Tensor]]:
    """Returns random inputs; the last with one more of every open dim on axis 0."""
    batches = {dim for item in inputs for axis, dim in item.open_axes.items() if axis == 0}
    larger = {**sizes, **{dim: sizes.get(dim, 2) + 1 for dim in batches}}
    feeds = [_tensors(inputs, sizes, 10 * seed) for seed in range(_NUM_RANDOM)]
    return [*feeds, _tensors(inputs, larger, 99)] if batches else feeds


def _given_feeds(path: Path | None, inputs: Sequence[ModuleInput]) -> list[list[torch.Tensor]]:
    """Returns the arrays of an .npz as one feed, batch included."""
    import torch

    if path is None:
        return []
    try:
        with np.load(path) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the inputs {path}: {error}") from error
    if missing := [item.name for item in inputs if item.name not in arrays]:
        raise DataError(f"{path} has no array {missing[0]!r}; it has {', '.join(arrays)}")
    return [[torch.from_numpy(arrays[item.name].astype(item.dtype)) for item in inputs]]


def _write_settings(spec: ModelSpec, output: Path, watcher: Watcher) -> Path | None:
    text, path = format_spec(spec), output.with_suffix(".toml")
    if not text:
        return None
    if path.exists():
        watcher.note(f"{path} stays as it is")
        return None
    write_atomically(path, text.encode())
    return path
