"""What each quantized layer costs in accuracy, alone and with all the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from trtq.calibrators.batches import Batches
from trtq.calibrators.cursor import FeedCursor
from trtq.calibrators.observe import Progress
from trtq.json import FileKind, Measured
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.switchable import Switchable
from trtq.records import OutputComparison
from trtq.workers import Shared, Workers

_AT_ONCE = 8
"""Mixtures that share one run of the float model, and one pass over the data; their outputs are in memory."""
_FLOAT = "float"
_Name = TypeVar("_Name")
Mixtures = Mapping[str, Mapping[str, str]]
"""The format of each quantized layer, by a name of the mixture."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one output is from that of the float model; see `OutputComparison`."""

    cosine: Measured
    sqnr_db: Measured

    def __post_init__(self) -> None:
        """Takes a ratio that is NaN beside a finite cosine, as a file has it, for the infinite one it was."""
        if math.isnan(self.sqnr_db) and not math.isnan(self.cosine):
            object.__setattr__(self, "sqnr_db", math.inf if self.cosine > 0 else -math.inf)

    @property
    def noise(self) -> float:
        """The power of the error relative to that of the output: 0 if they are equal."""
        return math.inf if math.isnan(self.sqnr_db) else 10.0 ** (-self.sqnr_db / 10)


@dataclass(frozen=True, slots=True)
class Effect:
    """What comes of quantizing some layers: the distance of each output, and the score with a metric.

    Attributes:
        outputs: By name.
        score: None without a metric.
        parts: The distances of the tensors that an output is joined of, such as boxes and scores, by the
            output and the tensor.
    """

    outputs: Mapping[str, Distance]
    score: float | None = None
    parts: Mapping[str, Mapping[str, Distance]] = field(default_factory=dict)

    @property
    def sqnr_db(self) -> float:
        """The lowest of the outputs; NaN if one is broken."""
        return _worst(item.sqnr_db for item in self.outputs.values())

    @property
    def cosine(self) -> float:
        """The lowest of the outputs and their parts; NaN if one is broken."""
        parts = [item for distances in self.parts.values() for item in distances.values()]
        return _worst(item.cosine for item in (*self.outputs.values(), *parts))


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """One quantized layer.

    Attributes:
        name: The ONNX node.
        op_type: Its type.
        macs: Its multiply-accumulates a sample; 0 of nodes without weights.
        alone: With this layer quantized and all others float.
        without: With this layer float and all others quantized.
    """

    name: str
    op_type: str
    macs: int
    alone: Effect
    without: Effect


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The quantized layers of a model, in graph order.

    Attributes:
        model: The file.
        data: The data, as a person reads it.
        num_samples: How many samples were measured on.
        num_layers: How many layers the model has; while it is measured, `layers` holds fewer.
        metric: What `score` is: "top-1", "top-5", `script.py:function`.
        total_macs: Of all layers, quantized or not.
        float_score: The score of the float model; None without labels.
        all_quantized: With every layer quantized; None before it is measured.
        layers: Those that are measured.
        key: A digest of all that the numbers depend on; empty if that cannot be told.
    """

    model: str
    data: str
    num_samples: int
    num_layers: int
    metric: str = "top-1"
    total_macs: int = 0
    float_score: float | None = None
    all_quantized: Effect | None = None
    layers: tuple[LayerSensitivity, ...] = ()
    key: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every layer is measured."""
        return self.all_quantized is not None and len(self.layers) == self.num_layers


@dataclass(frozen=True, slots=True)
class MixtureEffects:
    """The effects of some mixtures, by name, the score of the float model, and the samples that were seen."""

    effects: Mapping[str, Effect] = field(default_factory=dict)
    float_score: float | None = None
    num_samples: int = 0


def measure(
    session: Switchable,
    mixtures: Mixtures,
    batches: Batches,
    labels: Labels | None = None,
    progress: Progress = lambda _: None,
    workers: Workers | None = None,
    *,
    for_gate: bool = False,
) -> MixtureEffects:
    """Returns what comes of quantizing the layers of each mixture, by one pass over the data.

    Args:
        session: The model.
        mixtures: The format of each quantized layer, by a name of the mixture.
        batches: The data.
        labels: Where the labels are, and how answers are scored.
        progress: Told of every batch.
        workers: Who take a feed each; None: this process.
        for_gate: Whether the cosines are to be those that the gate looks at, `judged_cosine`.

    Raises:
        ModelError, DataError, UsageError: As `compare_models`.
    """
    runners = [session.runner(name, layers) for name, layers in mixtures.items()]
    found = compare_models(
        {},
        [(name, _FLOAT) for name in mixtures],
        batches,
        labels,
        progress,
        [session.runner(_FLOAT, {}), *runners],
        session.views,
        workers,
    )
    effects = {
        name: to_effect(
            [item for item in found.outputs if item.candidate == name],
            found.accuracy.get(name),
            for_gate=for_gate,
        )
        for name in mixtures
    }
    return MixtureEffects(effects, found.accuracy.get(_FLOAT), found.num_samples)


def measure_groups(
    session: Switchable,
    groups: Sequence[Mixtures],
    batches: Batches,
    labels: Labels | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
    workers: Workers | None = None,
    *,
    for_gate: bool = False,
) -> Iterator[MixtureEffects]:
    """Yields what comes of the mixtures of each group, for which the data is passed over once.

    Args:
        session: The model.
        groups: Each as of `measure`.
        batches: The data.
        labels: Where the labels are, and how answers are scored.
        progress: Told of the samples that are done, behind the number of their group.
        workers: Who take a group each, or a feed each where a metric of the user's own is called here; None:
            this process.
        for_gate: As of `measure`.

    Raises:
        ModelError, DataError, UsageError: As `compare_models`.
    """
    if workers is None or (labels is not None and labels.is_own):
        for index, group in enumerate(groups):
            told = partial(progress, index)
            yield measure(session, group, batches, labels, told, workers, for_gate=for_gate)
        return
    shared = workers.share((session, FeedCursor(batches), labels))
    task = partial(_measure_on_worker, shared, for_gate=for_gate)
    for index, found in enumerate(workers.map(task, groups)):
        progress(index, found.num_samples)
        yield found


def _measure_on_worker(
    shared: Shared[tuple[Switchable, FeedCursor, Labels | None]], group: Mixtures, *, for_gate: bool
) -> MixtureEffects:
    """Returns what comes of the mixtures of one group."""
    session, cursor, labels = shared()
    return measure(session, group, cursor.open(), labels, for_gate=for_gate)


def to_effect(
    outputs: Sequence[OutputComparison], score: float | None = None, *, for_gate: bool = False
) -> Effect:
    """Returns the effect that the comparisons of one candidate with one reference show.

    Args:
        outputs: The comparisons.
        score: What the metric says of the candidate.
        for_gate: Whether the cosines are to be those that the gate looks at, `judged_cosine`.
    """
    wholes: dict[str, Distance] = {}
    parts: dict[str, dict[str, Distance]] = {}
    for item in outputs:
        distance = Distance(item.judged_cosine if for_gate else item.cosine, item.sqnr_db)
        if item.part:
            parts.setdefault(item.output, {})[item.part] = distance
        else:
            wholes[item.output] = distance
    return Effect(wholes, score, parts)


def split_in_groups(
    names: Iterable[_Name], *, mixtures_each: int, at_a_time: int = 1
) -> Iterator[Sequence[_Name]]:
    """Yields as many names as are measured in one pass over the data, in groups of the same size or one less.

    Args:
        names: What is measured.
        mixtures_each: How many mixtures measure one of them.
        at_a_time: How many groups are measured at a time: they are a multiple of it, so that nobody waits for
            the last ones.
    """
    found = list(names)
    needed = math.ceil(len(found) / (_AT_ONCE // mixtures_each))
    number = min(len(found), math.ceil(needed / at_a_time) * at_a_time)
    start = 0
    for index in range(number):
        stop = start + len(found) // number + (index < len(found) % number)
        yield found[start:stop]
        start = stop


def count_at_a_time(workers: Workers | None, labels: Labels | None) -> int:
    """Returns how many groups are measured at a time: one where a metric of the user's own is called here."""
    return 1 if workers is None or (labels is not None and labels.is_own) else workers.count()


FILE = FileKind(Sensitivity, "file of sensitivities", "trtq sensitivity", "sensitivity", has_null=True)


def to_json(sensitivity: Sensitivity) -> bytes:
    """Returns it as JSON; numbers that are not finite become null."""
    return FILE.encode(sensitivity)


def read_sensitivity(path: Path | str) -> Sensitivity:
    """Returns the sensitivity of a JSON file.

    Raises:
        ArtifactError: The file is missing, broken, of another kind or a newer schema, or incomplete.
    """
    return FILE.read(path)


def _worst(values: Iterator[float]) -> float:
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else min(found, default=math.inf)
