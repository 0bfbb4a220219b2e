"""How good the answers of each model are: top-1, top-5, or what a function of the user's own says."""

from __future__ import annotations

from collections import Counter, UserDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.arrays import count_samples
from trtq.calibrators.batches import Feed
from trtq.errors import DataError, UsageError
from trtq.models.script import load_function, run_in_place
from trtq.models.spec import METRICS, AccuracySpec

Outputs = Mapping[str, NDArray[Any]]
OwnFunction = Callable[[Outputs, NDArray[Any] | None], Any]


@dataclass(frozen=True, slots=True)
class Labels:
    """Where the right answers are, and how answers are scored by them.

    Attributes:
        array: The name of the array in each feed: whole numbers, shape (samples,), or what the user's own
            metric wants, shape (samples, ...); None if that needs none.
        output: The output that holds the class scores; None if the model has only one.
        metric: "top-1", "top-5" or `script.py:function`.
        function: That function, if `load_labels` has run its script already.
    """

    array: str | None
    output: str | None = None
    metric: str = METRICS[0]
    function: OwnFunction | None = field(default=None, compare=False, repr=False)

    @property
    def is_own(self) -> bool:
        """Whether the metric is a function of the user's."""
        return self.metric not in METRICS

    def __reduce__(self) -> tuple[type[Labels], tuple[str | None, str | None, str]]:
        """Pickles all but the function, which is called where it was loaded."""
        return Labels, (self.array, self.output, self.metric)


def load_labels(labels: Labels | None) -> Labels | None:
    """Returns the labels with their metric's script run, so that several comparisons run it once."""
    own = None if labels is None else AccuracySpec(metric=labels.metric).script
    return labels if labels is None or own is None else replace(labels, function=load_function(*own))


def name_metric(metric: str) -> str:
    """Returns what to call a metric: `accuracy`, `top-5 accuracy`, `f1 of metric.py`."""
    if metric in METRICS:
        return "accuracy" if metric == METRICS[0] else f"{metric} accuracy"
    script, _, function = metric.rpartition(":")
    return f"{function} of {Path(script).name}"


def format_score(value: float, metric: str) -> str:
    """Returns a score for people: shares in per cent, other numbers as they are."""
    return f"{value:.2%}" if metric in METRICS else f"{value:.4f}"


@dataclass(frozen=True, slots=True)
class ScoreMarks:
    """What one feed says of the answers of every model.

    Attributes:
        chosen: The outputs that are scored; none where a function of the user's own chooses.
        hits: How many answers are right, by metric and model.
        count: How many answers there are.
        num_classes: From which each is chosen.
        outputs: All of them by model, where a function of the user's own scores them at the end; else none.
        labels: For that function; None if it needs none.
        answers: How often each class is the right answer.
    """

    chosen: tuple[str, ...]
    hits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    count: int = 0
    num_classes: int = 0
    outputs: Mapping[str, Outputs] = field(default_factory=dict)
    labels: NDArray[Any] | None = None
    answers: Mapping[int, int] = field(default_factory=dict)


def measure_scores(labels: Labels, results: Mapping[str, Outputs], feed: Feed) -> ScoreMarks:
    """Returns what the outputs of every model for one feed say.

    Raises:
        DataError, UsageError: The labels do not fit.
    """
    if labels.is_own:
        kept = {  # ONNX Runtime may return views of the inputs
            model: {name: np.array(array) for name, array in outputs.items()}
            for model, outputs in results.items()
        }
        return ScoreMarks((), outputs=kept, labels=_select_own_labels(feed, labels.array))
    hits: dict[str, dict[str, int]] = {name: {} for name in METRICS}
    num_classes = 0
    for model, outputs in results.items():
        scores, wanted = _select_scores(outputs, feed, labels)
        order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
        is_right = order[:, :5] == wanted[:, np.newaxis]
        hits["top-1"][model] = int(is_right[:, :1].sum())
        hits["top-5"][model] = int(is_right.sum())
        num_classes = scores.shape[1]
    right = select_labels(feed, str(labels.array)).reshape(-1)
    chosen = (labels.output,) if labels.output else tuple(next(iter(results.values()), {}))
    return ScoreMarks(chosen, hits, right.size, num_classes, answers=Counter(right.tolist()))


class Scores:
    """The scores of several models, added up batch by batch.

    A metric of the user's own is called once a model, at the end, with the outputs and labels of all the
    data: few metrics of a whole set are the mean of those of its batches. So these arrays are held in memory.
    """

    def __init__(self, labels: Labels, models: Sequence[str]) -> None:
        own = AccuracySpec(metric=labels.metric).script
        self._labels = labels
        self._own: _OwnMetric | None = None
        if own is not None:
            function = labels.function or load_function(*own)
            self._own = _OwnMetric(labels.metric, function, own[0], labels.array)
        self._hits = {name: dict.fromkeys(models, 0) for name in METRICS}
        self._models = models
        self._count = self._num_classes = 0
        self._answers: Counter[int] = Counter()
        self._doubts: tuple[str, ...] = ()
        self._outputs: dict[str, None] = {}

    def add(self, marks: ScoreMarks) -> None:
        """Takes in what `measure_scores` returned for one more feed."""
        self._outputs |= dict.fromkeys(marks.chosen)
        if self._own is not None:
            self._own.add(marks)
            return
        for metric, hits in self._hits.items():
            for name in self._models:
                hits[name] += marks.hits[metric][name]
        self._num_classes = marks.num_classes
        self._count += marks.count
        self._answers.update(marks.answers)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs that the scores vouch for; to be asked after `result`, which a function needs.

        Labels vouch for none where no model does clearly better than the same answer for all samples: two
        standard deviations of the share of right answers.
        """
        if self._own is not None:
            return tuple(sorted(self._own.read))
        metric = self._labels.metric
        best = max(self._hits[metric].values(), default=0)
        blind = sum(count for _, count in self._answers.most_common(5 if metric == "top-5" else 1))
        wrong = self._count - best
        is_clear = best - blind > 2 * (best * wrong / max(self._count, 1)) ** 0.5
        return tuple(self._outputs) if is_clear else ()

    def result(self) -> dict[str, float]:
        """Returns what the metric says of each model; DataError if it gives no number from 0 to 1."""
        if self._own is not None:
            found = self._own.result(self._models)
            if self._own.is_blind:
                self._doubts += (
                    f"the metric {self._labels.metric} says {next(iter(found.values())):g} of every model, "
                    f"and of outputs that are all zero or of the other sign, so it measures nothing",
                )
        else:
            found = {name: hits / self._count for name, hits in self._hits[self._labels.metric].items()}
        if self._labels.metric == "top-5" and 0 < self._num_classes <= 5:
            self._doubts += (f"top-5 accuracy is always 100 % of {self._num_classes} classes; use top-1",)
        if found and not self._doubts and max(found.values()) == 0:
            self._doubts += (
                f"{name_metric(self._labels.metric)} is 0 for every model, so none can lose any; see whether "
                f"the labels belong to the data",
            )
        if self._own is not None and not self._doubts and self._own.nonsense > min(found.values()):
            self._doubts += (
                f"the metric {self._labels.metric} says {self._own.nonsense:g} of outputs that are all zero "
                f"or of the other sign, and less of a model, {min(found.values()):g}; it must return "
                f"more the better they are, and the labels must belong to the data",
            )
        return found

    def doubts(self) -> tuple[str, ...]:
        """Returns why the scores prove nothing, if so; to be asked after `result`."""
        return self._doubts

    def top5(self) -> dict[str, float]:
        """Returns the share of answers among the best five, beside top-1 of more than ten classes."""
        if self._labels.metric != "top-1" or self._num_classes <= 10:
            return {}
        return {name: hits / self._count for name, hits in self._hits["top-5"].items()}


def _select_scores(
    outputs: Outputs, feed: Feed, labels: Labels
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    name = labels.output
    if name is None:
        if len(outputs) != 1:
            raise UsageError(
                f"the model has the outputs {', '.join(outputs)}; name the one with the class scores: "
                f"`output` in [evaluation] of model.toml"
            )
        name = next(iter(outputs))
    refuse_unknown_output(name, outputs)
    scores, wanted = outputs[name], select_labels(feed, str(labels.array))
    if scores.ndim != 2 or wanted.shape != scores.shape[:1] or not np.issubdtype(wanted.dtype, np.integer):
        raise DataError(
            f"labels {labels.array!r} of {feed.source} are {wanted.dtype} of shape {wanted.shape} and output "
            f"{name!r} has shape {scores.shape}; accuracy needs whole numbers (N,) and scores (N, classes)"
        )
    outside = (wanted < 0) | (wanted >= scores.shape[1])
    if outside.any():
        raise DataError(
            f"label {wanted[outside][0]} of sample {int(outside.argmax())} of {feed.source} is not a "
            f"class of output {name!r}, which has the classes 0 to {scores.shape[1] - 1}"
        )
    return scores, wanted


def refuse_unknown_output(name: str | None, outputs: Iterable[str]) -> None:
    """Raises UsageError if the output with the class scores is named, and is none of the model's."""
    if name is not None and name not in outputs:
        raise UsageError(f"the model has no output {name!r}; its outputs are {', '.join(outputs)}")


def select_labels(feed: Feed, array: str) -> NDArray[Any]:
    """Returns the labels of a feed.

    Raises:
        DataError: It has no array of this name.
    """
    if array not in feed.arrays:
        raise DataError(f"{feed.source} has no labels {array!r}; it has {', '.join(feed.arrays)}")
    return np.asarray(feed.arrays[array])


def _select_own_labels(feed: Feed, array: str | None) -> NDArray[Any] | None:
    """Returns the labels for a function of the user's own, one a sample; None if it needs none."""
    if array is None:
        return None
    labels = np.atleast_1d(select_labels(feed, array))
    count = count_samples({name: item for name, item in feed.arrays.items() if name != array})
    if count > 1 and len(labels) != count:
        raise DataError(
            f"labels {array!r} of {feed.source} have shape {labels.shape}, the feed has {count} "
            "samples; give one label per sample"
        )
    return labels


class _Watched(UserDict[str, NDArray[Any]]):
    """Outputs that note which of them are read."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__(outputs)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> NDArray[Any]:
        found = super().__getitem__(name)
        self.read.add(name)
        return found


@dataclass(slots=True)
class _OwnMetric:
    """A function of the user's, and what it will be called with."""

    metric: str
    function: OwnFunction
    script: Path
    array: str | None
    outputs: dict[str, dict[str, list[NDArray[Any]]]] = field(default_factory=dict)
    labels: list[NDArray[Any]] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    """The outputs that the function has read."""
    is_blind: bool = False
    """After `result`: whether the function says the same of every model, and of nonsense."""
    nonsense: float = 0.0
    """After `result`: the most that it says of nonsense; 0 where each model is worse than the first."""

    def add(self, marks: ScoreMarks) -> None:
        for model, outputs in marks.outputs.items():
            kept = self.outputs.setdefault(model, defaultdict(list))
            for name, array in outputs.items():
                kept[name].append(array)
        if marks.labels is not None:
            self.labels.append(marks.labels)

    def result(self, models: Sequence[str]) -> dict[str, float]:
        labels = _join(self.labels, f"labels {self.array!r}", self.metric) if self.labels else None
        found: dict[str, float] = {}
        for model in models:
            outputs = {
                name: _join(arrays, f"output {name!r}", self.metric)
                for name, arrays in self.outputs.pop(model, {}).items()
            }
            score = self._call(outputs, labels, model)
            if not found and (second := self._call(outputs, labels, model)) != score:
                raise DataError(
                    f"the metric {self.metric} is not deterministic: of the same outputs of {model} it says "
                    f"{score:g} and then {second:g}; it must not draw random numbers nor keep anything"
                )
            found[model] = score
        first, *others = found.values()
        if not others or max(others) >= first:  # of the last model's outputs
            answers = [self._ask(wrong, labels) for wrong in _spoil(outputs)]
            self.is_blind = {*answers, *others} == {first}
            self.nonsense = max(answer or 0.0 for answer in answers)
        return found

    def _ask(self, outputs: Outputs, labels: NDArray[Any] | None) -> float | None:
        """Returns what the function says of nonsense; None: that something is wrong."""
        try:
            return self._call(outputs, labels, "no model")
        except DataError:
            return None

    def _call(self, outputs: Outputs, labels: NDArray[Any] | None, model: str) -> float:
        given = _Watched(outputs)
        try:
            with run_in_place(self.script):
                answer = self.function(given, labels)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"the metric {self.metric} failed on the outputs of {model}: {type(error).__name__}: {error}"
            ) from error
        self.read |= given.read
        value, returned = np.asarray(answer), f"the metric {self.metric} returned"
        if value.ndim or value.dtype.kind not in "fiu":
            raise DataError(f"{returned} {_describe(answer)} for {model}; it must return a number")
        if not 0 <= value <= 1:
            raise DataError(
                f"{returned} {value:g} for the outputs of {model}; it must return 0 to 1, higher is better, "
                f"since the gate counts in points: divide per cent by 100"
            )
        return float(value)


def _spoil(outputs: Outputs) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields outputs that no metric takes for the given ones."""
    yield {name: np.zeros_like(array) for name, array in outputs.items()}
    yield {name: ~array if array.dtype == bool else np.negative(array) for name, array in outputs.items()}


def _describe(answer: object) -> str:
    shape = f" of shape {answer.shape}" if isinstance(answer, np.ndarray) else ""
    return f"{type(answer).__name__}{shape}"


def _join(arrays: Sequence[NDArray[Any]], what: str, metric: str) -> NDArray[Any]:
    """Returns the arrays of all batches, joined along the first axis and not to be written to."""
    first = np.atleast_1d(arrays[0])
    for array in arrays:
        if np.atleast_1d(array).shape[1:] != first.shape[1:]:
            raise DataError(
                f"{what} has shape {first.shape} in one batch and {np.shape(array)} in another, which cannot "
                f"be joined along the first axis for the metric {metric}; pad the samples to one size, or "
                f"give batches of the same size"
            )
    joined = np.concatenate([np.atleast_1d(array) for array in arrays])
    joined.setflags(write=False)
    return joined
