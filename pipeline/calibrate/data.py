"""From a graph and data to ranges: the first half of a build, and a command of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.settings import read_spec
from trtq.calibrators.sources import ACCEPTED_DATA, make_random_batches, open_batches
from trtq.calibrators.statistics import MOST_SHARDS
from trtq.errors import DataError, UsageError
from trtq.files import is_file
from trtq.kept import KeptNode
from trtq.models.operators import use_operators
from trtq.models.option import setting
from trtq.models.spec import PER_TOKEN, CalibrationSpec, ModelSpec
from trtq.numbers import format_count
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.axes import explain_other
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.packed import REASON as PACKED
from trtq.pipeline.graph.packed import find_packed
from trtq.pipeline.graph.placement import Explain, Placement, QuantizedNode, find_unmatched, place
from trtq.pipeline.graph.tokens import explain_one_scale
from trtq.pipeline.graph.worth import explain_float
from trtq.progress import Watcher
from trtq.workers import Workers

_NUM_RANDOM_FEEDS = 16


@dataclass(frozen=True, slots=True)
class ObserveOptions:
    """How the pass over the calibration data is made.

    Attributes:
        device: Where the model runs: `cpu` or `cuda`.
        memory_bytes: What the observed tensors may take beside the model; None: half of what is free.
        shard: Which part of the data is observed, and of how many: (3, 8) is every 8th feed from the third,
            or every 8th of the files if there are as many.
        checkpoint: Save progress in this file; after an interruption the same command continues from it. At
            the end it holds the whole pass; delete it when you have the result.
        checkpoint_seconds: How often the checkpoint is written.
        watches_all: Whether the magnitudes of all tensors are wanted although none is observed.
        workers: Who observes the parts of the data; None: this process observes all of it.
    """

    device: str = "cpu"
    memory_bytes: int | None = None
    shard: tuple[int, int] = (1, 1)
    checkpoint: Path | None = setting(None)
    checkpoint_seconds: float = setting(60.0)
    watches_all: bool = False
    workers: Workers | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"the calibration device must be cpu or cuda, got {self.device!r}")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"a shard is a part and their number, such as 3/8, got {show_part(self.shard)}")
        if self.shard[1] > MOST_SHARDS:
            raise UsageError(f"data has at most {MOST_SHARDS:,} parts, got {show_part(self.shard)}")
        if self.workers is not None and self.shard[1] > 1:
            raise UsageError(
                f"shard {show_part(self.shard)} is one part of the data, and --workers share all parts; give "
                f"one of them"
            )
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise UsageError(f"the calibration memory must be at least 1 byte, got {self.memory_bytes}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise UsageError(
                f"the seconds between checkpoints must be a number, 0 or more, "
                f"got {self.checkpoint_seconds:g}"
            )


def show_part(shard: tuple[int, int]) -> str:
    """Returns a part of the data as people write it."""
    return f"{shard[0]}/{shard[1]}"


def find_spec(model: Path | str, *, trust: bool = False) -> ModelSpec:
    """Returns the settings beside a model, `<name>.toml` or `model.toml`; the defaults if there are none.

    Nobody has named this file, and it may have come with the model from elsewhere.

    Args:
        model: The ONNX file.
        trust: Whether the settings may name scripts; they may too where none is run.

    Raises:
        UsageError: They are wrong, or name a script.
    """
    found = find_settings_file(Path(model))
    spec = read_spec(found) if found is not None else ModelSpec()
    if not trust:
        refuse_scripts(spec, spec.scripts)
    return spec


def find_settings_file(model: Path) -> Path | None:
    """Returns the settings file beside a model: `<name>.toml`, else `model.toml`; None if there is none."""
    candidates = (model.parent / f"{model.stem}.toml", model.parent / "model.toml")
    return next((path for path in candidates if is_file(path)), None)


def take_settings(spec: ModelSpec, watcher: Watcher) -> None:
    """Says which settings file was read, and has the libraries loaded that the settings name.

    Raises:
        UsageError: There is no such library.
    """
    use_operators(spec.operators)
    if spec.file is not None:
        watcher.note(f"settings are read from {spec.file}")


def refuse_scripts(spec: ModelSpec, scripts: Mapping[str, str]) -> None:
    """Refuses scripts that settings found beside a model name: nobody asked for them to be run.

    Args:
        spec: The settings.
        scripts: Those of their scripts that would be run, by the keys that name them.

    Raises:
        UsageError: There is one.
    """
    for key, script in scripts.items():
        raise UsageError(
            f"{spec.file}, found beside the model, names the script {script} as {key}, and is not trusted to "
            f"run one; if you know where it comes from, add --trust or name the file with --spec (in Python: "
            f"spec=trtq.read_spec({spec.file!r}))"
        )


def open_calibration_data(graph: Graph, spec: ModelSpec, target: Target, *, random_data: bool) -> Batches:
    """Returns the stream that calibrates the model.

    Raises:
        DataError: None is named, or it does not fit.
    """
    if random_data:
        return make_random_batches(graph.inputs, find_shapes(spec, target), _NUM_RANDOM_FEEDS)
    if spec.calibration.data is None:
        raise DataError(
            f"{graph.path} cannot be calibrated without data; give --calib-data with {ACCEPTED_DATA}; or "
            f"name it in [calibration] of model.toml beside the model; or take --random-data to try a build"
        )
    batches = open_batches(
        spec.calibration.data,
        graph.inputs,
        spec.calibration.batch_size,
        preprocess=spec.preprocess,
        extra=(spec.evaluation.labels,) if spec.evaluation.labels else (),
    )
    return batches.first(spec.calibration.samples)


def find_shapes(spec: ModelSpec, target: Target) -> dict[str, Sequence[int]]:
    """Returns the usual shapes of inputs, where the settings or the target tell them."""
    whole = (item for profile in reversed(target.shapes.profiles) for item in profile.items())
    return {
        **{name: profile.opt for name, profile in whole},
        **{name: item.opt for name, item in spec.inputs.items()},
        **target.shapes.min,
        **target.shapes.max,
        **target.shapes.opt,
    }


def place_layers(
    graph: Graph,
    spec: ModelSpec,
    target: Target,
    watcher: Watcher,
    kept: Mapping[str, str] | None = None,
    backend: Backend | None = None,
    attention: Collection[str] | None = (),
    forms: Mapping[str, CodeFormat] | None = None,
    explain: Explain = explain_float,
) -> Placement:
    """Returns what will be quantized, and why the rest is not.

    Args:
        graph: The float model.
        spec: With the patterns of layers that are skipped, kept FP32 or forced.
        target: With the types of nodes to quantize, and the backend.
        watcher: Hears of patterns that match nothing, of weights of 7 bits, and of layers that have one scale
            although each row was to have one.
        kept: Further layers that stay float, with the reason.
        backend: What builds the engine; None: the one that the target names, if it names one.
        attention: The products of activations that INT8 was found to cost next to nothing, of the ranges;
            None: all for which it can be tried.
        forms: The number formats of layers that have another one than the target's.
        explain: What tells why a layer that could be quantized stays float.
    """
    patterns = (*spec.layers.skip, *spec.layers.keep_fp32)
    warn_of_unmatched(graph, (*patterns, *spec.layers.force), watcher)
    if backend is None and target.backend != "auto":
        from trtq.pipeline.engine.backends import BACKENDS  # late: who names no backend needs none

        backend = BACKENDS.get(target.backend)
    is_per_token = spec.quantization.activations == PER_TOKEN
    is_split = spec.quantization.weight_granularity == "per-channel"
    is_measured = {*target.code_formats} <= {INT8.name, FP8.name} and not is_per_token
    if backend is not None and backend.parts_packed_products and is_measured:
        explain = partial(_explain_packed, find_packed(graph.model.graph), explain)
    placement = place(
        graph.model,
        form=target.form or INT8,
        forms=forms or {},
        skip=patterns,
        op_types=target.op_types,
        force=spec.layers.force,
        kept=kept or {},
        by_matrix=is_split and backend is not None and backend.takes_scales_by_matrix,
        per_token=is_per_token,
        attention=attention if backend is None or backend.fuses_attention else (),
        explain=explain,
    )
    if is_per_token and target.form is not None:
        _tell_of_one_scale(graph, placement, watcher)
    placement = replace(placement, kept=(*placement.kept, *graph.unseen))
    if target.form is not None and (others := describe_others(graph.model, placement, target.form)):
        watcher.note(others)
    if placement.layers and backend is not None and backend.overflows():
        watcher.note(f"weights get 7 bits, since {backend.name} overflows with 8 on this processor")
        placement = placement.with_weights_of_7_bits()
    return placement if is_split else placement.with_one_scale()


def _explain_packed(
    packed: Collection[str],
    explain: Explain,
    node: ir.Node,
    weight: ir.Value,
    activation: ir.Value,
    axis: int | None,
) -> str:
    return PACKED if node.name in packed else explain(node, weight, activation, axis)


def describe_others(model: ir.Model, placement: Placement, form: CodeFormat) -> str:
    """Returns what to say of layers that have another format than was asked for, and why; empty if none."""
    others = {node.name: node for node in placement.layers if form not in node.scheme.formats}
    if not others or form.otherwise is None:
        return ""
    alike: dict[str, list[QuantizedNode]] = {}
    for node in model.graph:
        if node.name in others:
            alike.setdefault(explain_other(node), []).append(others[node.name])
    reasons = "; ".join(f"{name_layers(layers)} ({reason})" for reason, layers in alike.items())
    return f"{len(others)} of {len(placement.layers)} layers get {form.otherwise.name.upper()}: {reasons}"


def _tell_of_one_scale(graph: Graph, placement: Placement, watcher: Watcher) -> None:
    nodes = {str(node.name): node for node in graph.model.graph}
    alike: dict[str, list[QuantizedNode]] = {}
    for layer in placement.layers:
        if reason := explain_one_scale(nodes[layer.name], layer):
            alike.setdefault(reason, []).append(layer)
    for reason, layers in alike.items():
        named = name_layers(layers)
        watcher.note(f"one scale for the whole activation, from calibration: {named} ({reason})")


def need_no_ranges(graph: Graph, placement: Placement) -> Ranges | None:
    """Returns empty ranges where layers are quantized and no activation needs a range; else None."""
    if not placement.layers or placement.activations:
        return None
    return Ranges({}, "none", graph.sha256, "no data", 0, activations=PER_TOKEN)


def describe_given(placement: Placement) -> str:
    """Returns what to say of a model that comes with Q/DQ, and of which more layers are quantized."""
    given = f" ({name_layers(placement.given)})" if placement.given else ""
    return (
        f"the model comes with Q/DQ{given}, which keeps its scales; quantized beside it: "
        f"{name_layers(placement.quantized)}"
    )


def name_layers(nodes: Sequence[KeptNode] | Sequence[QuantizedNode]) -> str:
    """Returns the names of nodes, or those of the first and how many more there are."""
    more = f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""
    return ", ".join(repr(node.name) for node in nodes[:4]) + more


def warn_of_unmatched(graph: Graph, patterns: Sequence[str], watcher: Watcher) -> None:
    """Warns of patterns that match no node, with the names nearest to them."""
    for pattern, nearest in find_unmatched(graph.model, patterns):
        near = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        watcher.warn(f"{pattern!r} matches no node{near}")


def options_from_spec(spec: CalibrationSpec) -> ObserveOptions:
    """Returns how the pass over the data is made that the settings ask for.

    Raises:
        UsageError: There is no such device, or too little memory.
    """
    return ObserveOptions(spec.device, spec.memory_bytes)


def warn_of_dead(ranges: Ranges, watcher: Watcher) -> None:
    """Warns of tensors that were zero in every sample, and of inputs that never changed."""
    if dead := [name for name, item in ranges.tensors.items() if item.is_dead]:
        shown = ", ".join(dead[:3]) + (" ..." if len(dead) > 3 else "")
        was, get = ("was", "gets") if len(dead) == 1 else ("were", "get")
        count = format_count(len(dead), "tensor")
        watcher.warn(f"{count} {was} zero in every sample and {get} amax 1.0: {shown}")
    for name, item in ranges.tensors.items():
        if name in ranges.shapes and item.minimum == item.maximum != 0:
            watcher.warn(
                f"input {name!r} was {item.maximum:g} in every sample, and its range is made for that alone; "
                "give samples in which it is as in real use"
            )
