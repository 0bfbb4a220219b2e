"""What a build decides before any work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from trtq.errors import DataError, ModelError, UsageError
from trtq.files import refuse_name
from trtq.models.signature import match_floats, require_same_inputs
from trtq.models.spec import AUTO, INSERTING_REPAIRS, PER_TOKEN, REPAIRS, ModelSpec, find_path
from trtq.pipeline.build.job import Job, place_job
from trtq.pipeline.build.keep import add_other_formats
from trtq.pipeline.build.keys import make_keys
from trtq.pipeline.calibrate.data import (
    describe_given,
    find_spec,
    open_calibration_data,
    place_layers,
    take_settings,
)
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.backends import choose_backend, refuse_unsupported
from trtq.pipeline.engine.profiles import check_profiles
from trtq.pipeline.engine.strategy import Strategy, choose_strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16, FP32, INT8, LAYER_FORMATS, NVFP4
from trtq.pipeline.formats.format import Format
from trtq.pipeline.graph.foreign_operators import (
    explain_incomparable,
    explain_unrunnable,
    refuse_half_known,
)
from trtq.pipeline.graph.load import Graph, load, part_for_codes, raise_opset
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.repair import repair_graph
from trtq.pipeline.judge.evaluate import open_evaluation_data
from trtq.pipeline.quantize.kv_cache import refuse_kv_cache
from trtq.pipeline.quantize.weights import (
    refuse_nothing_in_products,
    refuse_older_gpus,
    refuse_other_formats,
    refuse_weights,
)
from trtq.progress import Silent, Watcher

_NO_DATA = "no data was given to quantize it; the model already has Q/DQ in other layers"
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_HALF_OPSET = 19
"""The first whose Q/DQ have scales in FP16."""


def prepare(
    path: Path,
    spec: ModelSpec | None,
    target: Target,
    output: Path | str | None,
    random_data: bool,
    watcher: Watcher,
) -> Job:
    """Returns the job, with everything checked that can be checked without running the model.

    Args:
        path: The ONNX file.
        spec: The settings; None: read from beside the model.
        target: What is built.
        output: The folder; None: `<name>.trtq` beside the model.
        random_data: Whether random numbers calibrate the model.
        watcher: Receives the progress.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used.
        MissingDependency: The backend does not work here.
    """
    return complete_job(load_job(path, spec, target, output, watcher), watcher, random_data=random_data)


def load_job(
    path: Path, spec: ModelSpec | None, target: Target, output: Path | str | None, watcher: Watcher
) -> Job:
    """Returns the job with its model and settings, and without data: see `prepare`."""
    spec = spec if spec is not None else find_spec(path)
    backend = choose_backend(target.backend)
    refuse_unsupported(backend, target.options, target.compute_capabilities)
    watcher.stage("Loading")
    take_settings(spec, watcher)
    strategy = choose_strategy(target, backend)
    _refuse_combinations(spec, target, strategy, backend)
    graph = load(path, min_opset=find_opset(target, strategy), unfolds=target.unfolds_attention)
    refuse_half_known(graph.model, for_tensorrt=backend.name != "onnxruntime")
    if backend.name != "onnxruntime":
        _refuse_passed_inputs(graph)
    spec = _suit_backend(spec, target, backend, graph, strategy.graph_float)
    if backend.needs_coded_outputs and spec.quantization.activations == "asymmetric":
        graph = part_for_codes(graph)
    for note in graph.notes:
        watcher.note(note)
    folder = Path(output or path.with_suffix(".trtq")).absolute()
    refuse_name(folder)
    refuse_inputs_in(
        folder,
        graph.path,
        find_path(spec.calibration.data),
        find_path(spec.evaluation.data),
        spec.evaluation.reference,
        target.options.timing_cache,
    )
    check_profiles(graph.inputs, target.shapes, spec.inputs)
    return Job(
        graph=graph,
        spec=spec,
        target=target,
        backend=backend,
        folder=folder,
        strategy=strategy,
        calibration=None,
        evaluation=None,
    )


def _refuse_passed_inputs(graph: Graph) -> None:
    """Refuses an input that is an output too: TensorRT would call the engine's input otherwise."""
    for value in graph.model.graph.outputs:
        if value.is_graph_input():
            raise ModelError(
                f"output {value.name!r} is an input of the model too, and the tensors of an engine "
                "have names of their own; remove it from the outputs, or export it with an Identity "
                "after the input"
            )


def _suit_backend(spec: ModelSpec, target: Target, backend: Backend, graph: Graph, rest: Format) -> ModelSpec:
    """Returns the settings with ranges and repairs that suit the backend, where nobody chose.

    ONNX Runtime's integer kernels take scales in FP32 alone, and nothing may stand between a layer and the
    codes behind it, so that no repair puts an operator there unless it is named.
    """
    if spec.quantization.activations != AUTO:
        return spec
    is_plain = rest is FP32 and not _has_halves(graph) and not is_quantized(graph.model)
    has_zeros = backend.needs_coded_outputs and target.code_formats == (INT8.name,) and is_plain
    own = replace(spec.quantization, activations="asymmetric" if has_zeros else "symmetric")
    if has_zeros and own.repair == (AUTO,):
        own = replace(own, repair=tuple(name for name in REPAIRS if name not in INSERTING_REPAIRS))
    return replace(spec, quantization=own)


def _has_halves(graph: Graph) -> bool:
    """Returns whether the model itself computes in FP16 or BF16."""
    return any(value.dtype in _HALF for node in graph.model.graph for value in node.outputs)


def find_opset(target: Target, strategy: Strategy) -> int:
    """Returns the first opset that holds what is built: per-channel Q/DQ needs 13, FP16 scales 19."""
    return max(_HALF_OPSET if strategy.graph_float is FP16 else 13, target.min_opset)


def complete_job(job: Job, watcher: Watcher, *, random_data: bool) -> Job:
    """Returns a loaded job with its data, and with its model repaired if that has Q/DQ: see `prepare`."""
    if job.has_given:
        job = _take_given(job, watcher, has_data=random_data or job.spec.calibration.data is not None)
    elif job.target.requantize:
        raise UsageError(f"--requantize is for models with Q/DQ, and {job.graph.path} has none; leave it out")
    target, placement = job.target, place_job(job, watcher)
    if not job.has_given:
        refuse_other_formats(job.graph, target, placement)
    refuse_nothing_in_products(job.graph, job.spec, target, placement)
    if target.weights is not None and not placement.has_few_bits:
        watcher.warn("no weight can be stored in fewer bits; the report says why")
    if not (job.has_given or placement.layers) and target.form is not None and target.weights is None:
        watcher.warn("no layer can be quantized; the report says why")
    opset = max(_HALF_OPSET if _has_halves(job.graph) else 13, placement.min_opset)
    job = add_other_formats(replace(job, graph=raise_opset(job.graph, opset)))
    job = _with_reference(_with_data(job, watcher, random_data=random_data))
    return job if job.ranges is not None else replace(job, keys=make_keys(job))


def _with_data(job: Job, watcher: Watcher, *, random_data: bool) -> Job:
    """Returns the job with the data that calibrates it and that its result is compared on."""
    graph, spec, target = job.graph, job.spec, job.target
    if random_data:
        watcher.warn("calibrating with random numbers: the accuracy of this engine means nothing")
    needs = job.ranges is None and not job.is_as_given and job.needs_data
    calibration = None
    compares = job.ranges is None or spec.evaluation.data is None
    if needs or random_data or (spec.calibration.data is not None and compares):
        calibration = open_calibration_data(graph, spec, target, random_data=random_data)
    evaluation = None if job.unrunnable else open_evaluation_data(graph, spec, calibration)
    tell_of_pictures(graph.model, watcher, calibration, evaluation)
    if target.searches and (evaluation is None or evaluation.is_random):
        raise DataError(
            f"{target.search_option} chooses layers by what they cost on real data, and {graph.path} comes "
            f"with {'none' if evaluation is None else evaluation.origin}; give --calib-data or --eval-data"
        )
    return replace(job, calibration=calibration if job.ranges is None else None, evaluation=evaluation)


def _refuse_combinations(spec: ModelSpec, target: Target, strategy: Strategy, backend: Backend) -> None:
    """Refuses settings that this way of building does not have."""
    refuse_weights(target, backend, strategy)
    refuse_kv_cache(target, backend, strategy, spec.accuracy)
    for name in dict.fromkeys((target.precision, *target.code_formats)):
        if reason := backend.lacks.get(name):
            raise UsageError(f"backend {backend.name} has no --{name}: {reason}")
    if target.form is not None and backend.name == "tensorrt-rtx":
        for name in target.code_formats:
            asked, instead = f"--{name}", "--int8"
            if target.formats:
                asked, instead = f"{name} in --formats", f"--formats without {name}"
            refuse_older_gpus(LAYER_FORMATS[name], target.compute_capabilities, asked, instead)
    by_tensor = spec.quantization.weight_granularity == "per-tensor"
    if by_tensor and (strategy.is_implicit or target.precision == "weights"):
        raise UsageError(
            "--weight-granularity per-tensor is for INT8 by Q/DQ: quantizing implicitly, TensorRT picks the "
            "scales of weights itself, and --weights alone has its own; leave one of the two out"
        )
    is_asymmetric = spec.quantization.activations == "asymmetric" and target.form is not None
    others = [name for name in target.code_formats if name != INT8.name]
    if is_asymmetric and others:
        raise UsageError(f"--activations asymmetric is for INT8: {others[0]} codes have no zero point")
    if is_asymmetric and backend.name != "onnxruntime":
        raise UsageError(
            f"--activations asymmetric is for --backend onnxruntime, not {backend.name}: TensorRT takes no "
            f"zero points other than 0"
        )
    if strategy.is_implicit and spec.quantization.activations == PER_TOKEN:
        raise UsageError(
            f"--activations {PER_TOKEN} is for Q/DQ: quantizing implicitly, TensorRT has one scale for each "
            f"tensor; leave one of the two out"
        )
    if spec.quantization.activations == PER_TOKEN and target.form is NVFP4:
        raise UsageError(
            f"--activations {PER_TOKEN} is for INT8 and FP8: NVFP4 finds a scale for every 16 values in each "
            f"run; leave it out"
        )
    if strategy.is_implicit and spec.quantization.repair not in (("auto",), ("none",)):
        raise UsageError(
            f"--repair {','.join(spec.quantization.repair)} is for Q/DQ: quantized implicitly, TensorRT "
            f"gets ranges and nothing else; leave --repair or --quantization implicit out"
        )


def _take_given(job: Job, watcher: Watcher, *, has_data: bool) -> Job:
    """Returns the job of a model that comes with Q/DQ, which is repaired and kept; the rest is as any model.

    Where nothing is left to quantize, or no data is there to do it with, it is built as it is.
    """
    path, target = job.graph.path, job.target
    if target.kv_cache is not None:
        raise UsageError(f"{path} is quantized already; --kv-cache needs the float model")
    if job.strategy.is_implicit:
        raise UsageError(
            f"{path} is quantized already, so TensorRT cannot quantize it implicitly; give the float "
            f"model, or leave --quantization implicit out"
        )
    for_tensorrt = job.backend.name != "onnxruntime"
    graph = repair_graph(
        job.graph,
        watcher,
        requantize=target.requantize,
        for_tensorrt=for_tensorrt,
        targets=target.compute_capabilities,
    )
    placement = place_layers(graph, job.spec, target, Silent(), job.kept, job.backend)
    if not for_tensorrt and (reason := explain_unrunnable(graph.model)):
        raise ModelError(f"{reason}, which ONNX Runtime cannot run; build {path} with --backend tensorrt-rtx")
    if reason := explain_incomparable(graph.model):
        watcher.warn(f"{reason}, which ONNX Runtime cannot run: nothing of {path} is calibrated or compared")
        has_data = False
    if not placement.quantized:
        if target.searches:
            raise UsageError(
                f"{path} is quantized already, so {target.search_option} has no layers to choose among"
            )
        if target.weights is not None:
            raise UsageError(f"{path} is quantized already; --weights needs the float model")
        watcher.note("the model is quantized already: it is built as it is, without calibration")
        as_it_is = target if target.form is not None else replace(target, precision="int8")
        return replace(job, graph=graph, target=as_it_is)
    needs_data = any(not encoding.is_dynamic for _, encoding in placement.encodings)
    if target.form is not None and target.weights is None and needs_data and not has_data:
        watcher.warn(
            f"the model already has Q/DQ, and {len(placement.quantized)} more layers could be "
            f"quantized, such as {placement.quantized[0].name!r}; no data is there to do it with, so "
            "it is built as it is; give --calib-data"
        )
        names = (node.name for node in placement.quantized)
        return replace(job, graph=graph, kept={**job.kept, **dict.fromkeys(names, _NO_DATA)})
    if target.form is not None:
        watcher.note(describe_given(placement))
    return replace(job, graph=raise_opset(graph, find_opset(target, job.strategy)))


def _with_reference(job: Job) -> Job:
    """Returns the job with the digest of its reference, which must be a float model with the same inputs."""
    if job.spec.evaluation.reference is None:
        return job
    path = Path(job.spec.evaluation.reference)
    reference = load(path, min_opset=1)
    if is_quantized(reference.model):
        raise UsageError(f"the reference {path} has Q/DQ itself; give the float model, or leave it out")
    inputs = match_floats(reference.inputs, job.graph.inputs)
    require_same_inputs(str(path), inputs, str(job.graph.path), job.graph.inputs)
    if job.evaluation is None:
        raise DataError(
            f"{job.graph.path} cannot be compared with {path} without data; give --calib-data or --eval-data"
        )
    return replace(job, reference_sha256=reference.sha256)


def refuse_inputs_in(folder: Path, *sources: Path | str | None) -> None:
    """Refuses an output folder that holds what is read: it will be replaced as a whole.

    Raises:
        UsageError: One of the sources lies in the folder.
    """
    for source in sources:
        if source is not None and folder.resolve() in Path(source).resolve().parents:
            raise UsageError(
                f"{source} is inside the output folder {folder}, which is replaced as a whole; choose "
                "another folder with --output"
            )
