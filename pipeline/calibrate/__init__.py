"""From files to ranges: a pass over the data, and what the methods make of what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtq.calibrators import create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.entropy import EntropyWithRows
from trtq.calibrators.estimate import estimate
from trtq.calibrators.levels import Levels
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.statistics import Statistics
from trtq.errors import ArtifactError, ModelError, UsageError
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate.data import (
    ObserveOptions,
    describe_given,
    find_spec,
    open_calibration_data,
    place_layers,
    take_settings,
    warn_of_dead,
)
from trtq.pipeline.calibrate.improve import RangeSearch, improve_ranges, list_channels
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.kv_cache import place_caches
from trtq.pipeline.graph.load import Graph, load, raise_opset
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.judge.witness import check_against_file
from trtq.progress import Silent, Watcher, choose_watcher
from trtq.workers import Workers


@dataclass(frozen=True, slots=True)
class CalibrationSetup:
    """What is calibrated; it is opened once, for the pass and for what follows.

    Attributes:
        graph: The float model.
        spec: What is known of it.
        placement: What `build` would quantize.
        batches: The data.
    """

    graph: Graph
    spec: ModelSpec
    placement: Placement
    batches: Batches

    def observe(self, how: ObserveOptions, watcher: Watcher) -> Statistics:
        """Returns what one pass over the data sees of all placed tensors.

        Raises:
            ModelError, DataError: The model cannot be run, or goes wrong on the data.
            MissingDependency: The device is not there.
            ArtifactError: The checkpoint cannot be read or written, or is of something else.
        """
        channels = list_channels(self.graph, self.placement, self.batches, self.spec)
        tensors = self.placement.activations
        return observe_graph(self.graph, tensors, self.batches, how, watcher, channels)

    def improve(
        self, statistics: Statistics, watcher: Watcher, workers: Workers | None = None
    ) -> RangeSearch:
        """Returns the ranges and the repairs with which the model loses least on data held back.

        Args:
            statistics: Of `observe`, of all the data.
            watcher: Is told of the progress.
            workers: Who try what there is to try; None: threads of this process.

        Raises:
            ModelError, DataError: The model cannot be run, or goes wrong on the data.
            ArtifactError: The statistics miss a part of the data.
        """
        _refuse_parts(statistics)
        found = improve_ranges(
            self.graph, self.placement, statistics, self.batches, self.spec, watcher, workers
        )
        warn_of_dead(found.ranges, watcher)
        return found


def open_calibration(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    watcher: Watcher | None = None,
) -> CalibrationSetup:
    """Returns the model and its data, checked.

    Args:
        model: The float ONNX file.
        spec: With the data, the method and the repairs that may be made; None: read from `<name>.toml` or
            `model.toml` beside it.
        target: Which types of nodes are quantized.
        random_data: Calibrate with random numbers.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
    """
    watcher, target = choose_watcher(watcher), target or Target()
    spec = spec if spec is not None else find_spec(Path(model))
    create_method(spec.calibration)  # told now, not when the data is read
    graph, spec = load_to_quantize(Path(model), spec, target, watcher)
    placement = place_layers(graph, spec, target, watcher, attention=None)
    placement = place_caches(graph, target.kv_cache, placement)
    batches = open_calibration_data(graph, spec, target, random_data=random_data)
    if random_data:
        watcher.warn("calibrating with random numbers: the accuracy of what has these ranges means nothing")
    tell_of_pictures(graph.model, watcher, batches)
    check_against_file(graph, batches, watcher)
    return CalibrationSetup(graph, spec, placement, batches)


def calibrate(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    how: ObserveOptions | None = None,
    watcher: Watcher | None = None,
) -> Ranges:
    """Returns the ranges of all tensors that `build` would quantize.

    Args:
        model: The float ONNX file.
        spec: What is known of the model; None: read from `<name>.toml` or `model.toml` beside it.
        target: Which types of nodes are quantized.
        random_data: Calibrate with random numbers.
        how: How the pass over the data is made; of all parts of it.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        MissingDependency: The device is not there.
        ArtifactError: The checkpoint cannot be read or written, or is of something else.
    """
    watcher = choose_watcher(watcher)
    subject = open_calibration(model, spec=spec, target=target, random_data=random_data, watcher=watcher)
    how = how or ObserveOptions()
    return subject.improve(subject.observe(how, watcher), watcher, how.workers).ranges


def observe(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    how: ObserveOptions | None = None,
    watcher: Watcher | None = None,
) -> Statistics:
    """Returns what one pass over the data sees of all tensors that `build` would quantize.

    Every method takes its ranges from that, without the data: see `estimate_ranges`.

    Args:
        model: The float ONNX file.
        spec: What is known of the model; None: read from `<name>.toml` or `model.toml` beside it.
        target: Which types of nodes are quantized.
        random_data: Observe random numbers.
        how: How the pass is made, such as over one part of the data.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        MissingDependency: The device is not there.
        ArtifactError: The checkpoint cannot be read or written, or is of something else.
    """
    watcher = choose_watcher(watcher)
    subject = open_calibration(model, spec=spec, target=target, random_data=random_data, watcher=watcher)
    return subject.observe(how or ObserveOptions(), watcher)


def estimate_ranges(
    statistics: Statistics,
    *,
    spec: ModelSpec,
    tensors: Mapping[str, Levels] | None = None,
    watcher: Watcher | None = None,
) -> Ranges:
    """Returns the ranges that a method takes from statistics, without any data and so without repairs.

    Args:
        statistics: Of all the data: of `observe`, `read_statistics` or `merge_statistics`.
        spec: With the method, one of histograms; "auto" is entropy.
        tensors: Those that are wanted, with the number formats that they will be held in, as
            `list_placed_tensors` has them; None: all, in INT8.
        watcher: Is told of tensors that were always zero.

    Raises:
        UsageError: The method has no such parameters, or needs the data.
        ArtifactError: The statistics miss a part of the data.
    """
    _refuse_parts(statistics)
    method = create_method(spec.calibration)
    if isinstance(method, EntropyWithRows):
        raise UsageError(
            "the calibration method cross-entropy needs the data: statistics hold no rows; "
            "give --calib-data instead of --statistics, or take another method"
        )
    ranges = estimate(statistics, method, tensors, spec.quantization.kind_of_ranges, tensors or {})
    warn_of_dead(ranges, choose_watcher(watcher))
    return ranges


def _refuse_parts(statistics: Statistics) -> None:
    if statistics.feeds:
        raise ArtifactError(
            "the statistics are of an interrupted pass; let the command that made them finish it first"
        )
    if missing := statistics.missing_shards:
        shown = ", ".join(map(str, missing))
        raise ArtifactError(
            f"the statistics lack part {shown} of {statistics.source.num_shards} of the data; "
            f"observe it with --shard, then join all with `trtq merge-statistics`"
        )


def list_placed_tensors(
    statistics: Statistics,
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    watcher: Watcher | None = None,
) -> dict[str, CodeFormat]:
    """Returns the tensors that `build` would quantize, with their number formats; the statistics hold all.

    Args:
        statistics: Of this model.
        model: The float ONNX file.
        spec: With the layers that are skipped; None: read from beside the model.
        target: Which types of nodes are quantized.
        watcher: Is told of the progress.

    Raises:
        ModelError, UsageError: Something that was given cannot be used.
        ArtifactError: The statistics are of another model, or miss a tensor.
    """
    watcher, target = choose_watcher(watcher), target or Target()
    graph, spec = load_to_quantize(Path(model), spec, target, watcher)
    if (found := statistics.source.model_sha256) != graph.sha256:
        raise ArtifactError(
            f"the statistics are of another file than {graph.path}: SHA-256 {found[:12]}, "
            f"not {graph.sha256[:12]}; calibrate again"
        )
    placement = place_caches(graph, target.kv_cache, place_layers(graph, spec, target, watcher))
    if missing := [name for name in placement.activations if name not in statistics.histograms]:
        raise ArtifactError(
            f"the statistics hold nothing of tensor {missing[0]!r}: they were made with other --skip or "
            f"--op-types; calibrate again"
        )
    return placement.formats


def load_to_quantize(
    path: Path, spec: ModelSpec | None, target: Target, watcher: Watcher
) -> tuple[Graph, ModelSpec]:
    """Returns a model with float layers and its settings, read from beside it if they are None.

    A model that comes with Q/DQ is repaired as `build` does it.

    Raises:
        ModelError: The file cannot be used, or no layer of it is left to quantize.
        UsageError: The settings are wrong.
    """
    watcher.stage("Loading")
    spec = spec if spec is not None else find_spec(path)
    take_settings(spec, watcher)
    opset = max(19, target.min_opset)
    graph = load(path, min_opset=opset, unfolds=target.unfolds_attention)
    for note in graph.notes:
        watcher.note(note)
    if is_quantized(graph.model):
        from trtq.pipeline.graph.repair import repair_graph  # late: few models come quantized

        for_tensorrt = target.backend != "onnxruntime"
        graph = repair_graph(graph, watcher, requantize=target.requantize, for_tensorrt=for_tensorrt)
        placement = place_layers(graph, spec, target, Silent())
        if not placement.quantized:
            raise ModelError(f"{path} is quantized already; give the float model, or build it as it is")
        graph = raise_opset(graph, opset)
        if target.form is not None:
            watcher.note(describe_given(placement))
    return graph, spec
