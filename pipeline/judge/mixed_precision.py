"""Which layers to keep out of INT8 so that the gate holds, at the least cost in multiplications."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trtq.calibrators.batches import Batches
from trtq.calibrators.observe import Progress
from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.sensitivity import Effect, measure, split_in_groups
from trtq.pipeline.judge.switchable import Switchable

_MARGIN = 0.9
"""Of the error that the gate allows, and of the points, so much may be used up on the data that the choice is
made on: other data asks for more, and so does FP16, which the search does not compute in."""
_OVERHEADS = (0.0, 0.002)
"""What a kept layer costs besides its own MACs, as shares of all MACs: conversions before and behind it."""
_SENSITIVITY_PASSES = 8
_NUM_GUESSES = 2
_MOST_PASSES = 15
_FEWEST_ROUNDS = 5
"""Of measuring in the search; further ones, and giving layers back, are for what the passes allow."""
_COUNTS_EACH = 5
"""So many counts are measured at a time where more layers must be kept."""
_MOST_RETURNED = 4
_WORTH_RETURNING = 0.01


@dataclass(slots=True)
class EffectMeter:
    """Measures mixtures of kept and quantized layers, and counts what that costs.

    Attributes:
        session: The model, of which every layer can be switched to float.
        quantized: Maps the layers that are kept to those that are quantized then: an Add after a kept
            convolution may not be.
        labels: Where the labels are, and how answers are scored.
        progress: Called after every batch.
        samples_run: How often a sample went through the model.
    """

    session: Switchable
    quantized: Callable[[Collection[str]], Collection[str]]
    labels: Labels | None = None
    progress: Progress = lambda _: None
    samples_run: int = 0

    def measure_alone(self, batches: Batches) -> dict[str, Effect]:
        """Returns the effect of quantizing each layer alone."""
        found: dict[str, Effect] = {}
        for names in split_in_groups(self.session.layers, mixtures_each=1):
            found |= self._measure({name: {name} for name in names}, batches)[0]
        return found

    def measure_kept(
        self, mixtures: Mapping[str, Sequence[str]], batches: Batches
    ) -> tuple[Mapping[str, Effect], float | None]:
        """Returns the effect of quantizing all but these layers, by mixture, and the float model's score."""
        return self._measure({name: self.quantized(layers) for name, layers in mixtures.items()}, batches)

    def _measure(
        self, mixtures: Mapping[str, Collection[str]], batches: Batches
    ) -> tuple[Mapping[str, Effect], float | None]:
        found = measure(self.session, mixtures, batches, self.labels, self.progress, for_gate=True)
        self.samples_run += found.num_samples * (len(mixtures) + 1)
        return found.effects, found.float_score


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The layers to keep.

    Attributes:
        kept: Their names.
        order: All layers, in the order in which further ones would be kept; begins with `kept`.
        alone: The effect of quantizing each layer alone.
    """

    kept: tuple[str, ...]
    order: tuple[str, ...]
    alone: Mapping[str, Effect]


@dataclass(frozen=True, slots=True)
class DataSize:
    """How much data there is."""

    num_feeds: int
    num_samples: int


def choose_layers(
    meter: EffectMeter, macs: Mapping[str, int], gate: AccuracySpec, batches: Batches, size: DataSize
) -> LayerChoice:
    """Returns the cheapest layers to keep for which the gate holds on this data, whose size bounds the cost.

    1. Every layer is quantized alone, on a part of the data. Rounding errors of different layers are nearly
       independent, so the power of the error at the output is nearly the sum of their powers (the additive
       model of Zhou et al., "Adaptive Quantization for Deep Neural Network", AAAI 2018, section 3).
    2. The layers are ordered by the error that keeping one saves for each multiplication that it costs, in
       two ways: by the MACs alone, and with an overhead for each layer. Here the parts that an output is
       joined of count alike.
    3. The shortest beginning of each order that holds the gate is found by measuring: first where the model
       of 1, scaled to what was measured, puts it, then by bisection. The cheaper one is taken.
    4. The dearest of its layers that the gate holds without is given back.
    """
    layers = meter.session.layers
    most = max(1, round(2 * _SENSITIVITY_PASSES * size.num_feeds / len(layers)))
    alone = meter.measure_alone(batches.take_every(0, math.ceil(size.num_feeds / most)))
    errors = {name: _sum_part_errors(effect, gate) for name, effect in alone.items()}
    total = max(sum(macs.values()), 1)
    shares = {name: macs.get(name, 0) / total for name in layers}
    orders = (_order(errors, shares, overhead) for overhead in _OVERHEADS)
    searches = {str(index): _PrefixSearch(order, errors) for index, order in enumerate(orders)}
    most_samples = _MOST_PASSES * 2 * size.num_samples
    for number in itertools.count():
        tried = {key: item.propose() for key, item in searches.items() if not item.is_done}
        if not tried or (number >= _FEWEST_ROUNDS and meter.samples_run > most_samples):
            break
        effects, score = meter.measure_kept(tried, batches)
        for key, layers in tried.items():
            strain = _measure_strain(effects[key], score, gate)
            searches[key].learn(len(layers), strain, holds=_holds(effects[key], score, gate))
    cheapest = min(searches.values(), key=lambda item: _cost(item.order[: item.enough], shares))
    kept = cheapest.order[: cheapest.enough]
    if meter.samples_run <= most_samples:
        kept = _give_one_back(meter, kept, shares, gate, batches)
    rest = tuple(name for name in cheapest.order if name not in kept)
    return LayerChoice(kept, (*kept, *rest), alone)


def count_needed(
    meter: EffectMeter, order: Sequence[str], too_few: int, gate: AccuracySpec, batches: Batches, times: int
) -> int:
    """Returns the lowest measured count of layers of the order that holds the gate on this data.

    Five counts are measured so many times: they spread from the one that is too low, ever further apart; then
    again, up to the lowest that holds. Each time costs three passes, as the float model runs beside them.
    """
    enough = len(order)
    for _ in range(times):
        counts = _spread_counts(too_few, enough)
        if not counts:
            break
        effects, score = meter.measure_kept({str(count): order[:count] for count in counts}, batches)
        holding = [count for count in counts if _holds(effects[str(count)], score, gate)]
        enough = min(holding, default=enough)
        too_few = max((count for count in counts if count < enough), default=too_few)
    return enough


def _spread_counts(low: int, high: int) -> list[int]:
    """Returns up to five numbers between the two, at distances from the lower that grow by one factor."""
    parts = (place / (_COUNTS_EACH + 1) for place in range(1, _COUNTS_EACH + 1))
    found = {low + round((high - low) ** part) for part in parts}
    return sorted(count for count in found if low < count < high)


def _order(errors: Mapping[str, float], shares: Mapping[str, float], overhead: float) -> tuple[str, ...]:
    cost = {name: share + overhead + 1e-9 for name, share in shares.items()}
    return tuple(sorted(shares, key=lambda name: -errors[name] / cost[name]))


def _cost(kept: Sequence[str], shares: Mapping[str, float]) -> float:
    return sum(shares[name] for name in kept) + _OVERHEADS[-1] * len(kept)


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


def _give_one_back(
    meter: EffectMeter, kept: Sequence[str], shares: Mapping[str, float], gate: AccuracySpec, batches: Batches
) -> tuple[str, ...]:
    """Returns the layers without the dearest one that the gate holds without."""
    dear = [name for name in kept[:-1] if shares[name] > _WORTH_RETURNING]
    if not dear:
        return tuple(kept)
    dear = sorted(dear, key=lambda name: -shares[name])[:_MOST_RETURNED]
    tried = {name: [item for item in kept if item != name] for name in dear}
    effects, score = meter.measure_kept(tried, batches)
    needless = next((name for name in tried if _holds(effects[name], score, gate)), None)
    return tuple(name for name in kept if name != needless)


@dataclass(slots=True)
class _PrefixSearch:
    """The search for the shortest beginning of an order that holds the gate; all of it does."""

    order: tuple[str, ...]
    errors: Mapping[str, float]
    too_few: int = -1
    enough: int = field(init=False)
    scale: float = 1.0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.enough = len(self.order)

    @property
    def is_done(self) -> bool:
        """Whether the shortest is found."""
        return self.enough - self.too_few <= 1

    def propose(self) -> tuple[str, ...]:
        """Returns the layers to keep in the next measurement."""
        self.rounds += 1
        count = 0
        if self.rounds - 1 > _NUM_GUESSES:
            count = (self.too_few + self.enough) // 2
        elif self.rounds > 1:
            counts = range(len(self.order) + 1)
            guess = next(count for count in counts if self._predict(count) * self.scale <= _MARGIN)
            count = min(max(guess, self.too_few + 1), self.enough - 1)
        return self.order[:count]

    def learn(self, count: int, error: float, *, holds: bool) -> None:
        """Takes in what was measured with so many layers kept."""
        left = self._predict(count)
        if 0 < left < math.inf and math.isfinite(error):
            self.scale = error / left
        if holds:
            self.enough = count
        else:
            self.too_few = count

    def _predict(self, count: int) -> float:
        """Returns the sum of the errors of all layers but the first of the order."""
        return sum(self.errors[name] for name in self.order[count:])
