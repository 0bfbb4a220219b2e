"""Each stage of a build as a call of its own, from files to files."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from trtq.calibrators.estimate import estimate
from trtq.calibrators.ranges import Ranges
from trtq.calibrators.sources import WAYS
from trtq.calibrators.statistics import Statistics
from trtq.errors import ArtifactError, DataError, ModelError, UsageError
from trtq.models.session import save
from trtq.models.spec import CROSS_ENTROPY, ModelSpec
from trtq.pipeline.calibrate import (
    PassSpec,
    calibration_data,
    method_of,
    observe_graph,
    placement_of,
    spec_beside,
    warn_of_dead,
    warn_of_preprocess,
)
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.improve import Improved, improved
from trtq.pipeline.load import load as load_engine
from trtq.pipeline.quantize.mixed import fp16_model, int8_model
from trtq.pipeline.quantize.weights.choose import ChosenWeight
from trtq.pipeline.target import Target
from trtq.pipeline.verify.compare import Comparison, compare_models
from trtq.pipeline.verify.evaluate import evaluation_data, labels_of
from trtq.pipeline.watch import Silent, Watcher
from trtq.pipeline.weights import float_model, place_weights, with_few_bits


def calibrate(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    how: PassSpec | None = None,
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
    watcher = watcher or Silent()
    spec = spec if spec is not None else spec_beside(Path(model))
    method_of(spec.calibration)  # told now, not when the data is read
    seen = observe(model, spec=spec, target=target, random_data=random_data, how=how, watcher=watcher)
    return improve(model, seen, spec=spec, target=target, random_data=random_data, watcher=watcher).ranges


def improve(
    model: Path | str,
    statistics: Statistics,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    watcher: Watcher | None = None,
) -> Improved:
    """Returns the ranges and the repairs with which the model loses least on calibration data held back.

    Args:
        model: The float ONNX file.
        statistics: Of `observe`, of all the data.
        spec: With the data, the method and the repairs that may be made; None: read from beside the model.
        target: Which types of nodes are quantized.
        random_data: The data are random numbers, so nothing is tried.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        ArtifactError: The statistics miss a part of the data.
    """
    watcher = watcher or Silent()
    _refuse_parts(statistics)
    graph, spec = load_float(Path(model), spec, Silent())
    placement = placement_of(graph, spec, target or Target(), Silent())
    batches = calibration_data(graph, spec, target or Target(), random_data=random_data)
    found = improved(graph, placement, statistics, batches, spec, watcher)
    warn_of_dead(found.ranges, watcher)
    return found


def observe(
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    random_data: bool = False,
    how: PassSpec | None = None,
    watcher: Watcher | None = None,
) -> Statistics:
    """Returns what one pass over the data sees of all tensors that `build` would quantize.

    Every method takes its ranges from that, without the data: see `ranges_of`.

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
    watcher, how, target = watcher or Silent(), how or PassSpec(), target or Target()
    graph, spec = load_float(Path(model), spec, watcher)
    placement = placement_of(graph, spec, target, watcher)
    batches = calibration_data(graph, spec, target, random_data=random_data)
    warn_of_preprocess(batches, spec, watcher)
    return observe_graph(graph, placement.activations, batches, how, watcher)


def ranges_of(
    statistics: Statistics,
    *,
    spec: ModelSpec,
    tensors: Collection[str] | None = None,
    watcher: Watcher | None = None,
) -> Ranges:
    """Returns the ranges that a method takes from statistics, without any data and so without repairs.

    Args:
        statistics: Of all the data: of `observe`, `read_statistics` or `merge_statistics`.
        spec: With the method, one of histograms; "auto" is entropy.
        tensors: Those that are wanted; None: all.
        watcher: Is told of tensors that were always zero.

    Raises:
        UsageError: The method has no such parameters, or needs the data.
        ArtifactError: The statistics miss a part of the data.
    """
    _refuse_parts(statistics)
    if spec.calibration.method == CROSS_ENTROPY:
        raise UsageError(
            f"the calibration method {CROSS_ENTROPY} needs the data: statistics hold no rows; "
            f"give --calib-data instead of --statistics, or take another method"
        )
    ranges = estimate(statistics, method_of(spec.calibration), tensors, spec.quantization.activations)
    warn_of_dead(ranges, watcher or Silent())
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


def placed_in(
    statistics: Statistics,
    model: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    watcher: Watcher | None = None,
) -> tuple[str, ...]:
    """Returns the tensors that `build` would quantize, all of which the statistics hold.

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
    watcher = watcher or Silent()
    graph, spec = load_float(Path(model), spec, watcher)
    if (found := statistics.source.model_sha256) != graph.sha256:
        raise ArtifactError(
            f"the statistics are of another file than {graph.path}: SHA-256 {found[:12]}, "
            f"not {graph.sha256[:12]}; calibrate again"
        )
    placement = placement_of(graph, spec, target or Target(), watcher)
    if missing := [name for name in placement.activations if name not in statistics.histograms]:
        raise ArtifactError(
            f"the statistics hold nothing of tensor {missing[0]!r}: they were made with other --skip or "
            f"--op-types; calibrate again"
        )
    return placement.activations


def quantize(
    model: Path | str,
    ranges: Ranges | None,
    output: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Returns the model that was written: with Q/DQ, with weights in few bits, or both; the rest is FP16.

    A model whose weights lie in another file is quantized weight by weight.

    Args:
        model: The float ONNX file.
        ranges: Of `calibrate`; None for weights alone.
        output: The file to write; the weights of a large model go to `<name>.data` beside it.
        spec: What is known of the model; None: read from beside it.
        target: Which types of nodes are quantized, and the precision of the rest.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used; the ranges lack a tensor.
        ArtifactError: The file cannot be written.
    """
    watcher = watcher or Silent()
    target = target or Target()
    graph, spec = load_float(Path(model), spec, watcher, target.min_opset)
    fp16 = target.high_precision not in ("fp32", "bf16")
    keep_fp32 = spec.layers.keep_fp32
    placement = Placement((), ())
    weights: tuple[ChosenWeight, ...] = ()
    if ranges is not None:
        if ranges.model_sha256 != graph.sha256:
            watcher.warn(f"the ranges were calibrated for another file than {graph.path}")
        placement = placement_of(graph, spec, target, watcher)
    if target.weights is not None:
        placement, weights = place_weights(graph, spec, target, placement, watcher)
    if ranges is not None:
        mixed = int8_model(graph, placement, ranges, fp16=fp16, keep_fp32=keep_fp32)
    elif target.weights is not None:
        mixed = (
            fp16_model(graph, None, keep_fp32=keep_fp32) if fp16 else float_model(graph, target, keep_fp32)
        )
    else:
        raise UsageError("there is nothing to quantize with: give ranges, or a weight format")
    if target.weights is not None:
        needs_data = target.weights.method == "gptq"
        batches = calibration_data(graph, spec, target, random_data=False) if needs_data else None
        mixed = with_few_bits(mixed, graph, weights, target, backend=target.backend, batches=batches)
    return _save_whole(mixed.model, Path(output))


def compare(
    reference: Path | str,
    candidate: Path | str,
    *,
    spec: ModelSpec | None = None,
    watcher: Watcher | None = None,
) -> Comparison:
    """Returns how far a model is from another one.

    Args:
        reference: The ONNX file that is right.
        candidate: The ONNX file that is judged, or a build folder: then its engine is run. Its inputs and
            outputs have the same names.
        spec: With the data to compare on; None: read from beside the reference.
        watcher: Is told of the progress.

    Raises:
        ModelError, DataError, UsageError: Something that was given cannot be used.
        ArtifactError: The engine was changed, or is for another version or GPU.
        MissingDependency: What runs the engine is not here.
    """
    watcher = watcher or Silent()
    spec = spec if spec is not None else spec_beside(Path(reference))
    engine = load_engine(candidate) if Path(candidate).is_dir() else None
    graph = load(Path(reference), min_opset=1)
    file = Path(candidate) if engine is None else engine.onnx
    if file is not None:
        _refuse_other_inputs(graph, load(file, min_opset=1))
    calibration = None
    if spec.evaluation.data is None:
        if spec.calibration.data is None:
            raise DataError(
                f"{reference} and {candidate} cannot be compared without data; give --data with {WAYS}; or "
                f"name it in [evaluation] or [calibration] of model.toml beside the model"
            )
        calibration = calibration_data(graph, spec, Target(), random_data=False)
    batches = evaluation_data(graph, spec, calibration)
    assert batches is not None
    names = compared_names(Path(reference), Path(candidate))
    watcher.stage("Comparing", batches.num_samples)
    files = {names[0]: graph.path, **({names[1]: file} if file is not None else {})}
    engines = (engine.runner(names[1]),) if engine is not None and file is None else ()
    pair = (names[1], names[0])
    labels = labels_of(spec.evaluation, spec.accuracy.metric)
    return compare_models(files, [pair], batches, labels, watcher.advance, engines)


def compared_names(reference: Path, candidate: Path) -> tuple[str, str]:
    """Returns names for two files that tell them apart."""
    if reference.name != candidate.name:
        return reference.name, candidate.name
    return str(reference), str(candidate) if candidate != reference else f"{candidate} again"


def load_float(
    path: Path, spec: ModelSpec | None, watcher: Watcher, min_opset: int = 19
) -> tuple[Graph, ModelSpec]:
    """Returns a float model and its settings, read from beside it if they are None.

    Raises:
        ModelError: The file cannot be used, or is quantized already.
        UsageError: The settings are wrong.
    """
    watcher.stage("Loading")
    spec = spec if spec is not None else spec_beside(path)
    graph = load(path, min_opset=max(19, min_opset))
    if is_quantized(graph.model):
        raise ModelError(f"{path} is quantized already; give the float model, or build it as it is")
    for note in graph.notes:
        watcher.note(note)
    return graph, spec


def _save_whole(model: ir.Model, output: Path) -> Path:
    """Writes a model; whoever reads meanwhile, or after an interruption, finds the old one or the new one.

    Weights in a file of their own take a name that no graph refers to yet; those of the graph before go last.
    """
    try:
        earlier = [path for path in output.parent.iterdir() if _is_data_of(output, path)]
        data = output.with_name(f"{output.name}.data")
        numbers = itertools.count(1)
        while data in earlier:
            data = output.with_name(f"{output.name}.{next(numbers)}.data")
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            save(model, Path(folder) / output.name, data.name)
            for part in sorted(Path(folder).iterdir(), reverse=True):  # the weights before the graph
                part.replace(output.parent / part.name)
        for path in earlier:
            path.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error.strerror or error}") from error
    return output


def _is_data_of(output: Path, path: Path) -> bool:
    return re.fullmatch(re.escape(output.name) + r"(\.\d+)?\.data", path.name) is not None


def _refuse_other_inputs(graph: Graph, other: Graph) -> None:
    ours = {item.name: item.dtype for item in graph.inputs}
    theirs = {item.name: item.dtype for item in other.inputs}
    if ours != theirs:
        raise ModelError(f"{other.path} takes {_show(theirs)}, {graph.path} takes {_show(ours)}")


def _show(inputs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in inputs.items())
