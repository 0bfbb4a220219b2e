"""Tests of the ranges of what a softmax gets, on attention with a mask: measured by the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators import METHODS
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.entropy import EntropyWithRows
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import observe
from trtq.calibrators.ranges import Ranges
from trtq.models.spec import CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.calibrate.improve import RangeSearch, improve_ranges
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, Placement, place
from trtq.pipeline.rewrite.qdq import quantize
from trtq.progress import Log, Silent

_ATTENTION = """
net (float[N, 8, 32] x, float[N, 1, 8] mask) => (float[N, 8, 32] y) {
  [q] q = MatMul (x, wq)  [k] k = MatMul (x, wk)  [v] v = MatMul (x, wv)
  t = Transpose <perm = [0, 2, 1]> (k)
  [qk] a = MatMul (q, t)
  b = Add (a, mask)
  [soft] p = Softmax <axis = -1> (b)
  [pv] y = MatMul (p, v)
}"""
_TYPES = (*DEFAULT_OP_TYPES, "Softmax")
Outputs = Callable[..., list[NDArray[np.float32]]]


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) / 5 for name in ("wq", "wk", "wv")}
    return graph_of(_ATTENTION, **weights)


def _data(num_feeds: int = 12) -> Batches:
    rng = np.random.default_rng(1)
    feeds = []
    for _ in range(num_feeds):
        hidden = rng.random((4, 1, 8)) < 0.3
        hidden[..., 0] = False
        mask = np.where(hidden, np.float32(-3.4e38), np.float32(0))
        feeds.append({"x": rng.standard_normal((4, 8, 32)).astype(np.float32), "mask": mask})

    def read() -> Iterator[Feed]:
        return (Feed(feed, "made up", 4) for feed in feeds)

    return Batches(read, "made up", 4 * num_feeds)


def _improved(
    graph: Graph, method: str, types: tuple[str, ...] = _TYPES, repair: str = "none", log: Log | None = None
) -> tuple[Placement, RangeSearch]:
    placement = place(graph.model, op_types=types, force=["."])
    seen = observe(graph.model, placement.activations, _data())
    spec = ModelSpec(
        calibration=CalibrationSpec(method=method), quantization=QuantizationSpec(repair=(repair,))
    )
    return placement, improve_ranges(graph, placement, seen, _data(), spec, log or Log(Silent()))


def _lost(outputs_of: Outputs, graph: Graph, placement: Placement, ranges: Ranges) -> float:
    feed = next(iter(_data())).arrays
    (wanted,), (found,) = (
        outputs_of(model, feed=feed) for model in (graph.model, quantize(graph.model, placement, ranges))
    )
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("method", ["auto", "cross-entropy"])
def test_masked_scores_survive_where_no_histogram_tells_their_range(
    graph: Graph, outputs_of: Outputs, method: str
) -> None:
    placement, found = _improved(graph, method)
    assert found.ranges.method.endswith(" + cross-entropy")
    assert found.ranges.tensors["b"].amax < 100
    assert _lost(outputs_of, graph, placement, found.ranges) < 0.01
    seen = observe(graph.model, placement.activations, _data())
    for other in METHODS.values():
        assert _lost(outputs_of, graph, placement, estimate(seen, other())) > 0.1


def test_auto_says_what_it_tried(graph: Graph) -> None:
    _, found = _improved(graph, "auto")
    assert found.repairs is not None
    (applied,) = (item for item in found.repairs.tried if item.applied)
    assert applied.name.endswith(" + cross-entropy")
    assert applied.gain_db > 6


def test_the_rest_has_the_ranges_of_entropy(graph: Graph) -> None:
    _, found = _improved(graph, "cross-entropy")
    _, plain = _improved(graph, "entropy")
    assert (found.method, found.repairs) == (EntropyWithRows(), None)
    others = [name for name in plain.ranges.tensors if name != "b"]
    assert len(others) == 1
    assert all(found.ranges.tensors[name] == plain.ranges.tensors[name] for name in others)


def test_repairs_stand_on_the_ranges_by_cross_entropy(graph: Graph) -> None:
    _, found = _improved(graph, "cross-entropy", repair="bias")
    assert found.repairs is not None
    assert found.ranges.tensors["b"].amax < 100
    assert [item.name for item in found.repairs.tried] == ["bias"]


def test_where_no_softmax_is_quantized_it_says_so(graph: Graph) -> None:
    log = Log(Silent())
    _, found = _improved(graph, "cross-entropy", DEFAULT_OP_TYPES, log=log)
    assert found.ranges.method.startswith("entropy(")
    assert found.ranges.method.endswith(")")
    assert log.notes == [
        "no quantized tensor feeds a softmax, so cross-entropy is entropy here; "
        "--op-types Conv,Gemm,MatMul,Softmax quantizes what a Softmax gets"
    ]


def test_tensorrt_builds_it_and_keeps_the_products_in_int8(
    graph: Graph, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    placement = place(graph.model, op_types=(*_TYPES, "Attention"), force=["."])
    seen = observe(graph.model, placement.activations, _data())
    made = quantize(graph.model, placement, estimate(seen, METHODS["entropy"]()))
    pairs = [node for node in made.graph if node.op_type == "QuantizeLinear"]
    assert "b" in {str(node.inputs[0].name) for node in pairs if node.inputs[0] is not None}
    kernels = build_rtx(made, N=2)
    for layer in ("qk", "pv"):
        assert any("Int8" in types for name, types in kernels.items() if f"{layer}_" in name)
