"""What layers cost, measured in one session, and the file that holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.ranges import Range, Ranges
from trtq.models.session import save
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.score import Labels
from trtq.pipeline.judge.sensitivity import (
    Distance,
    Effect,
    LayerSensitivity,
    Sensitivity,
    measure,
    read_sensitivity,
    split_in_groups,
    to_json,
)
from trtq.pipeline.judge.switchable import open_switchable
from trtq.pipeline.rewrite.qdq import quantize

_PARTS = {"y": {"boxes": Distance(1.0, math.inf), "scores": Distance(0.7, 3.0)}}
_FINE, _SAME = Effect({"y": Distance(0.9, 12.5)}, 0.75, _PARTS), Effect({"y": Distance(1.0, math.inf)}, 0.8)
_BROKEN = Effect({"y": Distance(math.nan, math.nan), "z": Distance(0.0, -math.inf)})
_WHOLE = Sensitivity(
    "net.onnx", "data.npz", 8, 2, "top-1", 300, 0.8, _FINE,
    (LayerSensitivity("a", "Conv", 100, _FINE, _SAME), LayerSensitivity("b", "Gemm", 200, _BROKEN, _FINE)),
    "key",
)  # fmt: skip


def test_a_measurement_is_that_of_the_quantized_model(graph_of: Callable[..., Graph], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((8, 3)).astype(np.float32)
    graph = graph_of(
        "net (float[N, 4] x) => (float[N, 3] y) { [one] h = MatMul (x, w)\n [two] y = MatMul (h, v) }",
        w=w,
        v=v,
    )
    feeds = [rng.standard_normal((5, 4)).astype(np.float32) for _ in range(2)]

    def read() -> Iterator[Feed]:
        for index, x in enumerate(feeds):
            yield Feed({"x": x, "labels": (x @ w @ v).argmax(axis=1)}, f"feed {index}", 5)

    batches = Batches(read, "made", 10)
    placement = place(graph.model, force=(".",))
    ranges = Ranges({name: Range(9.0, -9.0, 9.0) for name in placement.activations}, "made", "0", "none", 1)
    session = open_switchable(graph.model, placement, ranges)
    counted: list[int] = []
    both = dict.fromkeys(("one", "two"), "int8")
    found = measure(session, {"all": both}, batches, Labels("labels"), counted.append)
    save(quantize(graph.model, placement, ranges), tmp_path / "q.onnx")
    files = {"fp32": graph.path, "q": tmp_path / "q.onnx"}
    wanted = compare_models(files, [("q", "fp32")], batches, Labels("labels"))
    (output,) = wanted.outputs
    assert found.effects["all"].outputs["y"].sqnr_db == pytest.approx(output.sqnr_db)
    assert found.effects["all"].cosine == pytest.approx(output.cosine)
    assert (found.effects["all"].score, found.float_score) == (wanted.accuracy["q"], 1.0)
    assert (found.num_samples, counted) == (10, [5, 5])


def test_what_an_output_is_joined_of_is_measured_and_no_metric_gets_it(
    graph_of: Callable[..., Graph], tmp_path: Path
) -> None:
    """Boxes up to 640 hide what scores up to 1 lose; a metric is asked about the outputs of the model."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 8)).astype(np.float32) for name in ("w", "v")}
    graph = graph_of(
        """net (float[N, 4] x) => (float[N, 16] y) <float big = {640}> {
            [boxes] b = MatMul (x, w) loud = Mul (b, big)
            [classes] c = MatMul (x, v) scores = Sigmoid (c) y = Concat <axis = 1> (loud, scores)
        }""",
        **weights,
    )
    (tmp_path / "m.py").write_text("def f(outputs, labels):\n    return float(list(outputs) == ['y'])\n")
    placement = place(graph.model, force=(".",))
    ranges = Ranges({name: Range(3.0, -3.0, 3.0) for name in placement.activations}, "made", "0", "none", 1)
    session = open_switchable(graph.model, placement, ranges)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    batches = Batches(lambda: iter([Feed({"x": x}, "feed", 6)]), "made", 6)
    labels = Labels(None, metric=f"{tmp_path / 'm.py'}:f")
    found = measure(session, {"s": {"classes": "int8"}}, batches, labels)
    effect = found.effects["s"]
    assert (effect.score, found.float_score) == (1.0, 1.0)
    assert list(effect.outputs) == ["y"]
    assert effect.outputs["y"].sqnr_db > 90
    assert effect.parts["y"]["loud"].noise == 0
    assert 30 < effect.parts["y"]["scores"].sqnr_db < 60


def test_the_worst_output_counts_and_a_broken_one_most() -> None:
    effect = Effect({"y": Distance(0.9, 30.0), "z": Distance(0.95, 12.0)})
    assert (effect.cosine, effect.sqnr_db) == (0.9, 12.0)
    assert math.isnan(_BROKEN.cosine)
    assert [
        item.noise for item in (Distance(1, math.inf), Distance(1, 20.0), Distance(math.nan, math.nan))
    ] == [
        0.0,
        pytest.approx(0.01),
        math.inf,
    ]


def test_layers_are_measured_a_few_at_a_time() -> None:
    assert [list(group) for group in split_in_groups("abcdefghij", mixtures_each=2)] == [
        list("abcd"), list("efg"), list("hij"),
    ]  # fmt: skip
    assert [len(group) for group in split_in_groups("abcdefghij", mixtures_each=1)] == [5, 5]


@pytest.mark.parametrize(
    ("at_a_time", "sizes"), [(1, [4] * 15), (4, [4] * 12 + [3] * 4), (20, [3] * 20), (99, [1] * 60)]
)
def test_workers_get_as_many_layers_each(at_a_time: int, sizes: list[int]) -> None:
    groups = [*split_in_groups(range(60), mixtures_each=2, at_a_time=at_a_time)]
    assert [len(group) for group in groups] == sizes
    assert [layer for group in groups for layer in group] == [*range(60)]


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(to_json(_WHOLE))
    document = json.loads(path.read_bytes())
    assert (document["schema_version"], document["kind"]) == (1, "sensitivity")
    assert document["layers"][1]["alone"]["outputs"]["y"] == {"cosine": None, "sqnr_db": None}
    found = read_sensitivity(path)
    assert repr(found) == repr(_WHOLE)  # NaN is not equal to itself
    assert found.is_complete
    assert not replace(found, layers=found.layers[:1]).is_complete
    assert not replace(found, all_quantized=None).is_complete
