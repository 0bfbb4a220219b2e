"""The choice of layers, over a model whose errors add up, and a few where they do not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import made_up
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import batches_of
from pickled_workers import Pickled

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Range, Ranges
from trtq.models.spec import AccuracySpec
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge.costs import Costs
from trtq.pipeline.judge.mixed_precision import (
    DataSize,
    EffectMeter,
    Forms,
    LayerChoice,
    Step,
    choose_layers,
    count_needed,
)
from trtq.pipeline.judge.score import Labels, load_labels
from trtq.pipeline.judge.sensitivity import Distance, Effect
from trtq.pipeline.judge.switchable import Switchable, open_switchable
from trtq.pipeline.judge.views import OutputViews

NO_SESSION = cast(Any, None)
"""Of layers that are only named."""
_GATE = AccuracySpec(min_cosine=0.99, max_drop=1.0)
_ALLOWED = 0.99**-2 - 1


def effect_of(error: float, score: float | None = None) -> Effect:
    """An output with this error, in units of what the gate allows."""
    noise = error * _ALLOWED
    return Effect(
        {"y": Distance(1 / math.sqrt(1 + noise), -10 * math.log10(noise) if noise else math.inf)}, score
    )


@dataclass
class Additive(EffectMeter):
    """A model whose error is the sum of those of its quantized layers."""

    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    asked: list[Forms] = field(default_factory=list)

    def measure_alone(self, pairs: Sequence[Step], batches: Batches) -> dict[Step, Effect]:
        return {pair: effect_of(self.errors[pair.layer][pair.form]) for pair in pairs}

    def measure_forms(
        self, mixtures: Mapping[str, Forms], batches: Batches
    ) -> tuple[Mapping[str, Effect], float | None]:
        self.asked += list(mixtures.values())
        return {name: self.effect(forms) for name, forms in mixtures.items()}, 0.9 if self.scores else None

    def effect(self, forms: Forms) -> Effect:
        left = [name for name in self.errors if forms[name] != "fp16"]
        score = 0.9 - sum(self.scores[name] for name in left) if self.scores else None
        return effect_of(sum(self.errors[name][forms[name]] for name in left), score)

    @property
    def asked_kept(self) -> list[tuple[str, ...]]:
        """The layers that were float in each mixture."""
        return [tuple(name for name, form in forms.items() if form == "fp16") for forms in self.asked]


def additive(errors: Mapping[str, float], scores: Mapping[str, float] | None = None) -> Additive:
    return of_formats({name: {"int8": error} for name, error in errors.items()}, scores)


def of_formats(
    errors: Mapping[str, Mapping[str, float]],
    scores: Mapping[str, float] | None = None,
    kind: type[Additive] = Additive,
) -> Additive:
    layers = {name: tuple(own) for name, own in errors.items()}
    none = ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)
    session = Switchable(NO_SESSION, layers, OutputViews(), (none, none))
    return kind(session, lambda forms: forms, errors=errors, scores=scores or {})


def costs_of(macs: Mapping[str, int]) -> Costs:
    """What each layer costs more in float than in INT8."""
    total = max(sum(macs.values()), 1)
    return {name: {"int8": 0.0, "fp16": count / total} for name, count in macs.items()}


def layers_of(choice: LayerChoice) -> tuple[str, ...]:
    return tuple(step.layer for step in choice.order)


def all_to_float(errors: Mapping[str, object], count: int) -> LayerChoice:
    start = dict.fromkeys(errors, "int8")
    return LayerChoice(start, tuple(Step(name, "fp16") for name in errors), count, {})


def count_up(count: int) -> Batches:
    return made_up.batches_of([np.full(1, index) for index in range(count)])


def test_the_layer_that_saves_most_for_its_price_is_kept() -> None:
    meter = additive({"cheap": 2.0, "dear": 3.0, "good": 0.1, "other": 0.2})
    choice = choose_layers(
        meter,
        costs_of({"cheap": 10, "dear": 400, "good": 500, "other": 90}),
        _GATE,
        count_up(4),
        DataSize(4, 4),
    )
    assert choice.kept() == ("cheap", "dear")
    assert layers_of(choice) == ("cheap", "dear", "other", "good")


def test_nothing_is_kept_where_nothing_must_be() -> None:
    meter = additive({"a": 0.1, "b": 0.2})
    assert choose_layers(meter, costs_of({"a": 1, "b": 1}), _GATE, count_up(4), DataSize(4, 4)).kept() == ()


def test_a_layer_that_turns_out_needless_is_given_back() -> None:
    # "small" is the better bargain, but where "large" must be kept the gate holds without it
    meter = additive({"small": 0.5, "large": 3.0, "rest": 0.35})
    choice = choose_layers(
        meter, costs_of({"small": 5, "large": 60, "rest": 35}), _GATE, count_up(4), DataSize(4, 4)
    )
    assert ("small", "large") in meter.asked_kept
    assert choice.kept() == ("large",)
    assert layers_of(choice) == ("large", "small", "rest")


def test_a_part_that_others_drown_out_counts_as_much_as_they_do() -> None:
    """A layer before the scores of a detector changes nothing of its output but these."""

    class Detector(Additive):
        def measure_alone(self, pairs: Sequence[Step], batches: Batches) -> dict[Step, Effect]:
            found = super().measure_alone(pairs, batches)
            return {
                pair: replace(
                    effect, parts={"y": {"boxes": Distance(1.0, 40.0), "scores": Distance(1.0, db)}}
                )
                for (pair, effect), db in zip(found.items(), (10.0, 50.0), strict=True)
            }

    errors = {"scores": 0.001, "boxes": 0.3}
    meter = of_formats({name: {"int8": error} for name, error in errors.items()}, kind=Detector)
    assert (
        choose_layers(meter, costs_of({"scores": 1, "boxes": 1}), _GATE, count_up(4), DataSize(4, 4))
        .order[0]
        .layer
        == "scores"
    )


def test_a_silent_part_and_a_broken_output() -> None:
    """Of a part without signal nothing is known; an output that is broken stays so, whatever its parts."""
    silent = Distance(0.0, -math.inf)
    errors = {"silent": 0.1, "loud": 0.3, "broken": 0.2}

    class Detector(Additive):
        def measure_alone(self, pairs: Sequence[Step], batches: Batches) -> dict[Step, Effect]:
            found = super().measure_alone(pairs, batches)
            quiet, loudest = Step("silent", "int8"), Step("broken", "int8")
            found[quiet] = replace(found[quiet], parts={"y": {"a": silent}})
            broken = {"y": Distance(math.nan, math.nan)}
            found[loudest] = replace(found[loudest], outputs=broken, parts={"y": {"a": Distance(1.0, 90.0)}})
            return found

    meter = of_formats({name: {"int8": error} for name, error in errors.items()}, kind=Detector)
    order = choose_layers(meter, costs_of(dict.fromkeys(errors, 1)), _GATE, count_up(4), DataSize(4, 4)).order
    assert tuple(step.layer for step in order) == ("broken", "loud", "silent")


def test_a_score_that_falls_asks_for_more_layers_than_the_error_does() -> None:
    meter = additive({"a": 0.3, "b": 0.2, "c": 0.1}, {"a": 0.0, "b": 0.03, "c": 0.001})
    assert set(
        choose_layers(meter, costs_of({"a": 1, "b": 1, "c": 1}), _GATE, count_up(4), DataSize(4, 4)).kept()
    ) >= {"b"}


def test_a_broken_layer_is_kept_whatever_it_costs() -> None:
    meter = additive({"a": 0.3, "broken": math.inf, "c": 0.1})
    assert choose_layers(
        meter, costs_of({"a": 1, "broken": 98, "c": 1}), _GATE, count_up(4), DataSize(4, 4)
    ).kept() == ("broken",)


_ERRORS = st.lists(st.tuples(st.floats(0.001, 3.0), st.integers(0, 1000)), min_size=1, max_size=9)


@given(_ERRORS)
def test_what_is_chosen_holds_the_gate_and_costs_little_more_than_the_best(
    layers: list[tuple[float, int]],
) -> None:
    errors = {f"l{index}": error for index, (error, _) in enumerate(layers)}
    macs = {f"l{index}": count for index, (_, count) in enumerate(layers)}
    meter = additive(errors)
    kept = choose_layers(meter, costs_of(macs), _GATE, count_up(4), DataSize(4, 4)).kept()
    assert sum(error for name, error in errors.items() if name not in kept) <= 1.0
    total = max(sum(macs.values()), 1)

    def cost(names: Collection[str]) -> float:
        return sum(macs[name] for name in names) / total + 0.002 * len(names)

    every = itertools.chain.from_iterable(
        itertools.combinations(errors, count) for count in range(len(errors) + 1)
    )
    # the greedy choice may hold one layer more than the best, and a short search another
    best = min(cost(names) for names in every if sum(errors[n] for n in errors if n not in names) <= 0.9)
    dearest = max(cost([name]) for name in errors)
    assert cost(kept) <= best + 2 * dearest + 0.02


def test_a_layer_gets_another_format_before_it_gets_none() -> None:
    """Which costs nothing here; where the layer is better as it is, it stays so."""
    errors = {
        "outliers": {"int8": 3.0, "fp8": 0.2},
        "smooth": {"int8": 0.1, "fp8": 0.5},
        "broken": {"int8": 2.0, "fp8": 2.0},
    }
    costs = {name: {"int8": 0.1, "fp8": 0.1, "fp16": 0.3} for name in errors}
    choice = choose_layers(of_formats(errors), costs, _GATE, count_up(4), DataSize(4, 4))
    assert choice.start == dict.fromkeys(errors, "int8")
    assert choice.forms() == {"outliers": "fp8", "smooth": "int8", "broken": "fp16"}
    assert choice.forms(len(choice.order)) == dict.fromkeys(errors, "fp16")
    steps = {name: [step.form for step in choice.order if step.layer == name] for name in errors}
    assert steps == {"outliers": ["fp8", "fp16"], "smooth": ["fp16"], "broken": ["fp16"]}


def test_the_cheapest_format_is_the_start_and_each_step_is_worth_less_than_the_one_before() -> None:
    errors = {"a": {"nvfp4": 4.0, "int8": 1.5, "fp8": 0.3}, "b": {"nvfp4": 0.2, "int8": 0.1, "fp8": 0.1}}
    costs = {name: {"nvfp4": 0.05, "int8": 0.1, "fp8": 0.1, "fp16": 0.2} for name in errors}
    choice = choose_layers(of_formats(errors), costs, _GATE, count_up(4), DataSize(4, 4))
    assert choice.start == dict.fromkeys(errors, "nvfp4")
    assert choice.forms() == {"a": "fp8", "b": "nvfp4"}


def test_without_float_the_most_exact_formats_are_the_end() -> None:
    errors = {"a": {"int8": 4.0, "fp8": 3.0}, "b": {"int8": 0.2, "fp8": 0.3}}
    costs = {name: dict.fromkeys(own, 0.1) for name, own in errors.items()}
    choice = choose_layers(of_formats(errors), costs, _GATE, count_up(4), DataSize(4, 4))
    assert choice.forms() == {"a": "fp8", "b": "int8"}
    assert not choice.is_more_exact


def test_a_dear_step_is_taken_back_as_a_whole() -> None:
    errors = {"small": {"int8": 0.5}, "large": {"int8": 3.0, "fp8": 0.3}, "rest": {"int8": 0.25}}
    costs = {
        "small": {"int8": 0.0, "fp16": 0.03},
        "large": {"int8": 0.0, "fp8": 0.2, "fp16": 0.6},
        "rest": {"int8": 0.0, "fp16": 0.35},
    }
    choice = choose_layers(of_formats(errors), costs, _GATE, count_up(4), DataSize(4, 4))
    assert choice.forms() == {"small": "fp16", "large": "fp8", "rest": "int8"}


def test_the_search_is_short() -> None:
    rng = np.random.default_rng(0)
    errors = {f"l{index}": float(error) for index, error in enumerate(rng.exponential(0.2, 60))}
    meter = additive(errors)
    choose_layers(meter, costs_of(dict.fromkeys(errors, 10)), _GATE, count_up(4), DataSize(4, 4))
    assert len(meter.asked) <= 2 * (3 + 6) + 4
    dear = additive(errors)
    dear.samples_run = 10**6
    choice = choose_layers(dear, costs_of(dict.fromkeys(errors, 10)), _GATE, count_up(4), DataSize(4, 4))
    assert len(dear.asked) <= 2 * 5
    assert sum(errors[name] for name in errors if name not in choice.kept()) <= 1.0


@pytest.mark.parametrize("needed", [1, 2, 5, 17, 39, 60])
def test_other_data_that_shows_more_error_is_measured_for_how_many_layers_are_enough(needed: int) -> None:
    """The gate holds with so many kept and with no fewer: each layer that is left costs the same."""
    errors = {f"l{index:02}": 0.9 / (60 - needed + 0.5) for index in range(60)}
    meter = additive(errors)
    found = count_needed(meter, all_to_float(errors, 0), _GATE, count_up(4), 2)
    assert needed <= found <= 1.25 * needed + 1
    assert len(meter.asked) <= 2 * 5
    assert found in (60, *map(len, meter.asked_kept))


def test_all_layers_are_kept_where_nothing_less_is_enough() -> None:
    meter = additive(dict.fromkeys("abcd", math.nan))
    assert count_needed(meter, all_to_float(meter.errors, 1), _GATE, count_up(4), 2) == 4
    asked = additive(dict.fromkeys("abcd", 0.1))
    assert (count_needed(asked, all_to_float(asked.errors, 3), _GATE, count_up(4), 2), asked.asked) == (4, [])


def test_a_score_decides_how_many_are_enough_as_the_cosine_does() -> None:
    meter = additive(dict.fromkeys("abcdef", 0.01), dict.fromkeys("abcdef", 0.004))
    assert (
        count_needed(meter, all_to_float(meter.errors, 1), _GATE, count_up(4), 2) == 4
    )  # 0.8 points for the two left


def test_a_score_leaves_a_part_of_the_points_for_other_data_and_fp16() -> None:
    meter = additive({"a": 0.01, "b": 0.01}, {"a": 0.0092, "b": 0.0005})
    choice = choose_layers(meter, costs_of({"a": 1, "b": 1}), _GATE, count_up(4), DataSize(4, 4))
    assert choice.kept() == ("a",)  # of 0.97 points, which the gate would allow
    exact = additive({"a": 0.01}, {"a": 0.0})
    strict = AccuracySpec(min_cosine=0.99, max_drop=0.0)
    assert choose_layers(exact, costs_of({"a": 1}), strict, count_up(4), DataSize(4, 4)).kept() == ()


def test_the_score_tells_how_many_to_measure_next_where_the_error_says_nothing() -> None:
    errors = {f"l{index:02}": 0.0001 for index in range(60)}  # all allowed by the cosine
    meter = additive(errors, dict.fromkeys(errors, 0.001))  # 6 points: nine layers lose 0.9
    choose_layers(meter, costs_of(dict.fromkeys(errors, 10)), _GATE, count_up(4), DataSize(4, 4))
    assert [len(kept) for kept in meter.asked_kept[:4]] == [0, 0, 51, 51]


def test_every_other_feed_and_no_other_is_read() -> None:
    feeds = replace(count_up(7), content="d")
    assert [feed.arrays["x"][0] for feed in feeds.take_every(0, 2)] == [0, 2, 4, 6]
    assert [feed.arrays["x"][0] for feed in feeds.take_every(1, 2)] == [1, 3, 5]
    assert feeds.take_every(1, 2).digest == "d/1::2"


def test_a_part_of_what_was_thinned_out_is_a_part_of_that() -> None:
    feeds = count_up(9)
    random_access = replace(feeds, part=lambda start, step: itertools.islice(feeds.read(), start, None, step))
    thinned = random_access.take_every(1, 2)
    assert [feed.arrays["x"][0] for feed in thinned.every(1, 2)] == [3, 7]


@pytest.mark.parametrize("is_own", [False, True])
def test_workers_measure_what_one_process_measures(
    graph_of: Callable[..., Graph], tmp_path: Path, *, is_own: bool
) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("w", "v")}
    text = "net (float[N, 8] x) => (float[N, 8] y) { [one] h = MatMul (x, w)\n [two] y = MatMul (h, v) }"
    graph = graph_of(text, **weights)
    feeds = [{"x": rng.standard_normal((3, 8)).astype(np.float32)} for _ in range(3)]
    batches = replace(batches_of(feeds), reopen=partial(batches_of, feeds))
    placement = place(graph.model, force=(".",))
    ranges = Ranges({name: Range(9.0, -9.0, 9.0) for name in placement.activations}, "made", "0", "none", 1)
    (tmp_path / "m.py").write_text("def f(outputs, labels):\n    return abs(outputs['y']).mean() / 100\n")
    labels = load_labels(Labels(None, metric=f"{tmp_path / 'm.py'}:f")) if is_own else None
    found, heard = [], list[int]()
    for workers in (None, Pickled()):
        told: list[int] = []
        session = open_switchable(graph.model, placement, ranges)
        meter = EffectMeter(session, lambda forms: forms, {}, labels, told.append, workers=workers)
        alone = meter.measure_alone([Step("one", "int8"), Step("two", "int8")], batches)
        both = meter.measure_forms({"both": dict.fromkeys(("one", "two"), "int8")}, batches)
        found.append((alone, both, meter.samples_run))
        heard.append(sum(told))
    assert found[0] == found[1]
    assert found[0][2] == 9 * 3 + 9 * 2
    assert heard == [9 + 9, 9 + 9 if is_own else 2 * 9 + 9]  # two workers take a layer each
    assert isinstance(workers, Pickled)
    assert any(isinstance(item, dict) for item in workers.done) is not is_own
