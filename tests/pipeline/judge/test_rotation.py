"""Tests that rotating is tried where it is possible, and kept only if it wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import batches_of
from residual_decoder import TOKENS, WIDTH, make_graph, make_weights

from trtq.calibrators import METHODS
from trtq.calibrators.batches import Batches
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.ranges import Channels, Ranges, parse_ranges, ranges_to_json
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge.repairs import find_repairs
from trtq.pipeline.rewrite.channels.reobserve import Reobserver
from trtq.pipeline.rewrite.channels.rescale import rescale
from trtq.records import Repairs

_AGAIN = Reobserver([METHODS["minmax"]()], PassControl())


def _data() -> Batches:
    rng = np.random.default_rng(0)
    return batches_of([{"ids": rng.integers(0, TOKENS, (4, 8))} for _ in range(16)])


def _search(graph: Graph, again: Reobserver | None = _AGAIN) -> tuple[Ranges, Repairs]:
    placement, data = place(graph.model, force=["."]), _data()
    ranges = estimate(observe(graph.model, placement.activations, data), METHODS["minmax"]())
    found = find_repairs(graph.model, placement, [ranges], data, ["rotate"], None, again)
    assert found is not None
    return found


def test_a_stream_with_large_channels_is_rotated(graph_of: Callable[..., Graph]) -> None:
    ranges, repairs = _search(make_graph(graph_of, outlier=20.0))
    assert repairs.applied == ("rotate (minmax)",)
    assert repairs.after_db > repairs.before_db + 6
    assert ranges.rotation == "hadamard"
    assert ranges.amax("a_rotated") < 0.6 * ranges.amax("a")
    assert parse_ranges(ranges_to_json(ranges), "ranges.json") == ranges


def test_one_whose_channels_are_all_alike_is_left(graph_of: Callable[..., Graph]) -> None:
    signs = np.sign(np.random.default_rng(0).standard_normal((TOKENS, WIDTH))).astype(np.float32)
    nothing = {
        name: np.zeros_like(values) for name, values in make_weights().items() if name in ("wo", "bo", "wd")
    }
    ones = dict.fromkeys(("g0", "g1", "g2"), np.ones(WIDTH, np.float32))
    ranges, repairs = _search(make_graph(graph_of, constants={"table": signs, **nothing, **ones}))
    assert (repairs.applied, ranges.rotation) == ((), "none")
    assert [trial.name for trial in repairs.tried] == ["rotate (minmax)"]
    assert b"rotation" not in ranges_to_json(ranges)


@pytest.mark.parametrize("again", [None, _AGAIN])
def test_nothing_is_tried_without_a_stream_or_a_pass(
    graph_of: Callable[..., Graph], again: Reobserver | None
) -> None:
    parts: dict[str, Any] = (
        {"extra": "y = Tanh (x1)", "more": ", float[N, S, 96] y"} if again is not None else {}
    )
    _, repairs = _search(make_graph(graph_of, **parts), again)
    assert repairs.tried == ()


def test_what_was_known_of_rotated_channels_is_dropped(graph_of: Callable[..., Graph]) -> None:
    graph = make_graph(graph_of, outlier=20.0)
    ranges, _ = _search(graph)
    placement, smooth = place(graph.model, force=["."]), Channels(scale=(0.5,) * WIDTH, amax=1.0)
    found = rescale(graph.model, placement, replace(ranges, channels={"a": smooth, "o": smooth}))
    assert (found.names["a"], found.names["o"]) == ("a_rotated", "o_rescaled")
    assert found.ranges.rotation == "none"
    assert {"a_rotated", "o_rescaled"} <= {*found.placement.activations}
