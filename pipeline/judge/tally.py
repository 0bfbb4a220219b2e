"""What the outputs of models say of each other: by feed, and of all in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.errors import ModelError
from trtq.pipeline.judge.change import BatchChange, OutputChange, measure_change
from trtq.pipeline.judge.logits import (
    LogitsMetrics,
    SequenceMarks,
    find_mask,
    find_tokens,
    measure_logits,
)
from trtq.pipeline.judge.metrics import BatchMarks, OutputMetrics, holds_probabilities, measure_batch
from trtq.pipeline.judge.runs import Results, drop
from trtq.pipeline.judge.score import Labels, ScoreMarks, Scores, measure_scores
from trtq.pipeline.judge.steady import Mask
from trtq.pipeline.judge.views import Key, OutputViews
from trtq.records import LogitsComparison, OutputComparison
from trtq.workers import Threads

_SCORES = ("logit", "score", "prob", "softmax", "class")
"""In the names of outputs that hold scores of classes."""
Pairs = Sequence[tuple[str, str]]
"""Names of models: candidate, reference."""
Place = tuple[str, str, Key]
"""Whose outputs are measured: a candidate and its reference, or empty and one model alone, and which."""
_Seen = Mapping[str, Mapping[Key, NDArray[Any]]]
"""The views of the outputs of each model."""
_EVERY = ("", "", ("", ""))
_AS_THEY_ARE = OutputViews()
_NOTHING = 1e-6
"""What is added to an input may be rounding if its squares have no larger share of those of the output."""


@dataclass(frozen=True, slots=True)
class Uneven:
    """The outputs of one feed have several sizes, since these depend on values."""

    num_samples: int


@dataclass(frozen=True, slots=True)
class UnevenOutput:
    """An output that was not compared, since its size depends on values, and differs.

    Attributes:
        candidate: The model that is judged.
        reference: The model that it is judged by.
        output: The output's name.
        num_samples: In how many samples the sizes differ.
    """

    candidate: str
    reference: str
    output: str
    num_samples: int


Marks = BatchMarks | BatchChange | tuple[SequenceMarks, ...] | ScoreMarks | Uneven
"""What one feed says of a place."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How outputs are looked at, which the first feeds tell.

    Attributes:
        steady: The values of the reference that hardly change.
        holds_scores: Of each output, whether it holds scores of classes.
        tokens: The input that holds the tokens of each output of logits.
    """

    steady: Mapping[Key, Mask] = field(default_factory=dict)
    holds_scores: Mapping[str, bool] = field(default_factory=dict)
    tokens: Mapping[str, str | None] = field(default_factory=dict)


def find_rules(
    pairs: Pairs, views: OutputViews, labels: Labels | None, feed: Feed, results: Results
) -> Rules:
    """Returns what the first feed tells, with the outputs of every reference."""
    inputs = drop(feed.arrays, [labels.array] if labels is not None else [])
    holds_scores: dict[str, bool] = {}
    tokens: dict[str, str | None] = {}
    for reference in dict.fromkeys(reference for _, reference in pairs):
        seen = views.see(results[reference], inputs, feed.num_samples)
        for output in results[reference]:
            if output not in holds_scores:
                holds_scores[output] = _holds_scores(output, results[reference], labels)
                tokens[output] = find_tokens(output, seen[output, ""], inputs)
    return Rules({}, holds_scores, tokens)


def _holds_scores(output: str, outputs: Mapping[str, NDArray[Any]], labels: Labels | None) -> bool:
    """Whether an output holds scores of classes, and no boxes or states: by labels, name or values."""
    has_labels = labels is not None and labels.array is not None
    if has_labels and (labels.output if labels and labels.output else [*outputs]) in (output, [output]):
        return True
    return any(word in output.lower() for word in _SCORES) or holds_probabilities(outputs[output])


def measure_feed(
    pairs: Pairs, views: OutputViews, labels: Labels | None, rules: Rules, feed: Feed, results: Results
) -> Iterator[tuple[Place, Marks]]:
    """Yields what one feed says, which several threads find out; a `Tally` adds it up.

    Raises:
        ModelError: The outputs of two models differ in name or shape.
        DataError, UsageError: The labels do not fit.
    """
    inputs = drop(feed.arrays, [labels.array] if labels is not None else [])
    seen = {name: views.see(outputs, inputs, feed.num_samples) for name, outputs in results.items()}
    work = _list_measurements(pairs, seen, views, rules, feed, inputs)
    yield from Threads().map(lambda item: (item[0], item[1]()), work)
    if labels is not None:
        yield _EVERY, measure_scores(labels, results, feed)


def _list_measurements(
    pairs: Pairs,
    seen: _Seen,
    views: OutputViews,
    rules: Rules,
    feed: Feed,
    inputs: Mapping[str, NDArray[Any]],
) -> Iterator[tuple[Place, Callable[[], Marks]]]:
    """Yields what there is to measure of one feed, and how; NumPy holds no other threads up meanwhile."""
    number = feed.num_samples
    for model in dict.fromkeys(name for pair in pairs for name in pair):
        for key, values in seen[model].items():
            steady, are_names = rules.steady.get(key), views.names.get(key)
            yield ("", model, key), partial(measure_change, values, number, steady, are_names=are_names)
    for candidate, reference in pairs:
        for key in seen[reference]:
            output, part = key
            if output in views.drawn:
                continue
            place = (candidate, reference, key)
            if output in views.open_sizes and _is_uneven(seen, candidate, reference, key):
                yield place, partial(Uneven, number)
                continue
            ours, theirs = _select_output(seen, candidate, reference, key)
            is_scores = not part and rules.holds_scores[output]
            steady = rules.steady.get(key)
            is_alike = theirs.ndim == seen[reference][output, ""].ndim  # a part may have fewer axes
            places = views.places.get(output, ()) if is_alike else ()
            task = partial(
                measure_batch,
                steady=steady,
                is_scores=is_scores,
                are_names=views.names.get(key),
                places=places,
            )
            yield place, partial(task, ours, theirs, number)
            if not part and (name := rules.tokens[output]) is not None:
                mask = find_mask(inputs[name], inputs)
                yield place, partial(measure_logits, ours, theirs, inputs[name], mask)


def _is_uneven(seen: _Seen, candidate: str, reference: str, key: Key) -> bool:
    ours, theirs = seen[candidate].get(key), seen[reference][key]
    if ours is None:
        return key[1] != ""  # parts are found in outputs of the right size alone
    return ours.ndim == theirs.ndim and ours.shape != theirs.shape


def _select_output(
    seen: _Seen, candidate: str, reference: str, key: Key
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
            f"give models whose outputs have the same shapes"
        )
    return ours, theirs


@dataclass(frozen=True, slots=True)
class Tally:
    """What all feeds say; they are added in their order, so that the sums are the same whoever measured."""

    scores: Scores | None = None
    changes: dict[tuple[str, Key], OutputChange] = field(default_factory=lambda: defaultdict(OutputChange))
    metrics: dict[Place, OutputMetrics] = field(default_factory=lambda: defaultdict(OutputMetrics))
    logits: dict[Place, LogitsMetrics] = field(default_factory=lambda: defaultdict(LogitsMetrics))
    uneven: dict[Place, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, marks: Iterable[tuple[Place, Marks]]) -> None:
        """Takes in what the next feed says."""
        for place, item in marks:
            if isinstance(item, BatchChange):
                self.changes[place[1:]].add(item)
            elif isinstance(item, BatchMarks):
                self.metrics[place].add(item)
            elif isinstance(item, Uneven):
                self.uneven[place] += item.num_samples
            elif isinstance(item, ScoreMarks):
                assert self.scores is not None
                self.scores.add(item)
            else:
                self.logits[place].add(item)

    def compare_outputs(
        self, samples: Sequence[str], views: OutputViews = _AS_THEY_ARE, left: Collection[str] = ()
    ) -> tuple[OutputComparison, ...]:
        """Returns the comparison of every output of every pair.

        What is uneven is left out: where the sizes were equal, rows may still be those of other objects. So
        is what is added to the input where it is next to nothing.

        Args:
            samples: Their names.
            views: How the outputs were looked at.
            left: The outputs that are left to a metric.
        """
        return tuple(
            replace(
                item.result(
                    candidate, reference, *key, self.changes[reference, key], self.changes[candidate, key]
                ).with_names(samples),
                is_added=views.is_added(key),
                is_ranked=key[0] in views.ranked,
                is_left_to_metric=key[0] in left,
            )
            for (candidate, reference, key), item in self.metrics.items()
            if (candidate, reference, key) not in self.uneven
            and not (views.is_added(key) and self._is_nothing(candidate, reference, key))
        )

    def _is_nothing(self, candidate: str, reference: str, key: Key) -> bool:
        """Whether a part has no more of its output than rounding to FP16 would have."""
        whole, part = (self.metrics[candidate, reference, place] for place in ((key[0], ""), key))
        squares = whole.judged.reference_squares + whole.apart.reference_squares
        return part.judged.reference_squares + part.apart.reference_squares <= _NOTHING * squares

    def compare_logits(self) -> tuple[LogitsComparison, ...]:
        """Returns the comparison of every output of logits of every pair."""
        return tuple(
            item.result(candidate, reference, output)
            for (candidate, reference, (output, part)), item in self.logits.items()
            if (candidate, reference, (output, part)) not in self.uneven
        )

    def list_uneven(self) -> tuple[UnevenOutput, ...]:
        """Returns the outputs that were left out of each pair."""
        return tuple(
            UnevenOutput(candidate, reference, output, count)
            for (candidate, reference, (output, part)), count in self.uneven.items()
            if not part
        )
