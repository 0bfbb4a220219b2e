"""In which format each layer is held so that the gate holds, at the least cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from trtq.calibrators.batches import Batches
from trtq.calibrators.observe import Progress
from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.costs import FLOAT, Costs
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.sensitivity import Effect, count_at_a_time, measure, measure_groups, split_in_groups
from trtq.pipeline.judge.shortest import ShortestSearch
from trtq.pipeline.judge.switchable import Switchable
from trtq.workers import Workers

_MARGIN = 0.9
"""Of the error that the gate allows, and of the points, so much may be used up on the data that the choice is
made on: other data asks for more, and so does FP16, which the search does not compute in."""
_OVERHEADS = (0.0, 0.002)
"""What a raised layer costs besides its own cost, as shares of that of the whole model in FP16: conversions
before and behind it."""
_SENSITIVITY_PASSES = 8
_MOST_PASSES = 15
_FEWEST_ROUNDS = 5
"""Of measuring in the search; further ones, and taking steps back, are for what the passes allow."""
_COUNTS_EACH = 5
"""So many counts are measured at a time where more steps must be taken."""
_MOST_RETURNED = 4
_WORTH_RETURNING = 0.01

Forms = Mapping[str, str]
"""The name of the format of each layer; `FLOAT` where it is not quantized."""


class Step(NamedTuple):
    """A layer that is raised to a more exact format."""

    layer: str
    form: str


@dataclass(slots=True)
class EffectMeter:
    """Measures mixtures of layers in several formats, and counts what that costs.

    Attributes:
        session: The model, of which every layer can be switched.
        quantized: Maps what is wanted of each layer to the formats of those that are quantized then: an Add
            after a float convolution may not be.
        followers: Layers that have the format of another one, by their names.
        labels: Where the labels are, and how answers are scored.
        progress: Called after every batch.
        samples_run: How often a sample goes through the model where one process measures: a search that is
            bounded by it chooses the same with any workers.
        workers: Who share the measurements; None: this process.
    """

    session: Switchable
    quantized: Callable[[Forms], Forms]
    followers: Mapping[str, str] = field(default_factory=dict)
    labels: Labels | None = None
    progress: Progress = lambda _: None
    samples_run: int = 0
    workers: Workers | None = None

    def __post_init__(self) -> None:
        """Has the model travel to each worker once, whatever is measured."""
        if self.workers is not None:
            self.session = self.session.share(self.workers)

    def measure_alone(self, pairs: Sequence[Step], batches: Batches) -> dict[Step, Effect]:
        """Returns the effect of each of these layers alone in this format, and all others in float."""
        at_a_time = count_at_a_time(self.workers, self.labels)
        parts = [*split_in_groups(pairs, mixtures_each=1, at_a_time=at_a_time)]
        groups = [{str(index): self._spread(pair) for index, pair in enumerate(part)} for part in parts]
        measured = measure_groups(
            self.session,
            groups,
            batches,
            self.labels,
            lambda _, num_samples: self.progress(num_samples),
            self.workers,
            for_gate=True,
        )
        found, num_samples = dict[Step, Effect](), 0
        for part, seen in zip(parts, measured, strict=True):
            found |= {pair: seen.effects[str(index)] for index, pair in enumerate(part)}
            num_samples = seen.num_samples
        passes = sum(len(part) + 1 for part in split_in_groups(pairs, mixtures_each=1))
        self.samples_run += num_samples * passes
        return found

    def _spread(self, pair: Step) -> dict[str, str]:
        behind = [name for name, leader in self.followers.items() if leader == pair.layer]
        return dict.fromkeys((pair.layer, *behind), pair.form)

    def measure_forms(
        self, mixtures: Mapping[str, Forms], batches: Batches
    ) -> tuple[Mapping[str, Effect], float | None]:
        """Returns the effect of each mixture, by its name, and the float model's score."""
        wanted = {name: self.quantized(forms) for name, forms in mixtures.items()}
        found = measure(
            self.session, wanted, batches, self.labels, self.progress, self.workers, for_gate=True
        )
        self.samples_run += found.num_samples * (len(mixtures) + 1)
        return found.effects, found.float_score


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The formats that are chosen.

    Attributes:
        start: The cheapest format of each layer.
        order: All steps away from there, in the order in which further ones would be taken.
        count: How many of them are taken.
        alone: The effect of each layer alone in each of its formats.
    """

    start: Forms
    order: tuple[Step, ...]
    count: int
    alone: Mapping[Step, Effect]

    def forms(self, count: int | None = None) -> dict[str, str]:
        """Returns the format of each layer after so many steps; None: those that are taken."""
        return {**self.start, **dict(self.order[: self.count if count is None else count])}

    def kept(self, count: int | None = None) -> tuple[str, ...]:
        """Returns the layers that are float after so many steps, in the order of the steps."""
        steps = self.order[: self.count if count is None else count]
        return tuple(step.layer for step in steps if step.form == FLOAT)

    @property
    def is_more_exact(self) -> bool:
        """Whether there are steps that are not taken."""
        return self.count < len(self.order)


@dataclass(frozen=True, slots=True)
class DataSize:
    """How much data there is."""

    num_feeds: int
    num_samples: int


def choose_layers(
    meter: EffectMeter, costs: Costs, gate: AccuracySpec, batches: Batches, size: DataSize
) -> LayerChoice:
    """Returns the cheapest formats for which the gate holds on this data, whose size bounds the search.

    1. Every layer is quantized alone in each of its formats, on a part of the data. Rounding errors of
       different layers are nearly independent, so the power of the error at the output is nearly the sum of
       their powers (the additive model of Zhou et al., "Adaptive Quantization for Deep Neural Network", AAAI
       2018, section 3).
    2. Every layer starts in its cheapest format. The steps to more exact ones are ordered by the error that
       each saves for what it costs, in two ways: by the cost alone, and with an overhead for each step. Here
       the parts that an output is joined of count alike.
    3. The shortest beginning of each order that holds the gate is found by measuring: where the model of 1
       puts it, scaled by a power to what was measured, and in some rounds by bisection. The cheaper one is
       taken.
    4. The dearest of its steps that the gate holds without is taken back.

    Args:
        meter: Measures them.
        costs: Of each layer in each format that it may have, the first of equal ones preferred. Without
            `FLOAT` among them a layer stays quantized, and all steps together may not hold the gate.
        gate: What must hold.
        batches: The data.
        size: That of the data.
    """
    pairs = [Step(layer, form) for layer, own in costs.items() for form in own if form != FLOAT]
    most = max(1, round(2 * _SENSITIVITY_PASSES * size.num_feeds / max(len(pairs), 1)))
    alone = meter.measure_alone(pairs, batches.take_every(0, math.ceil(size.num_feeds / most)))
    errors = {layer: dict.fromkeys(own, 0.0) for layer, own in costs.items()}
    for pair, effect in alone.items():
        errors[pair.layer][pair.form] = _sum_part_errors(effect, gate)
    start = {layer: min(own, key=lambda form: own[form]) for layer, own in costs.items()}
    orders = [_order(start, errors, costs, overhead) for overhead in _OVERHEADS]
    choices = {str(index): LayerChoice(start, order, 0, alone) for index, order in enumerate(orders)}
    searches = {
        key: ShortestSearch(_predict(start, item.order, errors), _MARGIN) for key, item in choices.items()
    }
    most_samples = _MOST_PASSES * 2 * size.num_samples
    for number in itertools.count():
        tried = {key: item.propose() for key, item in searches.items() if not item.is_done}
        if not tried or (number >= _FEWEST_ROUNDS and meter.samples_run > most_samples):
            break
        mixtures = {key: choices[key].forms(count) for key, count in tried.items()}
        effects, score = meter.measure_forms(mixtures, batches)
        for key, count in tried.items():
            strain = _measure_strain(effects[key], score, gate)
            searches[key].learn(count, strain, holds=_holds(effects[key], score, gate))
    found = [replace(item, count=searches[key].enough) for key, item in choices.items()]
    cheapest = min(found, key=lambda item: _sum_costs(item, costs))
    if meter.samples_run <= most_samples:
        return _take_one_back(meter, cheapest, costs, gate, batches)
    return cheapest


def count_needed(
    meter: EffectMeter, choice: LayerChoice, gate: AccuracySpec, batches: Batches, times: int
) -> int:
    """Returns the lowest measured count of steps that holds the gate on this data, where fewer do not.

    Five counts are measured so many times: they spread from the one that is too low, ever further apart; then
    again, up to the lowest that holds. Each time costs three passes, as the float model runs beside them.
    """
    too_few, enough = choice.count, len(choice.order)
    for _ in range(times):
        counts = _spread_counts(too_few, enough)
        if not counts:
            break
        effects, score = meter.measure_forms({str(count): choice.forms(count) for count in counts}, batches)
        holding = [count for count in counts if _holds(effects[str(count)], score, gate)]
        enough = min(holding, default=enough)
        too_few = max((count for count in counts if count < enough), default=too_few)
    return enough


def _spread_counts(low: int, high: int) -> list[int]:
    """Returns up to five numbers between the two, at distances from the lower that grow by one factor."""
    parts = (place / (_COUNTS_EACH + 1) for place in range(1, _COUNTS_EACH + 1))
    found = {low + round((high - low) ** part) for part in parts}
    return sorted(count for count in found if low < count < high)


def _order(
    start: Forms, errors: Mapping[str, Mapping[str, float]], costs: Costs, overhead: float
) -> tuple[Step, ...]:
    """Returns the steps of all layers; those of one layer in their own order, as each is worth less."""
    worth: dict[Step, float] = {}
    for layer, form in start.items():
        worth |= _list_steps(layer, form, errors[layer], costs[layer], overhead)
    return tuple(sorted(worth, key=lambda step: -worth[step]))


def _list_steps(
    layer: str, form: str, errors: Mapping[str, float], costs: Mapping[str, float], overhead: float
) -> Iterator[tuple[Step, float]]:
    """Yields the steps of one layer, each with the error that it saves for its cost: the best next one."""
    place, least = form, math.inf
    while True:
        better = {other: errors[place] - errors[other] for other in errors if errors[other] < errors[place]}
        if FLOAT in errors and place != FLOAT:
            better.setdefault(FLOAT, 0.0)  # saves nothing where there is no error, and is the last of all
        if not better:
            return
        worth = {
            other: gain / (max(costs[other] - costs[place], 0.0) + overhead + 1e-9)
            for other, gain in better.items()
        }
        place = max(worth, key=lambda other: worth[other])
        least = min(least, worth[place])
        yield Step(layer, place), least


def _predict(start: Forms, order: Sequence[Step], errors: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Returns the sum of the errors of all layers after each count of steps."""
    forms, found = dict(start), []
    for step in (None, *order):
        if step is not None:
            forms[step.layer] = step.form
        found.append(sum(errors[layer][form] for layer, form in forms.items()))
    return found


def _sum_costs(choice: LayerChoice, costs: Costs) -> float:
    own = sum(costs[layer][form] for layer, form in choice.forms().items())
    return own + _OVERHEADS[-1] * choice.count


def _sum_errors(effect: Effect, gate: AccuracySpec) -> float:
    """Returns the error in units of what the gate allows, added over the outputs."""
    return sum(item.noise for item in effect.outputs.values()) / _allowed_noise(gate)


def _sum_part_errors(effect: Effect, gate: AccuracySpec) -> float:
    """Returns the same, with all parts of an output alike: the scores beside boxes, which are far louder."""
    total = 0.0
    for name, whole in effect.outputs.items():
        noises = _finite_noises(effect, name)
        total += sum(noises) / len(noises) if noises and math.isfinite(whole.noise) else whole.noise
    return total / _allowed_noise(gate)


def _finite_noises(effect: Effect, output: str) -> list[float]:
    """Returns the noise of each part of an output, but where one is silent."""
    noises = [item.noise for item in effect.parts.get(output, {}).values()]
    return [noise for noise in noises if math.isfinite(noise)]


def _allowed_noise(gate: AccuracySpec) -> float:
    """Returns the noise that is allowed: one at right angles to an output that leaves it the least cosine."""
    return gate.min_cosine**-2 - 1 if 0 < gate.min_cosine < 1 else 1.0


def _holds(effect: Effect, float_score: float | None, gate: AccuracySpec) -> bool:
    wanted = 1 - _MARGIN * (1 - gate.min_cosine)
    if not effect.cosine >= wanted:  # NaN does not
        return False
    return _drop(effect, float_score) <= _MARGIN * gate.max_drop


def _drop(effect: Effect, float_score: float | None) -> float:
    """Returns how many points of the float model's score are lost; 0 without a score."""
    if effect.score is None or float_score is None:
        return 0.0
    return round(100 * (float_score - effect.score), 9)


def _measure_strain(effect: Effect, float_score: float | None, gate: AccuracySpec) -> float:
    """Returns how much of what the gate allows is used up, by the error or by the score: 1 is all of it."""
    lost = _drop(effect, float_score) / gate.max_drop if gate.max_drop > 0 else 0.0
    noises = (max([whole.noise, *_finite_noises(effect, name)]) for name, whole in effect.outputs.items())
    return max(sum(noises) / _allowed_noise(gate), lost)


def _take_one_back(
    meter: EffectMeter, choice: LayerChoice, costs: Costs, gate: AccuracySpec, batches: Batches
) -> LayerChoice:
    """Returns the choice without the dearest step that the gate holds without."""
    steps, forms = choice.order[: choice.count], choice.forms()
    before: dict[str, str] = dict(choice.start)
    prices: dict[Step, float] = {}
    for step in steps:
        if forms[step.layer] == step.form:  # the last of its layer
            prices[step] = costs[step.layer][step.form] - costs[step.layer][before[step.layer]]
        before[step.layer] = step.form
    dear = [step for step in steps[:-1] if prices.get(step, 0.0) > _WORTH_RETURNING]
    if not dear:
        return choice
    dear = sorted(dear, key=lambda step: -prices[step])[:_MOST_RETURNED]
    shorter = {str(step): _without(choice, step) for step in dear}
    effects, score = meter.measure_forms({key: item.forms() for key, item in shorter.items()}, batches)
    return next((item for key, item in shorter.items() if _holds(effects[key], score, gate)), choice)


def _without(choice: LayerChoice, step: Step) -> LayerChoice:
    """Returns the choice without a step, which comes first of what would be taken then."""
    taken = tuple(item for item in choice.order[: choice.count] if item != step)
    order = (*taken, step, *choice.order[choice.count :])
    return LayerChoice(choice.start, order, choice.count - 1, choice.alone)
