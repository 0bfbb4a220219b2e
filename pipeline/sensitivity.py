"""How sensitive each layer is, measured in one session; a run that was ended goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trtq.calibrators import create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import describe
from trtq.calibrators.observe import Progress
from trtq.errors import ModelError
from trtq.files import write_atomically
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate import load_float
from trtq.pipeline.calibrate.data import (
    observe_graph,
    open_calibration_data,
    options_from_spec,
    place_layers,
    warn_of_dead,
)
from trtq.pipeline.calibrate.improve import improve_ranges
from trtq.pipeline.deliver.manifest import collect_versions, make_key
from trtq.pipeline.engine.strategy import choose_rest
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.evaluate import find_labels, open_evaluation_data
from trtq.pipeline.judge.macs import count_macs
from trtq.pipeline.judge.score import Labels, load_labels
from trtq.pipeline.judge.sensitivity import (
    LayerSensitivity,
    Sensitivity,
    measure,
    read_sensitivity,
    split_in_groups,
    to_json,
)
from trtq.pipeline.judge.switchable import Switchable, open_switchable
from trtq.progress import Silent, Watcher

_ALL, _ALONE, _WITHOUT = "all quantized", "alone: ", "without: "


def sensitivity(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    random_data: bool = False,
    watcher: Watcher | None = None,
) -> Sensitivity:
    """Returns what each layer that `build` would quantize costs: alone, and with all the others.

    Every few layers the result so far is written to `output`; the same call then goes on from there, or
    returns at once what is complete.

    Args:
        model: The float ONNX file.
        spec: What is known of the model; None: read from `<name>.toml` or `model.toml` beside it.
        target: Which types of nodes are quantized, and the precision of the rest: if that is "auto", FP32 for
            the backend "onnxruntime" and FP16 for others. The backend need not work here.
        output: The file to write; None: `<name>.sensitivity.json` beside the model.
        random_data: Take random numbers, to try it.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used, or no layer is quantized.
        ArtifactError: The file cannot be written, or is something else.
    """
    watcher = watcher or Silent()
    target = target or Target()
    graph, spec = load_float(Path(model), spec, watcher)
    path = Path(output or graph.path.with_suffix(".sensitivity.json"))
    placement = place_layers(graph, spec, target, watcher)
    if not placement.quantized:
        raise ModelError(f"{graph.path} has no layer that is quantized; `trtq inspect --placement` tells why")
    calibration = open_calibration_data(graph, spec, target, random_data=random_data)
    batches = open_evaluation_data(graph, spec, calibration)
    assert batches is not None
    tell_of_pictures(graph.model, watcher, calibration, batches)
    labels = load_labels(find_labels(spec.evaluation, spec.accuracy.metric))
    start = Sensitivity(
        model=str(graph.path),
        data=batches.origin,
        num_samples=0,
        num_layers=len(placement.quantized),
        metric=spec.accuracy.metric,
        key=_key(graph, spec, placement, (calibration, batches), target),
    )
    state = _earlier(path, start, watcher)
    if not state.is_complete:
        how = options_from_spec(spec.calibration)
        seen = observe_graph(graph, placement.activations, calibration, how, watcher)
        ranges = improve_ranges(graph, placement, seen, calibration, spec, watcher).ranges
        warn_of_dead(ranges, watcher)
        scale_dtype = "float16" if choose_rest(target) is FP16 else "float32"
        work = _Work(
            open_switchable(graph.model, placement, ranges, scale_dtype=scale_dtype),
            placement,
            count_macs(graph.model, next(iter(batches))),
            batches,
            labels,
        )
        state = _measure_rest(work, state, path, watcher)
    return state


@dataclass(frozen=True, slots=True)
class _Work:
    """What is measured, and on what."""

    session: Switchable
    placement: Placement
    macs: Mapping[str, int]
    batches: Batches
    labels: Labels | None


def _measure_rest(work: _Work, state: Sensitivity, path: Path, watcher: Watcher) -> Sensitivity:
    every = {*work.session.layers}
    op_types = {node.name: node.op_type for node in work.placement.quantized}
    done = {layer.name for layer in state.layers}
    rest = [name for name in work.session.layers if name not in done]
    num_samples = work.batches.num_samples
    watcher.stage("Measuring layers", None if num_samples is None else len(rest) * num_samples)
    for names in split_in_groups(rest, mixtures_each=2):
        mixtures = {_ALONE + name: {name} for name in names}
        mixtures |= {_WITHOUT + name: every - {name} for name in names}
        if state.all_quantized is None:
            mixtures[_ALL] = every
        share = len(names)
        found = measure(work.session, mixtures, work.batches, work.labels, _by_layers(watcher.advance, share))
        effects = found.effects
        layers = (
            LayerSensitivity(
                name, op_types[name], work.macs.get(name, 0), effects[_ALONE + name], effects[_WITHOUT + name]
            )
            for name in names
        )
        state = replace(
            state,
            num_samples=found.num_samples,
            total_macs=sum(work.macs.values()),
            float_score=found.float_score,
            all_quantized=effects.get(_ALL, state.all_quantized),
            layers=(*state.layers, *layers),
        )
        write_atomically(path, to_json(state))
    return state


def _by_layers(progress: Progress, num_layers: int) -> Progress:
    """Returns a progress that counts every sample once a layer."""
    return lambda num_samples: progress(num_samples * num_layers)


def _earlier(path: Path, start: Sensitivity, watcher: Watcher) -> Sensitivity:
    """Returns what an earlier call has measured of the same, else the start."""
    if not path.exists():
        return start
    found = read_sensitivity(path)  # refuses to write over anything else
    if not start.key:
        watcher.note(f"{path} is written anew: nobody can tell whether a script still does the same")
        return start
    if found.key != start.key:
        watcher.note(f"{path} is of another model, data or settings, and is written anew")
        return start
    watcher.note(
        f"{path} holds all {found.num_layers} layers: nothing has changed"
        if found.is_complete
        else f"goes on after {len(found.layers)} of {found.num_layers} layers of {path}"
    )
    return found


def _key(
    graph: Graph,
    spec: ModelSpec,
    placement: Placement,
    data: tuple[Batches, Batches],
    target: Target,
) -> str:
    """Returns a digest of all that the numbers depend on; empty where only running a script tells."""
    if not all(batches.digest for batches in data) or spec.accuracy.script is not None:
        return ""
    return make_key(
        collect_versions(),
        graph.sha256,
        [batches.digest for batches in data],
        (describe(create_method(spec.calibration)), spec.calibration.method, spec.quantization),
        [node.to_plain() for node in placement.quantized],
        spec.evaluation,
        spec.accuracy.metric,
        choose_rest(target).name,
    )
