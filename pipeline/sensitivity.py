"""How sensitive each layer is, measured in one session; a run that was ended goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trtq.calibrators import create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import describe
from trtq.calibrators.ranges import Ranges, ranges_to_json, read_ranges
from trtq.errors import ArtifactError, ModelError
from trtq.files import resolve_name, write_atomically
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate import load_to_quantize
from trtq.pipeline.calibrate.between_codes import place_between_codes
from trtq.pipeline.calibrate.data import (
    open_calibration_data,
    options_from_spec,
    place_layers,
    refuse_scripts,
    warn_of_dead,
)
from trtq.pipeline.calibrate.improve import improve_ranges, list_channels
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.deliver.integrity import read_intact_manifest
from trtq.pipeline.deliver.manifest import collect_versions, make_key
from trtq.pipeline.deliver.names import RANGES
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.settings import read_settings
from trtq.pipeline.engine.strategy import choose_rest
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16, INT8, LAYER_FORMATS
from trtq.pipeline.graph.load import Graph, part_for_codes
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.evaluate import find_labels, open_evaluation_data
from trtq.pipeline.judge.macs import count_macs
from trtq.pipeline.judge.score import Labels, load_labels
from trtq.pipeline.judge.sensitivity import (
    LayerSensitivity,
    Sensitivity,
    count_at_a_time,
    measure_groups,
    read_sensitivity,
    split_in_groups,
    to_json,
)
from trtq.pipeline.judge.switchable import Switchable, open_switchable
from trtq.pipeline.judge.witness import check_against_file
from trtq.progress import Watcher, choose_watcher
from trtq.workers import Workers

_SAVE_SECONDS = 5.0
"""How often the result so far is written: after every group, the time would grow with the square of them."""
_ALL, _ALONE, _WITHOUT = "all quantized", "alone: ", "without: "


def sensitivity(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    random_data: bool = False,
    watcher: Watcher | None = None,
    workers: Workers | None = None,
) -> Sensitivity:
    """Returns what each layer that `build` would quantize costs: alone, and with all the others.

    Every few seconds the result so far is written to `output`; the same call then goes on from there, or
    returns at once what is complete.

    Args:
        model: The ONNX file; or a build folder, whose own layers, ranges, repairs and data are taken.
        spec: The model settings; None: read from `<name>.toml` or `model.toml` next to it, or the
            settings of the build.
        target: Which types of nodes are quantized, and the precision of the rest: if that is "auto", FP32 for
            the backend "onnxruntime" and FP16 for others. The backend need not work here. A build has its
            own.
        output: The file to write; None: `<name>.sensitivity.json` beside the model or the folder.
        random_data: Take random numbers, to try it.
        watcher: Receives the progress.
        workers: Who share the layers: `trtq.Processes` or `trtq.Ray`; None: this process measures all. With a
            metric of the user's own they share the data, and it is computed here.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used, or no layer is quantized.
        ArtifactError: The file cannot be written, or is something else; the build was changed, or is not one
            of INT8 with Q/DQ.
    """
    watcher, model = choose_watcher(watcher), Path(model)
    if model.is_dir():
        subject = _open_build(model, spec, watcher)
    else:
        target = target or Target()
        graph, spec = load_to_quantize(model, spec, target, watcher)
        subject = _Subject(graph, spec, target, place_layers(graph, spec, target, watcher))
    graph, spec, target, placement = subject.graph, subject.spec, subject.target, subject.placement
    path = Path(output or resolve_name(model).with_suffix(".sensitivity.json"))
    if not placement.quantized:
        raise ModelError(f"{graph.path} has no layer that is quantized; `trtq inspect --placement` shows why")
    calibration = None
    if subject.ranges is None or spec.evaluation.data is None:
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
        key=_key(subject, (calibration, batches)),
    )
    state = _earlier(path, start, watcher)
    if not state.is_complete:
        check_against_file(graph, calibration if calibration is not None else batches, watcher)
        ranges = subject.ranges
        if ranges is None:
            assert calibration is not None
            how = replace(options_from_spec(spec.calibration), workers=workers)
            channels = list_channels(graph, placement, calibration, spec)
            seen = observe_graph(graph, placement.activations, calibration, how, watcher, channels)
            ranges = improve_ranges(graph, placement, seen, calibration, spec, watcher, workers).ranges
            warn_of_dead(ranges, watcher)
        scale_dtype = "float16" if choose_rest(target) is FP16 else "float32"
        work = _Work(
            open_switchable(graph.model, placement, ranges, scale_dtype=scale_dtype),
            placement,
            count_macs(graph.model, next(iter(batches))),
            batches,
            labels,
        )
        state = _measure_rest(work, workers, state, path, watcher)
    return state


@dataclass(frozen=True, slots=True)
class _Subject:
    """The model that is measured, as it is quantized; without ranges these are found as in a build."""

    graph: Graph
    spec: ModelSpec
    target: Target
    placement: Placement
    ranges: Ranges | None = None


def _open_build(folder: Path, spec: ModelSpec | None, watcher: Watcher) -> _Subject:
    """Returns the model of a build with the layers, the ranges and the repairs that the build has."""
    manifest, report = read_intact_manifest(folder), read_report(folder)
    own, target = read_settings(manifest, folder)
    if spec is None:
        spec = own
        refuse_scripts(spec, spec.scripts)
    is_explicit = report.engine.quantization == "explicit" and report.weights is None
    if RANGES not in manifest.outputs or target.form is None or not is_explicit:
        raise ArtifactError(
            f"{folder} is no build by Q/DQ alone, whose layers could be measured; give the model itself"
        )
    target = replace(target, backend=report.backend.partition(" ")[0])  # which decides on encodings
    path = Path(report.model)
    graph, _ = load_to_quantize(path, spec, target, watcher)
    if graph.sha256 != manifest.inputs.get(report.model):
        raise ArtifactError(f"{path} was changed since {folder} was built; build it again")
    kept = {item.name: item.reason for item in report.kept_float}
    ranges = read_ranges(folder / RANGES)
    spec_of_layers = replace(spec, quantization=own.quantization)
    found = report.auto.layers if report.auto is not None else {}
    forms = {name: LAYER_FORMATS[form] for name, form in found.items() if form in LAYER_FORMATS}
    if ranges.activations == "asymmetric" and target.form is INT8:
        graph = part_for_codes(graph)
        placement = place_between_codes(graph, spec_of_layers, target, watcher, kept, forms=forms)
    else:
        placement = place_layers(
            graph, spec_of_layers, target, watcher, kept, attention=ranges.attention, forms=forms
        )
    watcher.note(f"layers, ranges ({ranges.method}) and repairs are those of {folder}")
    return _Subject(graph, spec, target, placement, ranges)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is measured, and on what."""

    session: Switchable
    placement: Placement
    macs: Mapping[str, int]
    batches: Batches
    labels: Labels | None


@dataclass(frozen=True, slots=True)
class _Group:
    """Some layers, and the mixtures that tell what each costs."""

    names: Sequence[str]
    mixtures: Mapping[str, Mapping[str, str]]


def _list_groups(
    every: Mapping[str, str], rest: Sequence[str], at_a_time: int, *, with_all: bool
) -> Iterator[_Group]:
    """Yields the groups that are measured in one pass each; with the first all layers together, if asked."""
    for names in split_in_groups(rest, mixtures_each=2, at_a_time=at_a_time):
        mixtures = {_ALONE + name: {name: every[name]} for name in names}
        mixtures |= {
            _WITHOUT + name: {other: form for other, form in every.items() if other != name} for name in names
        }
        yield _Group(names, {**mixtures, _ALL: every} if with_all else mixtures)
        with_all = False


def _measure_rest(
    work: _Work, workers: Workers | None, state: Sensitivity, path: Path, watcher: Watcher
) -> Sensitivity:
    every = {name: forms[0] for name, forms in work.session.layers.items()}
    op_types = {node.name: node.op_type for node in work.placement.quantized}
    done = {layer.name for layer in state.layers}
    rest = [name for name in work.session.layers if name not in done]
    num_samples = work.batches.num_samples
    watcher.stage("Measuring layers", None if num_samples is None else len(rest) * num_samples)
    at_a_time = count_at_a_time(workers, work.labels)
    groups = [*_list_groups(every, rest, at_a_time, with_all=state.all_quantized is None)]
    measured = measure_groups(
        work.session if workers is None else work.session.share(workers),
        [group.mixtures for group in groups],
        work.batches,
        work.labels,
        lambda index, num_samples: watcher.advance(num_samples * len(groups[index].names)),
        workers,
    )
    written, saved = state, time.monotonic()
    try:
        for group, found in zip(groups, measured, strict=True):
            effects = found.effects
            layers = (
                LayerSensitivity(
                    name,
                    op_types[name],
                    work.macs.get(name, 0),
                    effects[_ALONE + name],
                    effects[_WITHOUT + name],
                )
                for name in group.names
            )
            state = replace(
                state,
                num_samples=found.num_samples,
                total_macs=sum(work.macs.values()),
                float_score=found.float_score,
                all_quantized=effects.get(_ALL, state.all_quantized),
                layers=(*state.layers, *layers),
            )
            if time.monotonic() - saved >= _SAVE_SECONDS:
                write_atomically(path, to_json(state))
                written, saved = state, time.monotonic()
    finally:
        if state is not written:
            write_atomically(path, to_json(state))
    return state


def _earlier(path: Path, start: Sensitivity, watcher: Watcher) -> Sensitivity:
    """Returns what an earlier call has measured of the same, else the start."""
    if not path.exists():
        return start
    found = read_sensitivity(path)  # refuses to write over anything else
    if not start.key:
        watcher.note(f"{path} is rewritten, because a script may have changed")
        return start
    if found.key != start.key:
        watcher.note(f"{path} is of another model, data or settings, and is rewritten")
        return start
    watcher.note(
        f"{path} holds all {found.num_layers} layers: nothing has changed"
        if found.is_complete
        else f"goes on after {len(found.layers)} of {found.num_layers} layers of {path}"
    )
    return found


def _key(subject: _Subject, data: tuple[Batches | None, Batches]) -> str:
    """Returns a digest of all that the numbers depend on; empty where only running a script tells."""
    spec, digests = subject.spec, [batches.digest for batches in data if batches is not None]
    if not all(digests) or spec.accuracy.script is not None:
        return ""
    ranges = None if subject.ranges is None else ranges_to_json(subject.ranges).decode()
    return make_key(
        collect_versions(),
        subject.graph.sha256,
        digests,
        (describe(create_method(spec.calibration)), spec.calibration.method, spec.quantization),
        [node.to_key() for node in subject.placement.quantized],
        subject.target.requantize,
        spec.evaluation,
        spec.accuracy.metric,
        choose_rest(subject.target).name,
        ranges,
    )
