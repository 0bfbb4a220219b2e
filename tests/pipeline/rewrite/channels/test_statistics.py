"""Tests of the pass that sees the channels of the quantized activations, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import batches_of, random_array

from trtq.calibrators.batches import Batches
from trtq.calibrators.channels import ChannelHalves
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.sources import open_batches
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.channels.statistics import (
    find_channel_layouts,
    find_channel_readers,
    observe_channels,
)
from trtq.workers import Processes, Threads, Workers

_NET = """
net (float[N, 4, 6, 6] x) => (float[N, 16, 6, 6] y, float[N, 4] z) {
  [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
  [two] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w2)
  m = ReduceMean <axes = [2, 3], keepdims = 0> (x)
  [last] z = MatMul (m, w3)
}"""


@pytest.fixture(params=[13, 19])
def graph(request: pytest.FixtureRequest, graph_of: Callable[..., Graph]) -> Graph:
    weights = {"w1": random_array(16, 4, 1, 1), "w2": random_array(16, 16, 3, 3), "w3": random_array(4, 4)}
    return graph_of(_NET, opset=13, min_opset=request.param, **weights)


def _observe(graph: Graph, data: Batches, workers: Workers | None = None) -> ChannelHalves:
    placement = place(graph.model)
    layouts = find_channel_layouts(graph.model, placement)
    return observe_channels(graph.model, placement.activations, layouts, data, PassControl(), workers)


def test_the_extremes_and_means_are_those_of_numpy_for_each_half(graph: Graph) -> None:
    arrays = [random_array(size, 4, 6, 6) * size for size in (2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1)]
    found = _observe(graph, batches_of(arrays))
    assert set(found.even) == set(found.odd) == {"x", "a", "m"}
    for half, feeds in ((found.even, arrays[::2]), (found.odd, arrays[1::2]), (found.whole, arrays)):
        whole = np.concatenate(feeds)
        seen = half["x"]
        np.testing.assert_allclose(seen.minimum, whole.min((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(seen.maximum, whole.max((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(seen.mean, whole.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(half["m"].maximum, whole.mean((2, 3)).max(0), rtol=1e-5)
        assert (seen.num_samples, half["a"].mean.shape) == (len(whole), (16,))


def test_one_feed_leaves_the_other_half_empty(graph: Graph) -> None:
    found = _observe(graph, batches_of([random_array(1, 4, 6, 6)]))
    assert (set(found.even), found.odd, found.whole) == ({"x", "a", "m"}, {}, {})


def test_a_model_without_such_channels_is_not_run(graph: Graph) -> None:
    assert observe_channels(graph.model, ["x"], {}, batches_of([]), PassControl()) == ChannelHalves({}, {})


def test_workers_find_the_same_sums(graph: Graph, tmp_path: Path) -> None:
    x = np.concatenate([random_array(8, 4, 6, 6) for _ in range(5)])
    np.savez(tmp_path / "x.npz", x=x)
    data = open_batches(str(tmp_path / "x.npz"), graph.inputs, 3)
    one, many = _observe(graph, data), _observe(graph, data, Processes(1))
    for ours, theirs in ((one.even, many.even), (one.odd, many.odd)):
        assert list(ours) == list(theirs) == ["x", "a", "m"]
        for name in ours:
            np.testing.assert_array_equal(ours[name].mean, theirs[name].mean)


def test_a_file_may_have_feeds_of_both_halves(graph: Graph) -> None:
    feeds = list(batches_of([random_array(2, 4, 6, 6) * (number + 1) for number in range(16)]))
    files = tuple((lambda part=feeds[place : place + 2]: iter(part)) for place in range(0, 16, 2))
    data = replace(batches_of([feed.arrays["x"] for feed in feeds]), files=files)
    one, many = _observe(graph, data), _observe(graph, data, Threads(1))
    for ours, theirs in ((one.even, many.even), (one.odd, many.odd)):
        assert ours["x"].num_samples == theirs["x"].num_samples == 16
        np.testing.assert_array_equal(ours["x"].maximum, theirs["x"].maximum)


def test_a_pass_that_counts_finds_them_on_the_way(graph: Graph) -> None:
    data = batches_of([random_array(size, 4, 6, 6) * size for size in (2, 3, 1, 2)])
    placement = place(graph.model)
    control = PassControl(channels=find_channel_layouts(graph.model, placement))
    seen, alone = observe(graph.model, placement.activations, data, control=control), _observe(graph, data)
    assert seen.channels is not None
    for ours, theirs in ((seen.channels.even, alone.even), (seen.channels.odd, alone.odd)):
        for name, item in ours.items():
            np.testing.assert_array_equal(item.mean, theirs[name].mean)
            np.testing.assert_array_equal(item.maximum, theirs[name].maximum)
    assert observe(graph.model, placement.activations, data).channels is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("[p] y = Conv (x, w)", ["x"]),
        ("[p] a = Conv (x, w) [q] b = Conv (x, w2) y = Add (a, b)", ["x"]),
        (
            "[p] a = Conv (x, w) r = Relu (x) [q] b = Conv (r, w) [t] y = Sub (a, b)",
            [],
        ),  # one weight, two inputs
        ("[p] a = Conv (x, w) [t] y = Add (a, x)", []),  # the Add takes the tensor as it is
    ],
)
def test_only_layers_that_can_take_the_scales_up_count(
    graph_of: Callable[..., Graph], body: str, found: list[str]
) -> None:
    weights = {"w": random_array(4, 4, 1, 1), "w2": random_array(4, 4, 1, 1)}
    text = f"net (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {body} }}"
    model = graph_of(text, **{name: array for name, array in weights.items() if f"{name})" in text}).model
    placement = place(model, force=["."])
    assert list(find_channel_readers(model, placement)) == found


def test_readers_of_different_kinds_are_refused(graph_of: Callable[..., Graph]) -> None:
    text = """net (float[N, 4, 4] x) => (float[N, 4, 4] y) {
      [p] a = Conv <kernel_shape = [1]> (x, w) [q] b = MatMul (x, v) y = Add (a, b) }"""
    model = graph_of(text, w=random_array(4, 4, 1), v=random_array(4, 4)).model
    placement = place(model, force=["."])
    assert "x" in placement.activations
    assert list(find_channel_readers(model, placement)) == []
