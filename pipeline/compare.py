"""How far one model, or a built engine, is from another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trtq.calibrators.memory import give_back_memory, is_memory_short
from trtq.calibrators.sources import ACCEPTED_DATA
from trtq.errors import DataError
from trtq.models.session import count_weight_bytes
from trtq.models.signature import TensorSpec, match_floats, require_same_inputs
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate.data import find_spec, open_calibration_data, take_settings
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.kv_cache import find_coded_caches
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.pictures import tell_of_pictures
from trtq.pipeline.judge.compare import Comparison, compare_models, read_coded_caches
from trtq.pipeline.judge.evaluate import find_labels, open_evaluation_data
from trtq.pipeline.judge.generate import Generated, compare_generated, read_prompts
from trtq.pipeline.judge.windows import compare_texts, slide
from trtq.pipeline.load import load as load_engine
from trtq.progress import Watcher, choose_watcher
from trtq.records import LogitsComparison


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
        watcher: Receives the progress.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used.
        ArtifactError: The engine was changed, or is for another version or GPU.
        MissingDependency: What runs the engine is not here.
    """
    watcher = choose_watcher(watcher)
    spec = spec if spec is not None else find_spec(Path(reference))
    take_settings(spec, watcher)
    engine = load_engine(candidate) if Path(candidate).is_dir() else None
    graph = load(Path(reference), min_opset=1)
    file = Path(candidate) if engine is None else engine.onnx
    reader = graph if file is None else _choose_reader(graph, file)
    calibration = None
    if spec.evaluation.data is None:
        if spec.calibration.data is None:
            raise DataError(
                f"{reference} and {candidate} cannot be compared without data; give --data with "
                f"{ACCEPTED_DATA}; or name it in [evaluation] or [calibration] of model.toml beside the model"
            )
        calibration = open_calibration_data(reader, spec, Target(), random_data=False)
    batches = open_evaluation_data(reader, spec, calibration)
    assert batches is not None
    tell_of_pictures(graph.model, watcher, batches)
    names = name_compared(Path(reference), Path(candidate))
    watcher.stage("Comparing", batches.num_samples)
    files = {names[0]: graph.path, **({names[1]: Path(candidate)} if engine is None else {})}
    engines = () if engine is None else (engine.runner(names[1]),)
    coded = {} if engine is None else {names[1]: read_coded_caches(engine.folder / engine.model)}
    labels, weight_bytes = find_labels(spec.evaluation, spec.accuracy.metric), count_weight_bytes(graph.model)
    del graph, reader  # its weights are in the sessions from here on
    give_back_memory(weight_bytes)
    return compare_models(
        files,
        [(names[1], names[0])],
        batches,
        labels,
        watcher.advance,
        engines,
        coded=coded,
        saves_memory=is_memory_short(spec.calibration.memory_bytes),
    )


def _show_floats(graph: Graph, wanted: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Returns the inputs of a model, of which caches of codes can be given as the reference wants them."""
    coded = {item.past for item in find_coded_caches(graph.model)}
    dtypes = {item.name: item.dtype for item in wanted if item.name in coded}
    return [replace(item, dtype=dtypes.get(item.name, item.dtype)) for item in graph.inputs]


def _choose_reader(graph: Graph, file: Path) -> Graph:
    """Returns the model for whose inputs the data is read, in the reference's dtypes.

    That is the reference, or the other model where this one has fixed sizes, such as that of the batch.

    Raises:
        ModelError: Their inputs differ.
    """
    other = load(file, min_opset=1)
    inputs = match_floats(_show_floats(other, graph.inputs), graph.inputs)
    require_same_inputs(str(graph.path), graph.inputs, str(file), inputs)
    return _take_dtypes(other, graph) if _has_other_sizes(other.inputs, graph.inputs) else graph


def _has_other_sizes(given: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> bool:
    """Whether a model has fixed sizes where another one has none."""
    others = {item.name: item for item in wanted}
    return any(
        isinstance(size, int) and not isinstance(open_size, int)
        for item in given
        for size, open_size in zip(item.shape, others[item.name].shape, strict=False)
    )


def _take_dtypes(graph: Graph, wanted: Graph) -> Graph:
    """Returns a model to read data for, with the dtypes of another one's inputs: what runs it casts them."""
    types = {value.name: value.type for value in wanted.model.graph.inputs}
    model = graph.model.clone()
    for value in model.graph.inputs:
        value.type = types.get(value.name, value.type)
    return replace(graph, model=model)


def compare_writing(
    reference: Path | str,
    candidate: Path | str,
    prompts: Path | str,
    count: int,
    *,
    spec: ModelSpec | None = None,
    watcher: Watcher | None = None,
) -> list[Generated]:
    """Returns the greedy tokens of a language model and of another one, behind each prompt of a file.

    Args:
        reference: The ONNX file that is right.
        candidate: The ONNX file that is judged, or a build folder, whose ONNX model is run.
        prompts: Ids of tokens, one prompt a line, or the rows of a .npy file.
        count: How many tokens are written.
        spec: With the libraries of operators; None: read from beside the reference.
        watcher: Receives the progress.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used.
        ArtifactError: The folder was changed.
    """
    watcher = choose_watcher(watcher)
    take_settings(spec if spec is not None else find_spec(Path(reference)), watcher)
    rows, file = read_prompts(Path(prompts)), _find_onnx(candidate)
    watcher.stage("Writing", 2 * len(rows))
    return compare_generated(Path(reference), file, rows, count, watcher.advance)


def compare_reading(
    reference: Path | str,
    candidate: Path | str,
    tokens: Path | str,
    *,
    window: int = 512,
    stride: int | None = None,
    spec: ModelSpec | None = None,
    watcher: Watcher | None = None,
) -> LogitsComparison:
    """Returns the perplexity of two language models on texts, and how far their logits are apart by place.

    Args:
        reference: The ONNX file that is right.
        candidate: The ONNX file that is judged, or a build folder, whose ONNX model is run.
        tokens: Ids of tokens, one text a line, or the rows of a .npy file.
        window: How many tokens a model reads at a time.
        stride: By how many tokens the window is moved; None: by half of it.
        spec: With the libraries of operators; None: read from beside the reference.
        watcher: Receives the progress.

    Raises:
        ModelError, DataError, UsageError: An argument cannot be used.
        ArtifactError: The folder was changed.
    """
    watcher, stride = choose_watcher(watcher), window // 2 if stride is None else stride
    take_settings(spec if spec is not None else find_spec(Path(reference)), watcher)
    windows = slide(read_prompts(Path(tokens)), window, stride)
    names = name_compared(Path(reference), Path(candidate))
    watcher.stage("Comparing", len(windows))
    pair = (names[0], Path(reference)), (names[1], _find_onnx(candidate))
    return compare_texts(*pair, windows, stride, watcher.advance)


def _find_onnx(candidate: Path | str) -> Path:
    """Returns an ONNX file: the one given, or that of a build folder."""
    if not Path(candidate).is_dir():
        return Path(candidate)
    file = load_engine(candidate, backend="onnxruntime").onnx
    assert file is not None
    return file


def name_compared(reference: Path, candidate: Path) -> tuple[str, str]:
    """Returns names for two files that tell them apart."""
    if reference.name != candidate.name:
        return reference.name, candidate.name
    return str(reference), str(candidate) if candidate != reference else f"{candidate} again"
