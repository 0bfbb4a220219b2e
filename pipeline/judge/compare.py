"""Runs models side by side on the same data and compares what comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.observe import Progress
from trtq.errors import ModelError
from trtq.models.ports import has_foreign_ports, to_plain
from trtq.models.session import Session, list_runtime_errors, open_session
from trtq.pipeline.graph.load import read_model
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.judge.change import OutputChange
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.halves import emulate_fp16
from trtq.pipeline.judge.logits import LogitsMetrics, find_mask, find_tokens
from trtq.pipeline.judge.metrics import OutputMetrics, holds_probabilities
from trtq.pipeline.judge.score import Labels, Scores
from trtq.pipeline.judge.steady import Mask, find_steady
from trtq.pipeline.judge.widen import has_bf16, without_bf16
from trtq.records import LogitsComparison, OutputComparison

_WORK = "comparing models"
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
    """

    outputs: tuple[OutputComparison, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)
    num_samples: int = 0
    data: str = ""
    logits: tuple[LogitsComparison, ...] = ()
    metric: str = "top-1"
    top5: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def compare_models(
    models: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]],
    batches: Batches,
    labels: Labels | None = None,
    progress: Progress = lambda _: None,
    engines: Sequence[Any] = (),
    unscored: Collection[str] = (),
) -> Comparison:
    """Returns how far the models are apart, run by Polygraphy's Comparator on ONNX Runtime.

    Graph optimizations are off, so that the arithmetic is that of the Q/DQ graph. What an engine holds in
    FP16 is rounded to it (`emulate_fp16`), so that an overflow shows. One batch is in memory at a time.

    Args:
        models: The files by the names that the result uses.
        pairs: (candidate, reference) names to compare.
        batches: The data, checked against the models' inputs.
        labels: Where the labels are, and how answers are scored.
        progress: Called after every batch.
        engines: Further models: Polygraphy runners, each with its name.
        unscored: Outputs that no metric gets.

    Raises:
        ModelError: ONNX Runtime cannot run one of them, or their outputs differ in name or shape.
        DataError: The data or the labels do not fit, or a metric of the user's own fails.
        UsageError: It is not clear which output the labels belong to.
    """
    metrics: dict[tuple[str, str, str], OutputMetrics] = defaultdict(OutputMetrics)
    logits: dict[tuple[str, str, str], LogitsMetrics] = defaultdict(LogitsMetrics)
    names = (*models, *(runner.name for runner in engines))
    scores = Scores(labels, names) if labels is not None else None
    changes: dict[tuple[str, str], OutputChange] = defaultdict(OutputChange)
    references = {reference for _, reference in pairs}
    token_inputs: dict[str, str | None] = {}  # by output; found in the first batch
    holds_scores: dict[str, bool] = {}
    num_samples = 0
    runners = [*_open_runners(models), *engines]
    steady = _find_steady(runners, pairs, batches, labels)
    for feed, results in _run(runners, batches, labels):
        inputs = _drop(feed.arrays, [labels.array] if labels is not None else [])
        for reference in references:
            for output, theirs in results[reference].items():
                changes[reference, output].add(theirs, feed.num_samples, steady.get(output))
        for candidate, reference in pairs:
            for output in results[reference]:
                ours, theirs = _select_output(results, candidate, reference, output)
                key = (candidate, reference, output)
                if output not in holds_scores:
                    holds_scores[output] = _holds_scores(output, results[reference], labels)
                metrics[key].add(
                    ours, theirs, feed.num_samples, steady=steady.get(output), is_scores=holds_scores[output]
                )
                if output not in token_inputs:
                    token_inputs[output] = find_tokens(output, theirs, inputs)
                if (name := token_inputs[output]) is not None:
                    logits[key].add(ours, theirs, inputs[name], find_mask(inputs[name], inputs))
        if scores is not None:
            scores.add({name: _drop(outputs, unscored) for name, outputs in results.items()}, feed)
        num_samples += feed.num_samples
        progress(feed.num_samples)
    return Comparison(
        tuple(item.result(*key, changes[key[1:]]) for key, item in metrics.items()),
        scores.result() if scores is not None else {},
        num_samples,
        batches.origin,
        tuple(item.result(*key) for key, item in logits.items()),
        labels.metric if labels is not None else "top-1",
        scores.top5() if scores is not None else {},
        scores.doubts() if scores is not None else (),
    )


def _open_runners(models: Mapping[str, Path]) -> list[Any]:
    runner = lazy.require("polygraphy.backend.onnxrt", None, _WORK).OnnxrtRunner
    return [runner(_open_session(path), name=name) for name, path in models.items()]


def _find_steady(
    runners: Sequence[Any], pairs: Sequence[tuple[str, str]], batches: Batches, labels: Labels | None
) -> dict[str, Mask]:
    """Returns what hardly changes in the outputs of the reference that is judged by nothing else."""
    judged = {candidate for candidate, _ in pairs}
    name = next((reference for _, reference in pairs if reference not in judged), None)
    if name is None:
        return {}
    runs = _run([runner for runner in runners if runner.name == name], batches, labels)
    with closing(runs):
        return find_steady((results[name], feed.num_samples) for feed, results in runs)


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

    with logger.verbosity(logger.CRITICAL + 1):  # what it prints when it raises is in our message
        try:
            for results in comparator.run(runners, data_loader=feeds(), streaming=True):
                yield current[0], {name: dict(iterations[0].items()) for name, iterations in results}
        except (*list_runtime_errors(), exception) as error:
            source = current[0].source if current else batches.origin
            text = " ".join(str(error).split())[:400]
            raise ModelError(f"running the models on {source} failed: {text}") from error


def _drop(arrays: Mapping[str, NDArray[Any]], names: Collection[str | None]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in arrays.items() if name not in names}


def _open_session(path: Path) -> Session:
    model = read_model(path)  # says in words what is wrong with the file
    if has_bf16(model):
        return open_session(without_bf16(model), optimize=False)
    if any(value.dtype is None for node in model.graph.all_nodes() for value in node.outputs):
        with suppress(ModelError):  # ONNX Runtime says what is wrong, if it is
            infer_shapes(model)
    rounded = emulate_fp16(model) or make_quantize_exact(model)
    if rounded is None and has_foreign_ports(model):
        rounded = model  # of which a session takes FP32
    return open_session(rounded or path, optimize=False)


def _select_output(
    results: Mapping[str, Mapping[str, NDArray[Any]]], candidate: str, reference: str, output: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    theirs, ours = results[reference][output], results[candidate].get(output)
    if ours is None:
        raise ModelError(
            f"{candidate} has no output {output!r} as {reference} has; "
            f"its outputs are {', '.join(results[candidate])}"
        )
    if ours.shape != theirs.shape:
        raise ModelError(
            f"output {output!r} has shape {ours.shape} in {candidate} and {theirs.shape} in {reference}; "
            f"data-dependent shapes cannot be compared"
        )
    return ours, theirs
