"""Tests of the roundings that are found on data: what layers make of their weights is nearer with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.ranges import Channels, Range, Ranges, ranges_to_json, read_ranges
from trtq.pipeline.formats import FP8
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.judge import adaround
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.repairs import find_repairs
from trtq.pipeline.rewrite.qdq import quantize

_NETS = {
    "Gemm": ("float[N, 32] x", "float[N, 16] y", "Gemm (x, w)", (32, 16)),
    "turned Gemm": ("float[N, 32] x", "float[N, 16] y", "Gemm <transB = 1> (x, w)", (16, 32)),
    "MatMul": ("float[N, 3, 32] x", "float[N, 3, 16] y", "MatMul (x, w)", (32, 16)),
    "Conv": ("float[N, 4, 8, 8] x", "float[N, 16, 6, 6] y", "Conv (x, w)", (16, 4, 3, 3)),
    "grouped": ("float[N, 4, 8, 8] x", "float[N, 16, 6, 6] y", "Conv <group = 4> (x, w)", (16, 1, 3, 3)),
}
Outputs = Callable[..., list[NDArray[np.float32]]]


def _data(*shape: int, num_feeds: int = 8) -> Batches:
    """Returns inputs that depend on each other, as those of real layers do."""
    rng = np.random.default_rng(5)
    if len(shape) == 3:  # an image: its neighbours are alike
        coarse = rng.standard_normal((num_feeds, 16, shape[0], shape[1] // 4, shape[2] // 4))
        feeds = coarse.repeat(4, axis=3).repeat(4, axis=4).astype(np.float32)
    else:
        mix = rng.standard_normal((shape[-1] // 8, shape[-1]))
        feeds = (rng.standard_normal((num_feeds, 16, *shape[:-1], len(mix))) @ mix).astype(np.float32)

    def read() -> Iterator[Feed]:
        return (Feed({"x": feed}, "made up", 16) for feed in feeds)

    return Batches(read, "made up", 16 * num_feeds)


def _ranges(placement: Placement, batches: Batches) -> Ranges:
    amax = max(float(np.abs(feed.arrays["x"]).max()) for feed in batches)
    return Ranges(dict.fromkeys(placement.activations, Range(amax, -amax, amax)), "made", "0", "none", 1)


@pytest.fixture(params=list(_NETS))
def case(request: pytest.FixtureRequest, graph_of: Callable[..., Graph]) -> tuple[ir.Model, Batches]:
    given, made, call, shape = _NETS[request.param]
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    graph = graph_of(f"net ({given}) => ({made}) {{ [layer] y = {call} }}", w=weight)
    sizes = [int(text) for text in given[given.index("N,") + 2 : given.index("]")].split(",")]
    return graph.model, _data(*sizes)


def _lost(outputs_of: Outputs, model: ir.Model, ranges: Ranges, batches: Batches) -> float:
    """Returns the error on a feed that no rounding is found on, because of the weights alone."""
    placement = place(model, force=["."])
    feed = next(batches.every(1, 2)).arrays
    plain = Placement(tuple(replace(layer, weight=None) for layer in placement.quantized), ())
    (wanted,) = outputs_of(quantize(model, plain, ranges), feed=feed)
    (found,) = outputs_of(quantize(model, placement, ranges), feed=feed)
    return float(np.square(found - wanted).sum())


def test_outputs_are_nearer_on_data_that_was_not_looked_at(
    case: tuple[ir.Model, Batches], outputs_of: Outputs
) -> None:
    model, batches = case
    placement = place(model, force=["."])
    ranges = _ranges(placement, batches)
    roundings = find_roundings(model, placement, ranges, batches)
    rounded = replace(ranges, roundings=roundings)
    assert len(roundings) == 1
    assert _lost(outputs_of, model, rounded, batches) < 0.8 * _lost(outputs_of, model, ranges, batches)
    assert find_roundings(model, placement, ranges, batches) == roundings


def test_roundings_are_of_the_weights_as_repairs_have_made_them(
    graph_of: Callable[..., Graph], outputs_of: Outputs
) -> None:
    weight = np.random.default_rng(1).standard_normal((32, 16)).astype(np.float32)
    model = graph_of("net (float[N, 32] x) => (float[N, 16] y) { [g] y = Gemm (x, w) }", w=weight).model
    placement, batches = place(model, force=["."]), _data(32)
    plain = _ranges(placement, batches)
    scale = tuple(np.geomspace(0.5, 1, 32).tolist())
    scaled = replace(plain, channels={"x": Channels(scale=scale, amax=2 * plain.amax("x"))})
    roundings = find_roundings(model, placement, scaled, batches)
    assert roundings.keys().isdisjoint(find_roundings(model, placement, plain, batches))
    feed = next(iter(batches)).arrays
    for base, changes in ((scaled, True), (plain, False)):  # of another weight they say nothing
        (before,), (after,) = (
            outputs_of(quantize(model, placement, ranges), feed=feed)
            for ranges in (base, replace(base, roundings=roundings))
        )
        assert bool((before != after).any()) == changes


def test_another_format_is_rounded_for_inputs_in_the_range_that_it_is_built_with(
    case: tuple[ir.Model, Batches],
) -> None:
    """A range that was clipped for INT8 is not that of a layer in FP8 beside it."""
    model, batches = case
    placement = place(model, force=["."], form=FP8)
    whole = _ranges(placement, batches)
    clipped = {name: replace(item, amax=item.amax / 8) for name, item in whole.tensors.items()}
    found = [
        find_roundings(model, placement, item, batches) for item in (whole, replace(whole, tensors=clipped))
    ]
    assert found[0] == found[1]
    assert found[0]


def test_roundings_survive_the_ranges_file(case: tuple[ir.Model, Batches], tmp_path: Path) -> None:
    model, batches = case
    placement = place(model, force=["."])
    ranges = _ranges(placement, batches)
    ranges = replace(ranges, roundings=find_roundings(model, placement, ranges, batches))
    path = tmp_path / "ranges.json"
    path.write_bytes(ranges_to_json(ranges))
    assert read_ranges(path) == ranges


def test_layers_that_cost_too_much_are_left_out(
    case: tuple[ir.Model, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = case
    placement = place(model, force=["."])
    monkeypatch.setattr(adaround, "_MOST_MACS", 1.0)
    assert find_roundings(model, placement, _ranges(placement, batches), batches) == {}


def test_one_scale_for_a_weight_is_left_out(case: tuple[ir.Model, Batches]) -> None:
    model, batches = case
    placement = place(model, force=["."]).with_one_scale()
    assert find_roundings(model, placement, _ranges(placement, batches), batches) == {}


def test_the_repair_is_made_where_it_pays_and_only_if_it_is_allowed(graph_of: Callable[..., Graph]) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    model = graph_of("net (float[N, 64] x) => (float[N, 16] y) { [g] y = Gemm (x, w) }", w=weight).model
    placement, batches = place(model, force=["."]), _data(64, num_feeds=8)
    fine = _ranges(placement, batches)
    found = find_repairs(model, placement, [fine], batches, ["adaround"])
    assert found is not None
    ranges, repairs = found
    assert repairs.applied == ("adaround",)
    assert repairs.after_db > repairs.before_db + 0.2
    assert len(ranges.roundings) == 1
    without = find_repairs(model, placement, [fine], batches, ["bias"])
    assert without is not None
    assert without[0].roundings == {}
