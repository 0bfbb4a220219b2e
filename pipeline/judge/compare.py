"""Runs models side by side on the same data and compares what comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.observe import Progress
from trtq.errors import ModelError
from trtq.models.ports import to_plain
from trtq.models.runner import PlainSession, create_converting_runner, create_runner
from trtq.models.session import Session, list_runtime_errors, open_session
from trtq.pipeline.graph.kv_cache import CodedCache, find_coded_caches
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.judge.change import OutputChange
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.judge.logits import LogitsMetrics, find_mask, find_tokens
from trtq.pipeline.judge.metrics import OutputMetrics, holds_probabilities
from trtq.pipeline.judge.recall import RecallingSession
from trtq.pipeline.judge.score import Labels, Scores
from trtq.pipeline.judge.steady import Mask, find_steady
from trtq.pipeline.judge.views import Key, OutputViews, create_views
from trtq.pipeline.judge.widen import has_bf16, without_bf16
from trtq.pipeline.judge.witness import open_reference
from trtq.records import LogitsComparison, OutputComparison

_WORK = "comparing models"
_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_NEVER_SWAPPED_MB = 1 << 30
_SCORES = ("logit", "score", "prob", "softmax", "class")
"""In the names of outputs that hold scores of classes."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models against each other.

    Attributes:
        outputs: Every output of every pair.
        accuracy: What the metric says of each model, 0 to 1; empty without labels.
        num_samples: How many samples were compared.
        data: The data, as a person reads it.
        logits: The outputs that are logits of a language model, once more.
        metric: "top-1", "top-5", or `script.py:function`.
        top5: The share of answers among the best five; empty unless the metric is "top-1" of over 10 classes.
        doubts: Why what was measured proves nothing, if so.
        scored: The outputs that the metric looks at.
    """

    outputs: tuple[OutputComparison, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    num_samples: int = 0
    data: str = ""
    logits: tuple[LogitsComparison, ...] = ()
    metric: str = "top-1"
    top5: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()


def compare_models(
    models: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]],
    batches: Batches,
    labels: Labels | None = None,
    progress: Progress = lambda _: None,
    engines: Sequence[Any] = (),
    views: OutputViews | None = None,
) -> Comparison:
    """Returns how far the models are apart, run by Polygraphy's Comparator on ONNX Runtime.

    Graph optimizations are off where anything is rounded, so that the arithmetic is that of the Q/DQ graph.
    What an engine holds in FP16 or BF16 is rounded to it (`emulate_halves`), so that an overflow shows. One
    batch is in memory at a time, and the reference's outputs for all of them if they are small.

    Args:
        models: The files by the names that the result uses.
        pairs: (candidate, reference) names to compare.
        batches: The data, checked against the models' inputs.
        labels: Where the labels are, and how answers are scored.
        progress: Called after every batch.
        engines: Further models: Polygraphy runners, each with its name.
        views: How outputs are looked at; None: as the reference that is judged by nothing else says.

    Raises:
        ModelError: ONNX Runtime cannot run one of them, or their outputs differ in name or shape.
        DataError: The data or the labels do not fit, or a metric of the user's own fails.
        UsageError: It is not clear which output the labels belong to.
    """
    metrics: dict[tuple[str, str, Key], OutputMetrics] = defaultdict(OutputMetrics)
    logits: dict[tuple[str, str, str], LogitsMetrics] = defaultdict(LogitsMetrics)
    names = (*models, *(runner.name for runner in engines))
    scores = Scores(labels, names) if labels is not None else None
    changes: dict[tuple[str, Key], OutputChange] = defaultdict(OutputChange)
    compared = list(dict.fromkeys(name for pair in pairs for name in pair))
    token_inputs: dict[str, str | None] = {}  # by output; found in the first batch
    holds_scores: dict[Key, bool] = {}
    num_samples, sample_names = 0, list[str]()
    sessions: dict[str, PlainSession] = {name: open_compared(path) for name, path in models.items()}
    truth = _find_truth(pairs)
    is_stable = batches.content is not None  # a script may yield other data the second time
    recalled = RecallingSession(sessions[truth]) if truth in models and is_stable else None
    if recalled is not None:
        sessions[truth] = recalled
    codes = {name: read_coded_caches(path) for name, path in models.items()}
    given = {item.past for item in codes.get(truth, ())}  # whose data comes in codes
    floats = {name: [item for item in found if item.past not in given] for name, found in codes.items()}
    sessions_run = (take_floats(create_runner(item, name), floats[name]) for name, item in sessions.items())
    runners = [*sessions_run, *engines]
    if views is None:
        views = _open_views(models[truth]) if truth in models else OutputViews()
    steady = _find_steady([item for item in runners if item.name == truth], views, batches, labels)
    if recalled is not None:
        recalled.rewind()
    for feed, results in _run(runners, batches, labels):
        inputs = _drop(feed.arrays, [labels.array] if labels is not None else [])
        seen = {name: views.see(outputs, inputs, feed.num_samples) for name, outputs in results.items()}
        for model in compared:
            for key, values in seen[model].items():
                changes[model, key].add(values, feed.num_samples, steady.get(key))
        for candidate, reference in pairs:
            for key in seen[reference]:
                ours, theirs = _select_output(seen, candidate, reference, key)
                output, part = key
                if key not in holds_scores:
                    holds_scores[key] = not part and _holds_scores(output, results[reference], labels)
                metrics[candidate, reference, key].add(
                    ours, theirs, feed.num_samples, steady=steady.get(key), is_scores=holds_scores[key]
                )
                if part:
                    continue
                if output not in token_inputs:
                    token_inputs[output] = find_tokens(output, theirs, inputs)
                if (name := token_inputs[output]) is not None:
                    mask = find_mask(inputs[name], inputs)
                    logits[candidate, reference, output].add(ours, theirs, inputs[name], mask)
        if scores is not None:
            scores.add(results, feed)
        num_samples += feed.num_samples
        sample_names += feed.names or [""] * feed.num_samples
        progress(feed.num_samples)
    return Comparison(
        tuple(
            _name_samples(
                item.result(candidate, reference, *key, changes[reference, key], changes[candidate, key]),
                sample_names,
            )
            for (candidate, reference, key), item in metrics.items()
        ),
        scores.result() if scores is not None else {},
        num_samples,
        batches.origin,
        tuple(item.result(*key) for key, item in logits.items()),
        labels.metric if labels is not None else "top-1",
        scores.top5() if scores is not None else {},
        scores.doubts() if scores is not None else (),
        scores.outputs if scores is not None else (),
    )


def read_coded_caches(path: Path) -> tuple[CodedCache, ...]:
    """Returns the caches of codes of an ONNX file."""
    return find_coded_caches(read_runnable(path)[0])


def take_floats(runner: Any, caches: Sequence[CodedCache]) -> Any:
    """Returns a runner whose caches of codes are given as numbers, and come as numbers."""
    if not caches:
        return runner
    inputs = {item.past: item.encode for item in caches}
    return create_converting_runner(runner, inputs, {item.present: item.decode for item in caches})


def _name_samples(found: OutputComparison, names: Sequence[str]) -> OutputComparison:
    """Returns a comparison whose worst samples have their names."""
    return replace(found, worst=tuple(replace(item, name=names[item.sample]) for item in found.worst))


def _find_truth(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns the reference that is judged by nothing else; empty if there is none."""
    judged = {candidate for candidate, _ in pairs}
    return next((reference for _, reference in pairs if reference not in judged), "")


def _open_views(path: Path) -> OutputViews:
    model, _ = _read_typed(path)
    return create_views(without_bf16(model) if has_bf16(model) else model)


def _find_steady(
    truth: Sequence[Any], views: OutputViews, batches: Batches, labels: Labels | None
) -> dict[Key, Mask]:
    """Returns what hardly changes in the outputs of the one runner that is given, if any."""
    if not truth:
        return {}
    runs = _run(truth, batches, labels)
    array = [labels.array] if labels is not None else []
    with closing(runs):
        return find_steady(
            (views.see(results[truth[0].name], _drop(feed.arrays, array), feed.num_samples), feed.num_samples)
            for feed, results in runs
        )


def _holds_scores(output: str, outputs: Mapping[str, NDArray[Any]], labels: Labels | None) -> bool:
    """Whether an output holds scores of classes, and no boxes or states: by labels, name or values."""
    has_labels = labels is not None and labels.array is not None
    if has_labels and (labels.output if labels and labels.output else [*outputs]) in (output, [output]):
        return True
    return any(word in output.lower() for word in _SCORES) or holds_probabilities(outputs[output])


def _run(
    runners: Sequence[Any], batches: Batches, labels: Labels | None
) -> Generator[tuple[Feed, dict[str, dict[str, NDArray[Any]]]], None, None]:
    """Yields each feed with the outputs of each model."""
    comparator = lazy.require("polygraphy.comparator", None, _WORK).Comparator
    logger = lazy.require("polygraphy.logger", None, _WORK).G_LOGGER
    exception = lazy.require("polygraphy.exception", None, _WORK).PolygraphyException
    current: list[Feed] = []

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        for feed in batches:
            current[:] = [feed]
            yield to_plain(_drop(feed.arrays, [labels.array] if labels is not None else []))

    with logger.verbosity(logger.CRITICAL + 1), _without_torch():  # what it prints is in our message
        try:
            for results in comparator.run(runners, data_loader=feeds(), streaming=True):
                yield current[0], {name: dict(iterations[0].items()) for name, iterations in results}
        except (*list_runtime_errors(), exception) as error:
            source = current[0].source if current else batches.origin
            text = " ".join(str(error).split())[:400]
            raise ModelError(f"running the models on {source} failed: {text}") from error


@contextmanager
def _without_torch() -> Iterator[None]:
    """Has Polygraphy not add up the bytes of outputs, for which it imports PyTorch where it is installed.

    It does so to advise swapping them to the disk, which a threshold that none reaches says is done.
    """
    config: Any = lazy.require("polygraphy.config", None, _WORK)
    before = config.ARRAY_SWAP_THRESHOLD_MB
    config.ARRAY_SWAP_THRESHOLD_MB = _NEVER_SWAPPED_MB if before < 0 else before
    try:
        yield
    finally:
        config.ARRAY_SWAP_THRESHOLD_MB = before


def _drop(arrays: Mapping[str, NDArray[Any]], names: Collection[str | None]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in arrays.items() if name not in names}


def open_compared(path: Path) -> Session:
    """Returns the session in which a file is compared: with its roundings, and unoptimized where it rounds.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    model, is_changed = _read_typed(path)
    rounded = emulate_halves(model) or make_quantize_exact(model)
    if rounded is None and not is_changed:
        return open_reference(path, optimize=_computes_in_float32(model))
    return open_session(rounded or model, optimize=False)


def _computes_in_float32(model: ir.Model) -> bool:
    """Whether a model is known to round to no smaller type, so that the fastest kernels compute the same."""
    nodes = [*model.graph.all_nodes()]
    dtypes = {value.dtype for node in nodes for value in node.outputs if value.name}
    if any(dtype is None or (dtype.is_floating_point() and dtype not in _EXACT) for dtype in dtypes):
        return False
    return not any(node.domain or "Quantize" in node.op_type or "Integer" in node.op_type for node in nodes)


def _read_typed(path: Path) -> tuple[ir.Model, bool]:
    """Returns a model with the dtypes of its tensors, and whether ONNX Runtime takes it in another form only.

    What is wrong with the file is said in words.
    """
    model, is_changed = read_runnable(path)
    if any(value.dtype is None for node in model.graph.all_nodes() for value in node.outputs):
        with suppress(ModelError):  # ONNX Runtime says what is wrong, if it is
            infer_shapes(model)
    return model, is_changed


def _select_output(
    seen: Mapping[str, Mapping[Key, NDArray[Any]]], candidate: str, reference: str, key: Key
) -> tuple[NDArray[Any], NDArray[Any]]:
    theirs, ours = seen[reference][key], seen[candidate].get(key)
    if ours is None:
        raise ModelError(
            f"{candidate} has no output {key[0]!r} as {reference} has; "
            f"its outputs are {', '.join(output for output, part in seen[candidate] if not part)}"
        )
    if ours.shape != theirs.shape:
        raise ModelError(
            f"output {key[0]!r} has shape {ours.shape} in {candidate} and {theirs.shape} in {reference}; "
            f"data-dependent shapes cannot be compared"
        )
    return ours, theirs
