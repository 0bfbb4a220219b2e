"""Tests of the search for repairs, on small models of which it is known what helps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from made_up import batches_of
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.channels import ChannelHalves
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.percentile import Percentile
from trtq.calibrators.ranges import Range, Ranges
from trtq.models.spec import REPAIRS
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.judge.proposals import Repair
from trtq.pipeline.judge.repairs import SampleBudget, _Search, find_repairs
from trtq.pipeline.judge.trials import Candidate, FeedMarks
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.pipeline.rewrite.channels.statistics import find_channel_layouts
from trtq.records import Repairs

_NET = """
net (float[N, 16] x) => (float[N, 16] y) {
  [one] a = Gemm (x, w1, b1)
  r = Relu (a)
  [two] y = Gemm (r, w2, b2)
}"""
_WIDTH = 16


def _data(num_feeds: int = 16, seed: int = 0, scale: NDArray[np.float64] | float = 1.0) -> Batches:
    rng = np.random.default_rng(seed)
    return batches_of(
        [(rng.standard_normal((4, _WIDTH)) * scale).astype(np.float32) for _ in range(num_feeds)]
    )


@pytest.fixture
def net(graph_of: Callable[..., Graph]) -> Callable[..., Graph]:
    """Makes a net of two layers whose inner channels have these ranges."""

    def make(inner: NDArray[np.float64] | None = None, rounding: float | None = None) -> Graph:
        rng = np.random.default_rng(1)
        inner = np.ones(_WIDTH) if inner is None else inner
        weights = {
            "w1": rng.standard_normal((_WIDTH, _WIDTH)) * inner,
            "b1": rng.standard_normal(_WIDTH) * inner,
            "w2": rng.standard_normal((_WIDTH, _WIDTH)) / inner[:, None],
            "b2": rng.standard_normal(_WIDTH),
        }
        if rounding is not None:  # all weights lie at this fraction between two codes
            codes = rng.integers(-100, 100, (_WIDTH, _WIDTH)) + rounding
            codes[0] = 127
            weights["w2"] = codes / 127
        return graph_of(_NET, **{name: array.astype(np.float32) for name, array in weights.items()})

    return make


def _ranges(graph: Graph, placement: Placement, data: Batches, *methods: str) -> list[Ranges]:
    seen = observe(graph.model, placement.activations, data)
    return [estimate(seen, METHODS[name]()) for name in methods or ("minmax",)]


def _see_channels(model: ir.Model, placement: Placement, data: Batches) -> ChannelHalves:
    control = PassControl(channels=find_channel_layouts(model, placement))
    seen = observe(model, placement.activations, data, control=control).channels
    assert seen is not None
    return seen


def _found(
    graph: Graph,
    data: Batches,
    allowed: Sequence[str] = REPAIRS,
    *methods: str,
    budget: SampleBudget | None = None,
) -> tuple[Ranges, Repairs]:
    placement = place(graph.model, force=["."])
    ranges = _ranges(graph, placement, data, *methods)
    channels = _see_channels(graph.model, placement, data)
    found = find_repairs(graph.model, placement, ranges, data, allowed, budget, channels=channels)
    assert found is not None
    return found


def test_unequal_channels_are_equalized_through_the_relu(net: Callable[..., Graph]) -> None:
    ranges, repairs = _found(net(np.geomspace(1, 100, _WIDTH)), _data(), ["equalize"])
    assert set(ranges.channels) == {"r"}
    assert repairs.applied[0].startswith("equalize ")
    assert repairs.after_db > repairs.before_db + 6
    assert [item.applied for item in repairs.tried].count(True) == 1
    assert repairs.num_samples == 32


_MOBILE = """
net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
  [expand] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
  r = Clip (a, zero, six)
  [deep] b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 16> (r, w2, b2)
  s = Clip (b, zero, six)
  [project] y = Conv <kernel_shape = [1, 1]> (s, w3)
}"""


def test_unequal_channels_are_equalized_through_relu6(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[np.float32]]]
) -> None:
    """A block as in MobileNetV2; its wide channels reach the 6, its narrow ones make most of the output."""
    rng = np.random.default_rng(1)
    spread = np.geomspace(0.03, 3, _WIDTH).reshape(-1, 1, 1, 1)
    weights = {
        "w1": rng.standard_normal((_WIDTH, 4, 1, 1)) * spread,
        "b1": rng.standard_normal(_WIDTH) * spread.ravel(),
        "w2": rng.standard_normal((_WIDTH, 1, 3, 3)),
        "b2": rng.standard_normal(_WIDTH) * spread.ravel(),
        "w3": rng.standard_normal((4, _WIDTH, 1, 1)) / spread.reshape(1, -1, 1, 1),
        "zero": np.array(0),
        "six": np.array(6),
    }
    graph = graph_of(_MOBILE, **{name: array.astype(np.float32) for name, array in weights.items()})
    arrays = [rng.standard_normal((4, 4, 8, 8)).astype(np.float32) for _ in range(16)]
    ranges, repairs = _found(graph, batches_of(arrays), ["equalize"])
    assert {name for name, item in ranges.channels.items() if item.scale} == {"r", "s"}
    assert repairs.after_db > repairs.before_db + 6
    placement = place(graph.model, force=["."])
    made = rescale(graph.model, placement, ranges).model
    assert [node.op_type for node in made.graph].count("Min") == 2
    for ours, theirs in zip(outputs_of(made), outputs_of(graph.model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_unequal_inputs_are_smoothed(net: Callable[..., Graph]) -> None:
    spread = np.geomspace(1, 100, _WIDTH)
    ranges, repairs = _found(_with_even_inputs(net(), spread), _data(scale=spread), ["smooth"])
    assert "x" in ranges.channels
    assert repairs.applied[0].startswith("smooth ")
    assert repairs.after_db > repairs.before_db + 6


def _with_even_inputs(graph: Graph, spread: NDArray[np.float64]) -> Graph:
    """Returns the net with a first layer to which every input means the same."""
    model = graph.model.clone()
    weight = model.graph.initializers["w1"]
    assert weight.const_value is not None
    array = (weight.const_value.numpy() / spread[:, None]).astype(np.float32)
    weight.const_value = ir.tensor(array, name="w1")
    return replace(graph, model=model)


def test_a_planted_shift_of_the_mean_is_corrected(net: Callable[..., Graph]) -> None:
    ranges, repairs = _found(net(rounding=0.49), _data(), ["bias"])
    assert repairs.applied == ("bias",)
    assert repairs.after_db > repairs.before_db + 1
    assert len(ranges.channels["r"].mean) == _WIDTH
    assert not ranges.channels["r"].scale


def test_a_repair_that_harms_is_not_applied(net: Callable[..., Graph]) -> None:
    """Means of one half of the data that are wrong for the other: correcting with them would cost much."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((4, _WIDTH)) + (60 if index % 2 == 0 else 0) for index in range(16)]
    data = batches_of([array.astype(np.float32) for array in arrays])
    ranges, repairs = _found(net(rounding=0.49), data, ["bias"])
    (only,) = repairs.tried
    assert (only.name, only.applied) == ("bias", False)
    assert only.gain_db < -0.2
    assert (ranges.channels, repairs.applied) == ({}, ())
    assert repairs.before_db == repairs.after_db


def test_strengths_are_chosen_on_data_that_did_not_make_them(net: Callable[..., Graph]) -> None:
    """The judged channels are those of the even feeds; what is returned holds the odd ones as well."""
    arrays = [feed.arrays["x"] for feed in _data(17)]
    arrays[5] = arrays[5] * 10
    ranges, repairs = _found(net(np.geomspace(1, 100, _WIDTH)), batches_of(arrays), ["equalize"])
    assert repairs.applied
    plain = _found(net(np.geomspace(1, 100, _WIDTH)), _data(17), ["equalize"])[0]
    assert ranges.channels["r"].amax > 4 * plain.channels["r"].amax


def test_the_best_method_is_taken(net: Callable[..., Graph]) -> None:
    graph, data = net(), _data()
    placement = place(graph.model, force=["."])
    (plain,) = _ranges(graph, placement, data)
    candidates = [
        replace(
            plain,
            method=f"{name}(a=1)",
            tensors={key: replace(item, amax=item.amax * times) for key, item in plain.tensors.items()},
        )
        for name, times in (("wide", 8), ("narrow", 0.1), ("right", 1), ("wider", 9), ("widest", 10))
    ]
    found = find_repairs(graph.model, placement, candidates, data, [])
    assert found is not None
    ranges, repairs = found
    assert ranges == candidates[2]
    assert (repairs.method, repairs.applied) == ("right(a=1)", ())
    assert repairs.after_db > repairs.before_db + 6
    assert [(item.name, item.applied) for item in repairs.tried] == [
        ("narrow", False), ("right", True), ("wider", False), ("widest", False)
    ]  # fmt: skip
    assert [item.num_samples for item in repairs.tried] == [8, 32, 8, 8]  # far behind


def test_weights_are_clipped_where_that_pays(net: Callable[..., Graph]) -> None:
    ranges, repairs = _found(net(), _data(), ["weights"])
    (only,) = repairs.tried
    assert only.name == "weights"
    assert ranges.weight_scales == ("mse" if only.applied else "max")
    assert only.applied == (only.gain_db >= 0.2 and repairs.applied == ("weights",))


def test_few_samples_rescale_nothing(net: Callable[..., Graph]) -> None:
    ranges, repairs = _found(net(np.geomspace(1, 100, _WIDTH)), _data(6))
    assert {item.name for item in repairs.tried} == {"bias", "weights"}
    assert not any(item.scale for item in ranges.channels.values())


def test_many_candidates_are_tried_on_a_few_samples_first(net: Callable[..., Graph]) -> None:
    budget = SampleBudget(8, 24)
    _, repairs = _found(net(np.geomspace(1, 100, _WIDTH)), _data(), REPAIRS, "minmax", budget=budget)
    assert repairs.num_samples == 24
    rescalings = [item for item in repairs.tried if item.name not in ("bias", "weights")]
    assert len(rescalings) > 6
    assert sorted(item.num_samples for item in rescalings)[-3:] == [16, 24, 24]
    assert {item.num_samples for item in rescalings} == {8, 16, 24}
    assert not any(item.applied for item in rescalings if item.num_samples == 8)


def _of_the_last(net: Graph, data: Batches, again: Reobserver | None) -> tuple[Ranges, Repairs]:
    """Returns what is found where the last layer alone is quantized, and its input is the model's, spread."""
    model, spread = net.model.clone(), np.diag(np.geomspace(1, 100, _WIDTH)).astype(np.float32)
    for name, array in {"w1": spread, "b1": np.zeros(_WIDTH, np.float32)}.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    graph = replace(net, model=model)
    placement = place(model, force=["."], skip=["one"])
    ranges, channels = _ranges(graph, placement, data), _see_channels(model, placement, data)
    found = find_repairs(model, placement, ranges, data, ["smooth"], None, again, channels=channels)
    assert found is not None
    return found


def test_rescaled_tensors_get_a_range_of_their_own_where_that_pays(net: Callable[..., Graph]) -> None:
    arrays = np.random.default_rng(3).standard_normal((64, 8, _WIDTH)).astype(np.float32)
    arrays[::32, 0] = 20  # in feeds that are not judged by: holding it costs all others much
    graph, data = net(np.geomspace(1, 100, _WIDTH)), batches_of(list(arrays))
    again = Reobserver([METHODS["minmax"](), Percentile(percentile=99.0)], PassControl())
    _, without = _of_the_last(graph, data, None)
    ranges, repairs = _of_the_last(graph, data, again)
    assert repairs.applied == (*without.applied, "percentile of rescaled tensors")
    assert repairs.after_db > without.after_db + 6
    rescaled = np.maximum(arrays, 0) * np.geomspace(1, 100, _WIDTH) / ranges.channels["r"].scale
    expected = np.percentile(rescaled, 99.0)  # of all the data, not of the half that was judged
    assert ranges.channels["r"].amax == pytest.approx(expected, rel=0.01)
    assert expected < 0.95 * np.percentile(rescaled[::2], 99.0)


def test_headroom_is_given_up_where_it_costs_more_than_it_saves(net: Callable[..., Graph]) -> None:
    arrays = np.random.default_rng(1).uniform(-1, 1, (128, 8, _WIDTH)).astype(np.float32)
    _, repairs = _of_the_last(net(), batches_of(list(arrays)), None)
    (applied,) = repairs.applied
    assert applied.endswith("no headroom")
    assert any(item.applied and "no headroom" not in item.name for item in repairs.tried)  # it came first


class _Scored:
    """Judges candidates by what is known of them: the gain in dB on each sample, by method."""

    def __init__(self, gains: Mapping[str, Sequence[float]]) -> None:
        self.gains, self.num_samples = gains, len(gains["start"])
        self.feeds = [Feed({}, "made up", 1)] * self.num_samples

    def advance(self, candidates: Sequence[Candidate], num_feeds: int) -> None:
        for item in candidates:
            for gain in self.gains[item.ranges.method][len(item.marks) : num_feeds]:
                noise = np.array([10 ** (-(30 + gain) / 10)])
                item.marks.append(FeedMarks(np.array([30.0 + gain]), np.ones(1), noise))


@pytest.mark.parametrize(
    ("gains", "is_presumed", "applied"),
    [
        ([-4, 3, -5, 4, -4, 3, 2, -3], True, True),  # chance
        ([-4, 3, -5, 4, -4, 3, 2, -3], False, False),
        ([-3, -2, -3, -2, -3, -2, -3, -2], True, False),
        ([2, 3, 2, 3, 2, 3, 2, 3], True, True),
        ([math.nan] * 8, True, False),
    ],
)
def test_what_is_known_to_gain_is_applied_unless_it_clearly_loses(
    gains: Sequence[float], is_presumed: bool, applied: bool
) -> None:
    judge: Any = _Scored({"start": [0.0] * 8, "made": gains})
    evidence: Any = None
    ranges = Ranges({}, "start", "0", "none", 8)
    made = replace(ranges, method="made")
    start = Candidate(ranges)
    judge.advance([start], 8)
    search = _Search(judge, SampleBudget(), evidence, evidence, start, ranges)
    search.run(Repair("kind", lambda _ranges, _evidence: {"made": made}, is_presumed=is_presumed))
    assert [item.applied for item in search.tried] == [applied]
    assert search.final is (made if applied else ranges)


@pytest.mark.parametrize(
    ("gain", "is_presumed", "races", "num_samples"),
    [
        (-6.0, True, True, 8),  # far behind: the rest tells nothing
        (-6.0, False, True, 8),
        (-6.0, True, False, 32),
        (6.0, True, True, 32),
    ],
)
def test_what_is_far_behind_is_judged_on_a_few_samples(
    gain: float, is_presumed: bool, races: bool, num_samples: int
) -> None:
    gains = [gain + noise for noise in (0.1, -0.1) * 16]
    judge: Any = _Scored({"start": [0.0] * 32, "made": gains})
    evidence: Any = None
    ranges = Ranges({}, "start", "0", "none", 32)
    start = Candidate(ranges)
    judge.advance([start], 32)
    search = _Search(judge, SampleBudget(races=races), evidence, evidence, start, ranges)
    made = replace(ranges, method="made")
    search.run(Repair("kind", lambda _ranges, _evidence: {"made": made}, is_presumed=is_presumed))
    assert [(item.num_samples, item.applied) for item in search.tried] == [(num_samples, gain > 0)]


def test_the_same_data_gives_the_same_result(net: Callable[..., Graph]) -> None:
    graph = net(np.geomspace(1, 100, _WIDTH))
    assert _found(graph, _data()) == _found(graph, _data())


def test_the_model_is_not_changed(net: Callable[..., Graph]) -> None:
    graph = net(np.geomspace(1, 100, _WIDTH))
    before = [node.name for node in graph.model.graph], sorted(graph.model.graph.initializers)
    _found(graph, _data())
    assert before == ([node.name for node in graph.model.graph], sorted(graph.model.graph.initializers))


def test_without_data_held_back_nothing_is_tried(net: Callable[..., Graph]) -> None:
    graph = net()
    placement = place(graph.model, force=["."])
    ranges = Ranges({name: Range(1, -1, 1) for name in placement.activations}, "made", "0", "none", 1)
    assert find_repairs(graph.model, placement, [ranges], _data(1), REPAIRS) is None
