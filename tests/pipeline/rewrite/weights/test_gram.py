"""Gram matrices for GPTQ and AWQ: those that cannot be used, and those of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from made_up import batches_of
from pickled_workers import Pickled

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError, ModelError
from trtq.pipeline.formats import FP16
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph
from trtq.pipeline.rewrite.weights.apply import find_scale_dtypes
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight
from trtq.pipeline.rewrite.weights.gram import quantize_by_gptq

TEXT = "g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }"
GPTQ = WeightScheme("int4", "gptq")


def batches(value: float) -> Batches:
    feed = Feed({"x": np.full((2, 64), value, np.float32)}, "calib.npz (samples 0 to 1)", 2)
    return Batches(lambda: iter([feed]), "calib.npz", 2)


def _quantize(model: ir.Model, data: Batches) -> dict[str, Codes]:
    chosen = group_by_weight(model, choose_weights(model, GPTQ))
    return quantize_by_gptq(model, chosen, data, find_scale_dtypes(model, chosen))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_products_that_are_not_finite_are_refused(model_of: Callable[..., ir.Model], value: float) -> None:
    model = model_of(TEXT, opset=21, w=np.ones((64, 64), np.float32))
    with pytest.raises(
        DataError, match=r"tensor 'x' has values in calib\.npz \(samples 0 to 1\) that are not fin"
    ):
        _quantize(model, batches(value))


def test_a_weight_that_is_not_finite_is_refused(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(TEXT, opset=21, w=np.full((64, 64), np.inf, np.float32))
    with pytest.raises(ModelError, match="weight 'w' has 4096 values that are infinite"):
        _quantize(model, batches(1.0))


@pytest.mark.parametrize("method", ["gptq", "awq", "mse"])
@pytest.mark.parametrize("size", [1e-7, 1e5])
def test_weights_that_fp16_does_not_hold_have_scales_in_fp32(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[Any]], method: str, size: float
) -> None:
    rng = np.random.default_rng(0)
    w = (size * rng.standard_normal((64, 64))).astype(np.float32)
    v = rng.standard_normal((64, 64)).astype(np.float32)
    text = "g (float[N,64] x) => (float[N,64] y, float[N,64] z) { y = MatMul (x, w) z = MatMul (x, v) }"
    graph = graph_of(text, opset=21, w=w, v=v)
    feed = {"x": rng.standard_normal((256, 64)).astype(np.float32)}
    data = Batches(lambda: iter([Feed(feed, "made up", 256)]), "made up", 256)
    placement = choose_weights(graph.model, WeightScheme("int4", method))
    how = WeightEncoding(method, batches=data)
    made = quantize_graph(graph, placement, rest=FP16, weights=how)
    for ours, theirs in zip(
        outputs_of(made.model, feed=feed), outputs_of(graph.model, feed=feed), strict=True
    ):
        assert np.square(ours - theirs).mean() < 0.03 * np.square(theirs).mean()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_workers_encode_the_same(graph_of: Callable[..., Graph], method: str) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("w", "v", "u")}
    text = """g (float[N, 64] x) => (float[N, 64] y) <float third = {0.3}> {
        a = MatMul (x, w) b = Mul (a, third) c = MatMul (b, v) d = Mul (c, s) y = MatMul (d, u) }"""
    graph = graph_of(text, opset=21, s=np.exp(rng.standard_normal(64)).astype(np.float32), **weights)
    feeds = [rng.standard_normal((5, 64)).astype(np.float32) for _ in range(3)]
    data = replace(batches_of(feeds), reopen=partial(batches_of, feeds))
    placement = choose_weights(graph.model, WeightScheme("int4", method, 32))
    found = []
    for workers in (None, Pickled()):
        encoding = WeightEncoding(method, "tensorrt", data, workers)
        model = quantize_graph(graph, placement, weights=encoding).model
        found.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert isinstance(workers, Pickled)
    assert [len(part) for _, part in workers.done] == [2, 1]
    assert found[0] == found[1]


def test_activations_count_as_memory(
    model_of: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[N, 64] x) => (float[N, 64] y) {
        a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) d = Relu (c) y = MatMul (d, u) }"""
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("w", "v", "u")}
    model = model_of(text, opset=21, **weights)
    feed = Feed({"x": rng.standard_normal((100, 64)).astype(np.float32)}, "made up", 100)
    begun: list[int] = []

    def read() -> Iterator[Feed]:
        begun.append(1)
        yield feed

    chosen, found = group_by_weight(model, choose_weights(model, GPTQ)), []
    gram, activation = 4 * 64 * 64, 4 * 100 * 64
    for limit, passes in ((3 * gram + 2 * activation, 1), (2 * gram + activation, 2), (gram, 3)):
        monkeypatch.setattr("trtq.pipeline.rewrite.weights.gram._MOST_BYTES", limit)
        begun.clear()
        dtypes = find_scale_dtypes(model, chosen)
        found.append(quantize_by_gptq(model, chosen, Batches(read, "made up", 100), dtypes))
        assert len(begun) == 1 + passes, "a look at the first feed, and the passes"
        for name, (codes, scales) in found[0].items():
            assert np.array_equal(codes, found[-1][name][0])
            assert np.array_equal(scales, found[-1][name][1])
