"""AWQ: its search against a slow one, its graphs against the float ones, and what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from folded import op_types
from made_up import batches_of
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Range, Ranges
from trtq.models.session import save
from trtq.pipeline.formats import FP16, FP32, INT4
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.edit import map_values
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph
from trtq.pipeline.rewrite.weights.awq import encode_by_importance, search_scales
from trtq.pipeline.rewrite.weights.choose import choose_weights
from trtq.pipeline.rewrite.weights.gptq import Gram
from trtq.pipeline.rewrite.weights.rescaled import RescaledInputs, rescale_inputs

GraphOf = Callable[..., Graph]
Outputs = Callable[..., list[NDArray[np.float32]]]
AWQ = WeightScheme("int4", "awq", 32)
ATTENTION = """g (float[N, 6, 64] x) => (float[N, 6, 64] y) {
  n = LayerNormalization <axis = -1> (x, g, b)
  [q] q = MatMul (n, wq)
  [k] k = MatMul (n, wk)
  [v] v = Gemm3 (n, wv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  p = Softmax <axis = -1> (s)
  o = MatMul (p, v)
  [out] y = MatMul (o, wo)
}""".replace("Gemm3", "MatMul")
MLP = """g (float[N, 64] x) => (float[N, 64] y) {
  p = Mul (x, x)
  m = ReduceMean <keepdims = 1> (p, last)
  e = Add (m, eps)
  r = Sqrt (e)
  d = Div (x, r)
  n = Mul (d, g)
  [up] u = MatMul (n, wu)
  [gate] t = Gemm <transB = 1> (n, wt)
  s = Sigmoid (t)
  h = Mul (s, u)
  [down] z = Gemm (h, wd, bd)
  a = Relu (z)
  [last] y = MatMul (a, wl)
}"""


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def spread(size: int) -> NDArray[np.float32]:
    """Returns the sizes of channels of which one in 16 is large, as in language models."""
    sizes = np.exp(0.5 * np.random.default_rng(size).standard_normal(size))
    sizes[::16] *= 30
    return sizes.astype(np.float32)


def attention(graph_of: GraphOf) -> Graph:
    names = ("wq", "wk", "wv", "wo")
    weights = {name: random(64, 64, seed=index) / 8 for index, name in enumerate(names)}
    return graph_of(ATTENTION, opset=21, g=spread(64), b=random(64), **weights)


def mlp(graph_of: GraphOf) -> Graph:
    weights = {"wu": random(64, 128), "wt": random(128, 64), "wd": random(128, 64), "wl": random(64, 64)}
    small = {name: array / 8 for name, array in weights.items()}
    rest = {"bd": random(64), "last": np.array([-1]), "eps": np.float32(1e-5), "g": spread(64)}
    return graph_of(MLP, opset=21, **small, **rest)


def data(*shape: int, count: int = 8) -> Batches:
    return batches_of([random(*shape, seed=100 + index) for index in range(count)])


def chosen(graph: Graph) -> Placement:
    return choose_weights(graph.model, AWQ)


def rescaled(graph: Graph, batches: Batches) -> RescaledInputs:
    return rescale_inputs(graph.model, chosen(graph), batches, "float32")


def quantized(
    graph: Graph,
    batches: Batches | None,
    method: str,
    rest: FloatFormat = FP32,
    placement: Placement | None = None,
) -> ir.Model:
    encoding = WeightEncoding(method, "tensorrt", batches)
    return quantize_graph(graph, placement or chosen(graph), rest=rest, weights=encoding).model


def sqnr(outputs: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    noise = np.square(outputs.astype(np.float64) - wanted).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))


def slow_loss(weight: NDArray[np.float64], inputs: NDArray[np.float64], scale: NDArray[np.float64]) -> float:
    """Returns the squared error of the product itself, with the weight's codes by the plain clips."""
    codes, scales = encode_by_importance(
        (weight * scale[:, None]).astype(np.float32), np.square(inputs / scale).sum(axis=0), 32, "float32"
    )
    held = INT4.decode(codes, scales, PerBlock(0, 32)).astype(np.float64) / scale[:, None]
    return float(np.square(inputs @ held - inputs @ weight).sum())


def test_the_search_finds_what_running_the_layer_for_each_exponent_finds() -> None:
    inputs = (random(4000, 64) * spread(64)).astype(np.float64)
    weights = [random(64, 40, seed=seed).astype(np.float64) for seed in (1, 2)]
    magnitudes = np.abs(inputs).mean(axis=0)
    tried = [magnitudes ** (step / 20) for step in range(20)]
    losses = [sum(slow_loss(weight, inputs, scale) for weight in weights) for scale in tried]
    best = tried[int(np.argmin(losses))]
    products = inputs.T @ inputs
    found = search_scales([(weight, 32) for weight in weights], products, magnitudes, "float32")
    assert found is not None
    assert found.max() * found.min() == pytest.approx(1)
    ratio = found / best
    assert ratio.std() / ratio.mean() < 1e-6  # the same exponent
    assert min(losses) < 0.8 * losses[0]


def test_inputs_that_are_alike_are_not_scaled() -> None:
    weight = np.eye(64, dtype=np.float32)
    assert search_scales([(weight, 32)], np.eye(64), np.ones(64), "float32") is None
    assert search_scales([(weight, 32)], np.eye(64), np.zeros(64), "float32") is None


def test_an_input_that_the_data_never_uses_keeps_its_weights() -> None:
    inputs = random(200, 64) * spread(64)
    inputs[:, 7] = 0
    gram = Gram(inputs.T @ inputs, 200, np.abs(inputs).mean(axis=0).astype(np.float64))
    weight = random(64, 64)
    scale = search_scales([(weight, 32)], gram.damped(), gram.magnitudes, "float32")
    assert scale is not None
    counts = np.diag(gram.damped()) / scale**2
    codes, scales = encode_by_importance(weight * scale[:, None].astype(np.float32), counts, 32, "float32")
    held = INT4.decode(codes, scales, PerBlock(0, 32))[7] / scale[7]
    assert np.corrcoef(held, weight[7])[0, 1] > 0.5


def test_clips_by_importance_err_less_where_it_counts() -> None:
    weight, counts = random(64, 96), np.geomspace(1e-3, 1e3, 64)
    losses = []
    for importance in (np.ones(64), counts):
        codes, scales = encode_by_importance(weight, importance, 32, "float32")
        error = INT4.decode(codes, scales, PerBlock(0, 32)) - weight
        losses.append(float((counts[:, None] * error**2).sum()))
    assert losses[1] < 0.8 * losses[0]
    plain = INT4.encode(weight, PerBlock(0, 32), "float32", "mse")
    for ours, theirs in zip(
        encode_by_importance(weight, np.full(64, 3.0), 32, "float32"), plain, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("make", "shape"), [(attention, (8, 6, 64)), (mlp, (64, 64))])
def test_the_float_outputs_stay(
    graph_of: GraphOf, outputs_of: Outputs, make: Callable[[GraphOf], Graph], shape: tuple[int, ...]
) -> None:
    graph = make(graph_of)
    made = rescaled(graph, data(*shape))
    assert made.names
    feed = {"x": random(*shape, seed=7)}
    (ours,), (theirs,) = outputs_of(made.model, feed=feed), outputs_of(graph.model, feed=feed)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_query_key_and_value_share_the_scales_that_their_normalization_takes(graph_of: GraphOf) -> None:
    graph = attention(graph_of)
    made = rescaled(graph, data(8, 6, 64))
    old, new = graph.model.graph.initializers, made.model.graph.initializers
    ratios = {
        name: new[f"{name}_rescaled"].const_value.numpy() / old[name].const_value.numpy()  # type: ignore[union-attr]
        for name in ("wq", "wk", "wv")
    }
    scale = ratios["wq"][:, 0]
    for ratio in ratios.values():
        np.testing.assert_allclose(ratio, np.broadcast_to(scale[:, None], ratio.shape), rtol=1e-4)
    node = next(node for node in made.model.graph if node.op_type == "LayerNormalization")
    gain = node.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(gain * scale, spread(64), rtol=1e-5)
    behind_attention = op_types(made.model).count("Mul")
    assert behind_attention == ("o" in made.names)  # nothing there takes the division


def test_what_makes_the_inputs_of_a_gated_layer_takes_its_scales(graph_of: GraphOf) -> None:
    graph = mlp(graph_of)
    made = rescaled(graph, data(64, 64))
    assert set(made.names) <= {"n", "h", "a"}
    assert op_types(made.model) == op_types(graph.model)


@pytest.mark.parametrize("rest", [FP32, FP16])
@pytest.mark.parametrize(("make", "shape"), [(attention, (8, 6, 64)), (mlp, (64, 64))])
def test_large_inputs_keep_the_outputs_nearer_than_clips_do(
    graph_of: GraphOf,
    outputs_of: Outputs,
    make: Callable[[GraphOf], Graph],
    shape: tuple[int, ...],
    rest: FloatFormat,
) -> None:
    graph, batches, feed = make(graph_of), data(*shape), {"x": random(*shape, seed=7)}
    (wanted,) = outputs_of(graph.model, feed=feed)
    found = {
        method: sqnr(outputs_of(quantized(graph, batches, method, rest), feed=feed)[0], wanted)
        for method in ("mse", "awq")
    }
    assert found["awq"] > found["mse"] + 1.5


def test_weights_of_another_file_are_scaled_when_they_are_written(
    graph_of: GraphOf, outputs_of: Outputs, tmp_path: Path
) -> None:
    graph = mlp(graph_of)
    ir.save(graph.model, tmp_path / "large.onnx", external_data="large.data")
    late = Graph(ir.load(tmp_path / "large.onnx"), tmp_path / "large.onnx", str)
    made = rescaled(late, data(64, 64))
    kinds = [type(value.const_value) for value in made.model.graph.initializers.values()]
    assert kinds.count(ir.LazyTensor) >= 3
    feed = {"x": random(16, 64, seed=7)}
    for rest in (FP32, FP16):
        save(quantized(late, data(64, 64), "awq", rest), tmp_path / "small.onnx")
        wanted = outputs_of(quantized(graph, data(64, 64), "awq", rest), feed=feed)[0]
        np.testing.assert_array_equal(outputs_of(tmp_path / "small.onnx", feed=feed)[0], wanted)


def test_a_layer_with_int8_activations_keeps_its_weight_and_its_ranges_fit(
    graph_of: GraphOf, outputs_of: Outputs
) -> None:
    graph, batches, feed = mlp(graph_of), data(64, 64), {"x": random(16, 64, seed=7)}
    both = place(graph.model)
    eight = tuple(node for node in both.quantized if node.name == "down")
    four = tuple(node for node in chosen(graph).quantized if node.name != "down")
    order = {node.name: index for index, node in enumerate(graph.model.graph)}
    placement = Placement(tuple(sorted((*eight, *four), key=lambda node: order[node.name])))
    tapped = graph.model.clone()
    tapped.graph.outputs.append(map_values(tapped.graph)["h"])
    amax = float(np.abs(outputs_of(tapped, feed=feed)[1]).max())
    ranges = Ranges({"h": Range(amax, -amax, amax)}, "made", "0", "none", 1, beyond_fp16={"n": 1e6})
    found = rescale_inputs(graph.model, placement, batches, "float32")
    down = next(node for node in found.placement.quantized if node.name == "down")
    assert (down.activations, down.weight) == (((0, "h"),), (1, "wd"))
    assert found.rename_ranges(ranges).beyond_fp16 == {"n": 1e6, found.names["n"]: 1e6}
    (wanted,) = outputs_of(graph.model, feed=feed)
    reached = {}
    for method in ("mse", "awq"):
        encoding = WeightEncoding(method, "tensorrt", batches)
        made = quantize_graph(graph, placement, ranges, weights=encoding).model
        reached[method] = sqnr(outputs_of(made, feed=feed)[0], wanted)
    assert reached["awq"] > reached["mse"] + 2


def test_a_float_product_of_the_same_inputs_is_scaled_too(graph_of: GraphOf, outputs_of: Outputs) -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y, float[N, 4] z) {
      n = Mul (x, g)
      [wide] y = MatMul (n, w)
      [few] z = MatMul (n, v)
    }"""
    graph = graph_of(text, opset=21, g=spread(64), w=random(64, 64), v=random(64, 4))
    made = rescaled(graph, data(64, 64))
    assert set(made.names) == {"n"}
    assert op_types(made.model) == op_types(graph.model)
    ours, theirs = outputs_of(made.model), outputs_of(graph.model)
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_an_input_of_the_graph_is_not_scaled(graph_of: GraphOf) -> None:
    graph = graph_of(
        "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", opset=21, w=random(64, 64)
    )
    feeds: list[NDArray[np.float32] | Mapping[str, NDArray[np.float32]]] = [random(16, 64) * spread(64)]
    made = rescale_inputs(graph.model, chosen(graph), batches_of(feeds), "float32")
    assert (made.names, set(made.importance)) == ({}, {"w"})


def test_tensorrt_computes_an_inserted_factor_within_its_neighbours(
    graph_of: GraphOf, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    graph = attention(graph_of)
    plain, scaled = (
        build_rtx(quantized(graph, data(8, 6, 64), method, FP16), N=2) for method in ("mse", "awq")
    )
    assert "Mul" in op_types(quantized(graph, data(8, 6, 64), "awq", FP16))
    assert sum("Int4" in dtypes for dtypes in scaled.values()) >= 4
    assert len(scaled) == len(plain)
