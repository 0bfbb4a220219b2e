"""Tests that weights of few bits are rotated where they then lose less, and are left where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from residual_decoder import TOKENS, make_graph, make_weights

from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph
from trtq.pipeline.rewrite.rotation import weights as rotation
from trtq.pipeline.rewrite.rotation.streams import Constant
from trtq.pipeline.rewrite.rotation.weights import measure_gain
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight

GraphOf = Callable[..., Graph]
IDS = {"ids": np.random.default_rng(0).integers(0, TOKENS, (8, 16))}


@pytest.mark.parametrize(("power", "wins"), [(1, False), (3, True)], ids=["normal", "heavy tails"])
def test_weights_of_which_a_few_are_large_lose_less_when_they_are_rotated(
    graph_of: GraphOf, outputs_of: Callable[..., list[NDArray[Any]]], power: int, wins: bool
) -> None:
    weights = {name: make_weights()[name] ** power for name in ("table", "wq", "wk", "wv", "wu", "wf")}
    graph = make_graph(graph_of, opset=21, constants=weights)
    placement = choose_weights(graph.model, WeightScheme("int4"))
    gain = measure_gain(graph.model, group_by_weight(graph.model, placement), "float32")
    (expected,) = outputs_of(graph.model.clone(), feed=IDS)
    noise = []
    for rotates in (False, True):
        made = quantize_graph(graph, placement, weights=WeightEncoding(rotates=rotates))
        assert len(made.notes) == (wins and rotates)
        (found,) = outputs_of(made.model, feed=IDS)
        noise.append(float(np.square(found - expected).sum()))
    if wins:
        assert gain is not None
        assert gain > 1.4
        assert made.notes == (
            f"the residual stream is rotated: the weights then make {gain:.3g} times less noise; "
            f"--repair none leaves it",
        )
        assert noise[1] < 0.85 * noise[0]
    else:
        assert (gain, noise[0]) == (None, noise[1])


def test_of_many_weights_a_few_are_read(graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_graph(graph_of, opset=21, constants={"wf": make_weights()["wf"] ** 3})
    chosen = group_by_weight(graph.model, choose_weights(graph.model, WeightScheme("int4")))
    read: list[str] = []

    def sample(constant: Constant, blocks: PerBlock) -> NDArray[np.float32]:
        read.append(str(constant.value.name))
        return take_all(constant, blocks)

    take_all = rotation._sample
    monkeypatch.setattr(rotation, "_sample", sample)
    measure_gain(graph.model, chosen, "float32")
    assert len(read) > 3
    every, read = read, []
    monkeypatch.setattr(rotation, "_MOST_WEIGHTS", 3)
    measure_gain(graph.model, chosen, "float32")
    assert len(read) == 3
    assert set(read) < set(every)


def test_without_blocks_or_a_stream_nothing_is_measured(graph_of: GraphOf) -> None:
    graph = make_graph(graph_of, opset=21, outlier=20.0)
    placement = choose_weights(graph.model, WeightScheme("int8"))
    assert measure_gain(graph.model, group_by_weight(graph.model, placement), "float32") is None
    assert measure_gain(graph.model, (), "float32") is None
