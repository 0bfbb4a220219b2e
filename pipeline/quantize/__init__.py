"""The stages after calibration as calls of their own, from files to files."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from trtq.calibrators.ranges import Ranges
from trtq.errors import ArtifactError, UsageError
from trtq.files import check_output, move_atomically
from trtq.models.session import save
from trtq.models.spec import PER_TOKEN, ModelSpec
from trtq.pipeline.calibrate import load_to_quantize
from trtq.pipeline.calibrate.data import (
    find_shapes,
    need_no_ranges,
    open_calibration_data,
    options_from_spec,
    place_layers,
    warn_of_dead,
)
from trtq.pipeline.calibrate.improve import take_ranges
from trtq.pipeline.calibrate.observation import observe_graph
from trtq.pipeline.engine.strategy import choose_rest
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.kv_cache import place_caches
from trtq.pipeline.graph.load import raise_opset
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.judge.witness import check_against_file
from trtq.pipeline.quantize.fit import check_fit
from trtq.pipeline.quantize.weights import (
    find_runtime,
    place_weights,
    refuse_nothing_in_products,
    refuse_nothing_stored,
    refuse_other_formats,
)
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph
from trtq.progress import Watcher, choose_watcher
from trtq.temporary import open_temporary_folder

_MOST_RUN = 1 << 31
"""Bytes that running a model may take here, where a large one is read weight by weight."""


def quantize(
    model: Path | str,
    ranges: Ranges | None,
    output: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Returns the model that was written: with Q/DQ, weights in few bits, or caches of codes.

    A model whose weights lie in another file is quantized weight by weight.

    Args:
        model: The float ONNX file.
        ranges: Of `calibrate`; None for weights alone, and where no activation needs one: each row has its
            own scale with `per-token` activations. Caches get theirs from the data then.
        output: The file to write; the weights of a large model go to `<name>.data` beside it.
        spec: The model settings; None: read from the file next to it.
        target: Which types of nodes are quantized, and the precision of the rest: if that is "auto", FP32 for
            the backend "onnxruntime" and FP16 for others. The backend need not work here.
        watcher: Receives the progress.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used; the ranges are of another model.
        ArtifactError: The file cannot be written, or the model or its weights lie where it would go.
    """
    watcher = choose_watcher(watcher)
    target = target or Target()
    sources = () if spec is None else spec.sources
    check_output(Path(output), *list_model_files(Path(model), Path(output)), *sources)
    _refuse_weights_of(Path(model), Path(output))
    graph, spec = load_to_quantize(Path(model), spec, target, watcher)
    rest = choose_rest(target)
    observes = target.kv_cache is not None and ranges is None
    needs_data = observes or (target.weights is not None and target.weights.needs_data)
    batches = open_calibration_data(graph, spec, target, random_data=False) if needs_data else None
    tell_of_pictures(graph.model, watcher, batches)
    check_against_file(graph, batches, watcher, find_shapes(spec, target), most_bytes=_MOST_RUN)
    runtime = find_runtime(target.backend)
    placement, encoding = Placement(), WeightEncoding(runtime=runtime)
    if ranges is not None:
        if ranges.activations == PER_TOKEN:
            spec = replace(spec, quantization=replace(spec.quantization, activations=PER_TOKEN))
    elif target.weights is not None and target.weights.in_products:
        raise UsageError("W4A8 has activations of 8 bits; give --ranges of `trtq calibrate` with --w4a8")
    if ranges is not None or (target.weights is None and target.form is not None):
        chosen = ranges.attention if ranges is not None else ()
        placement = place_layers(graph, spec, target, watcher, attention=chosen)
        refuse_other_formats(graph, target, placement)
        if ranges is None:
            ranges = need_no_ranges(graph, placement)
        else:
            check_fit(ranges, graph, placement, watcher)
            _warn_of_formats(ranges, placement, watcher)
    if target.weights is not None:
        by_matrix = target.backend != "tensorrt"  # where nobody has measured it
        placement = place_weights(graph, spec, target, placement, watcher, by_matrix=by_matrix)
        refuse_nothing_in_products(graph, spec, target, placement)
        if ranges is None:
            refuse_nothing_stored(graph, target, placement)
        rotates = "rotate" in spec.quantization.repairs
        encoding = WeightEncoding(target.weights.method, runtime, batches, rotates=rotates)
    elif ranges is None and (target.kv_cache is None or placement.activations):
        needy = f"; {placement.activations[0]!r} needs one" if placement.activations else ""
        raise UsageError(f"there is nothing to quantize with: give ranges, or a weight format{needy}")
    placement = place_caches(graph, target.kv_cache, placement)
    if observes:
        assert batches is not None
        how = options_from_spec(spec.calibration)
        tensors = {cache.present: cache.form for cache in placement.caches}
        seen = observe_graph(graph, tuple(tensors), batches, how, watcher)
        own = take_ranges(graph, tensors, seen, batches, spec, watcher).ranges
        warn_of_dead(own, watcher)
        ranges = own if ranges is None else replace(ranges, tensors=own.tensors, formats=own.formats)
    if (raised := raise_opset(graph, placement.min_opset)) is not graph:
        check_against_file(raised, batches, watcher, find_shapes(spec, target), most_bytes=_MOST_RUN)
        graph = raised
    mixed = quantize_graph(
        graph, placement, ranges, rest=rest, keep_fp32=spec.layers.keep_fp32, weights=encoding
    )
    for sentence in mixed.notes:
        watcher.note(sentence)
    return _save_whole(mixed.model, Path(output))


def _warn_of_formats(ranges: Ranges, placement: Placement, watcher: Watcher) -> None:
    """Tells of a tensor that was calibrated for another number format than it now gets."""
    for tensor, form in placement.formats.items():
        if tensor in ranges.tensors and (found := ranges.formats.get(tensor, INT8.name)) != form.name:
            watcher.warn(
                f"the range of {tensor!r} was calibrated for {found.upper()}, and it is quantized to "
                f"{form.name.upper()}; calibrate with --{form.name} to lose less"
            )
            return


def _refuse_weights_of(model: Path, output: Path) -> None:
    """Refuses an output that would remove the weights of its own model, as those of an older output."""
    folder = output.parent
    beside = [item for item in folder.iterdir() if _is_data_of(output, item)] if folder.is_dir() else []
    own = {item.resolve() for item in list_model_files(model, *beside)}
    for path in beside:
        if path.resolve() in own:
            raise ArtifactError(
                f"{path} holds weights of {model}, and {output} would replace it; choose another output"
            )


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
        with open_temporary_folder(output) as folder:
            save(model, folder / output.name, data.name)
            move_atomically(folder, output.parent)
        for path in earlier:
            path.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error.strerror or error}") from error
    return output


def measure_model(path: Path) -> int:
    """Returns the bytes of a model that `quantize` wrote, those of its weights beside it too."""
    return sum(
        item.stat().st_size for item in path.parent.iterdir() if item == path or _is_data_of(path, item)
    )


def _is_data_of(output: Path, path: Path) -> bool:
    return re.fullmatch(re.escape(output.name) + r"(\.\d+)?\.data", path.name) is not None
