"""Tests that rescaled tensors get the ranges of what they have become."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trtq.calibrators import METHODS
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.observe import PassControl
from trtq.calibrators.parts import observe_by
from trtq.calibrators.percentile import Percentile
from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.calibrators.statistics import Statistics
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.rewrite.channels import reobserve
from trtq.pipeline.rewrite.channels.reobserve import Reobserver

_NET = """
net (float[N, 4] x) => (float[N, 4] y) {
  [one] a = Gemm (x, w1)
  r = Relu (a)
  [two] y = Gemm (r, w2)
}"""
_FEEDS = [[[1, 2, 0, 4]], [[1, 9, 0, 3]], [[3, 1, 0, 5]], [[1, 1, 0, 40]]]


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    eye = np.eye(4, dtype=np.float32)
    return graph_of(_NET, w1=eye, w2=eye)


@pytest.fixture
def placement(graph: Graph) -> Placement:
    return place(graph.model, force=["."])


def _data() -> Batches:
    def read() -> Iterator[Feed]:
        return (Feed({"x": np.array(row, np.float32)}, "made up", 1) for row in _FEEDS)

    return Batches(read, "made up", len(_FEEDS))


def _ranges(placement: Placement, *scale: float) -> Ranges:
    tensors = {name: Range(7.0, -7.0, 7.0) for name in placement.activations}
    channels = {"r": Channels(scale=scale, amax=99.0), "x": Channels(mean=(0.0,) * 4)}
    return Ranges(tensors, "made", "0", "none", 1, channels=channels)


def test_the_amax_is_that_of_the_rescaled_values(graph: Graph, placement: Placement) -> None:
    given = _ranges(placement, 0.5, 0.25, 1.0, 1.0)
    (found,) = Reobserver([METHODS["minmax"]()], PassControl()).observe_again(
        graph.model, placement, given, _data()
    )
    assert found.channels["r"].amax == pytest.approx(40.0)  # 3 / 0.5, 9 / 0.25, 0, 40
    assert found.channels["r"].scale == given.channels["r"].scale
    assert found.channels["x"] == given.channels["x"]
    assert found.tensors == given.tensors


def test_nothing_but_the_rescaled_tensors_is_looked_at(
    graph: Graph, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Statistics]()

    def note(*args: Any) -> Statistics:
        seen.append(observe_by(*args))
        return seen[-1]

    monkeypatch.setattr(reobserve, "observe_by", note)
    again = Reobserver([METHODS["minmax"]()], PassControl())
    again.observe_again(graph.model, placement, _ranges(placement, 0.5, 0.25, 1.0, 1.0), _data())
    assert seen[0].magnitudes.keys() == seen[0].histograms.keys()


def test_of_the_even_feeds_nothing_else_is_seen(graph: Graph, placement: Placement) -> None:
    again = Reobserver([METHODS["minmax"]()], PassControl()).for_trials()
    (found,) = again.observe_again(graph.model, placement, _ranges(placement, 0.5, 0.25, 1.0, 1.0), _data())
    assert found.channels["r"].amax == pytest.approx(8.0)  # 3 / 0.5, 2 / 0.25, 0, 5


def test_trials_may_see_less(graph: Graph, placement: Placement) -> None:
    again = Reobserver([METHODS["minmax"]()], PassControl(), trial_step=4).for_trials()
    (found,) = again.observe_again(graph.model, placement, _ranges(placement, 0.5, 0.25, 1.0, 1.0), _data())
    assert found.channels["r"].amax == pytest.approx(8.0)  # 1 / 0.5, 2 / 0.25, 0, 4


def test_even_feeds_are_not_every_second_file(graph: Graph, placement: Placement) -> None:
    data = _data()
    feeds = list(data)
    files = tuple((lambda part=part: iter(part)) for part in (feeds[:2], feeds[2:]))
    again = Reobserver([METHODS["minmax"]()], PassControl()).for_trials()
    given = _ranges(placement, 0.5, 0.25, 1.0, 1.0)
    assert again.observe_again(graph.model, placement, given, replace(data, files=files)) == (
        again.observe_again(graph.model, placement, given, data)
    )


def test_each_method_gives_its_own(graph: Graph, placement: Placement) -> None:
    again = Reobserver([METHODS["minmax"](), Percentile(percentile=50.0)], PassControl())
    assert again.describe() == ["minmax", "percentile"]
    given = _ranges(placement, 0.5, 0.25, 1.0, 1.0)
    widest, half = again.observe_again(graph.model, placement, given, _data())
    assert half.channels["r"].amax < widest.channels["r"].amax


def test_a_tensor_that_is_always_zero_keeps_its_amax(graph_of: Callable[..., Graph]) -> None:
    nothing = np.zeros((4, 4), np.float32)
    graph = graph_of(_NET, w1=nothing, w2=np.eye(4, dtype=np.float32))
    placement = place(graph.model, force=["."])
    again = Reobserver([METHODS["minmax"]()], PassControl())
    (found,) = again.observe_again(graph.model, placement, _ranges(placement, 1.0, 0.5, 1.0, 1.0), _data())
    assert found.channels["r"].amax == 99.0
