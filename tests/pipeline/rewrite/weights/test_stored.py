"""W4A8: weights that are stored in INT4 blocks and computed with in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from made_up import batches_of, random_array
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.pipeline.deliver.html.layers import weight_sqnr_db
from trtq.pipeline.formats import FP8, FP16, INT4, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock, PerChannel
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.adaround import find_roundings
from trtq.pipeline.judge.switchable import build_switchable
from trtq.pipeline.rewrite.mixed import convert_floats
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.weights.choose import choose_stored, choose_weights, group_stored
from trtq.pipeline.rewrite.weights.stored import store

GraphOf = Callable[..., Graph]
Outputs = Callable[..., list[NDArray[np.float32]]]
W4A8 = WeightScheme("int4", "mse", 32, in_products=True)
TEXT = """g (float[N, 64] x) => (float[N, 96] y) {
  [first] h = MatMul (x, w)
  [act] a = Relu (h)
  [second] y = Gemm <transB = 1> (a, v, b)
}"""


def network(graph_of: GraphOf) -> Graph:
    weights = {"w": random_array(64, 128) / 8, "v": random_array(96, 128) / 8, "b": random_array(96)}
    return graph_of(TEXT, opset=21, **weights)


def placed(graph: Graph, form: CodeFormat = INT8) -> Placement:
    return choose_stored(graph.model, place(graph.model, form=form, force=["."]), W4A8)


def ranges(**changes: object) -> Ranges:
    tensors = {name: Range(amax, -amax, amax) for name, amax in (("x", 4.0), ("a", 5.0))}
    return Ranges(tensors, "made", "0", "none", 1, **changes)  # type: ignore[arg-type]


def rounded(
    values: NDArray[np.float64], scale: NDArray[np.float64] | float, form: CodeFormat
) -> NDArray[np.float64]:
    """Returns the values behind Q and DQ."""
    if form is INT8:
        return np.clip(np.rint(values / scale), -128, 127) * scale
    return np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


def held(weight: NDArray[np.float32], axis: int, form: CodeFormat) -> NDArray[np.float64]:
    """Returns what a weight of (.., K at axis, ..) is computed with."""
    codes, scales = INT4.encode(weight, PerBlock(axis, 32), "float32", "mse")
    values = INT4.decode(codes, scales, PerBlock(axis, 32)).astype(np.float64)
    return rounded(values, np.abs(values).max(axis=axis, keepdims=True) / form.largest, form)


@pytest.mark.parametrize("form", [INT8, FP8], ids=str)
def test_the_graph_computes_what_its_codes_stand_for(
    graph_of: GraphOf, outputs_of: Outputs, form: CodeFormat
) -> None:
    graph = network(graph_of)
    model = quantize(graph.model, placed(graph, form), ranges())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.ir_version >= 10
    weights = {name: value.const_value.numpy() for name, value in graph.model.graph.initializers.items()}  # type: ignore[union-attr]
    x = random_array(7, 64)
    first = rounded(x.astype(np.float64), 4.0 / form.largest, form) @ held(weights["w"], 0, form)
    second = rounded(np.maximum(first, 0), 5.0 / form.largest, form) @ held(weights["v"], 1, form).T
    (found,) = outputs_of(model, feed={"x": x})
    error = np.abs(found - (second + weights["b"])).max()
    assert error < 0.02 * np.abs(second).max()  # a value at the middle of two codes may go either way


def test_the_scales_of_both_levels_survive_fp16(graph_of: GraphOf, outputs_of: Outputs) -> None:
    graph, feed = network(graph_of), {"x": random_array(7, 64)}
    wide = quantize(graph.model, placed(graph), ranges(), scale_dtype="float16")
    half = convert_floats(wide, FP16, ranges()).model
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    first, second = outputs_of(wide, feed=feed)[0], outputs_of(half, feed=feed)[0]
    assert np.abs(first - second).max() < 0.02 * np.abs(first).max()


@pytest.mark.parametrize(("form", "word"), [(INT8, "Int8"), (FP8, "FP8")], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_keeps_four_bits_and_multiplies_eight(
    graph_of: GraphOf, build_rtx: Callable[..., dict[str, set[str]]], form: CodeFormat, word: str, half: bool
) -> None:
    graph = network(graph_of)
    model = quantize(graph.model, placed(graph, form), ranges(), scale_dtype="float16")
    kernels = build_rtx(convert_floats(model, FP16, ranges()).model if half else model, N=2)
    products = [dtypes for name, dtypes in kernels.items() if name.startswith(("first", "second"))]
    assert len(products) == 2
    assert all(word in dtypes and "Int4" not in dtypes for dtypes in products)
    assert sum("Int4" in dtypes for dtypes in kernels.values()) == 2


def test_a_product_stores_what_choose_weights_would_store(graph_of: GraphOf) -> None:
    text = """g (float[N, 64] x) => (float[N, 96] y, float[N, 64] z) {
      [first] h = MatMul (x, w)
      [lm_head] y = MatMul (h, v)
      [odd] o = MatMul (h, u)
      [last] z = MatMul (o, s)
    }"""
    shapes = {"w": (64, 128), "v": (128, 96), "u": (128, 100), "s": (100, 64)}
    graph = graph_of(text, opset=21, **{name: random_array(*shape) for name, shape in shapes.items()})
    found = choose_stored(graph.model, place(graph.model, force=["."]), W4A8, ["odd"])
    stored = {node.name: node.scheme.weight and node.scheme.weight.stored for node in found.quantized}
    assert stored == {
        "first": Encoding(INT4, PerBlock(0, 32)), "lm_head": None, "odd": None, "last": None
    }  # fmt: skip
    assert {item.name: item.reason for item in found.kept} == {
        "lm_head": "its name is a sensitive one",
        "odd": "skipped by 'odd'",
        "last": "no block of 16 to 32 divides its 100 inputs",
    }
    assert [weight.tensor for weight in group_stored(graph.model, found)] == ["w"]
    assert (found.has_few_bits, found.min_opset, str(found.quantized[0].scheme)) == (True, 21, "int8 x int4")
    assert found.quantized[0].to_key() != place(graph.model, force=["."]).quantized[0].to_key()


def test_repairs_that_look_at_codes_see_what_is_stored(graph_of: GraphOf, outputs_of: Outputs) -> None:
    graph, placement = network(graph_of), placed(network(graph_of))
    batches = batches_of([random_array(16, 64), random_array(12, 64)])
    assert find_roundings(graph.model, placement, ranges(), batches) == {}
    x = random_array(512, 64) + np.float32(0.5)
    (wanted,) = outputs_of(graph.model, feed={"x": x})
    means = {"x": Channels(mean=tuple(x.mean(axis=0).tolist()))}
    shifts = []
    for channels in ({}, means):
        (found,) = outputs_of(quantize(graph.model, placement, ranges(channels=channels)), feed={"x": x})
        shifts.append(np.abs((found - wanted).mean(axis=0)).mean())
    assert shifts[1] < shifts[0]


def test_all_layers_switched_on_compute_what_the_model_computes(
    graph_of: GraphOf, outputs_of: Outputs
) -> None:
    graph, placement, x = network(graph_of), placed(network(graph_of)), random_array(7, 64)
    (wanted,) = outputs_of(quantize(graph.model, placement, ranges()), feed={"x": x})
    switchable = build_switchable(graph.model, placement, ranges())
    feed: Mapping[str, NDArray[np.generic]] = {"x": x} | {
        f"trtq_switch_{index}_int8": np.array(True) for index in (0, 1)
    }
    np.testing.assert_array_equal(outputs_of(switchable, feed=feed)[0], wanted)


def test_such_a_model_is_taken_as_it_is(graph_of: GraphOf) -> None:
    graph = network(graph_of)
    model = quantize(graph.model, placed(graph), ranges())
    assert lint(model) == ()
    layers = find_quantized_layers(model)
    assert [(layer.name, layer.weight_axis == layer.output_axis) for layer in layers] == [
        ("first", True),
        ("second", True),
    ]
    given = place(model)
    assert (given.quantized, [node.reason for node in given.given]) == ((), ["it comes quantized"] * 2)


def test_blocks_do_not_stand_beside_an_activation_that_comes_quantized(graph_of: GraphOf) -> None:
    text = """g (float[N, 64] x) => (float[N, 96] y) {
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      [fc] y = MatMul (d, w)
    }"""
    graph = graph_of(text, opset=21, s=np.float32(0.1), z=np.int8(0), w=random_array(64, 96))
    found = choose_weights(graph.model, WeightScheme("int4"))
    reason = "its activation is already quantized, and TensorRT then computes blocks incorrectly"
    assert [(node.name, node.reason) for node in found.kept] == [("fc", reason)]
    assert choose_weights(graph.model, WeightScheme("int8")).quantized


def test_the_page_tells_how_near_the_stored_weight_is() -> None:
    weight = random_array(64, 32)
    encoding = Encoding(INT8, PerChannel(1))
    four = Encoding(INT8, PerChannel(1), stored=Encoding(INT4, PerBlock(0, 32)))
    eight_db, four_db = weight_sqnr_db(weight, encoding), weight_sqnr_db(weight, four)
    assert eight_db is not None
    assert four_db is not None
    error = weight - held(weight, 0, INT8)
    assert four_db == pytest.approx(10 * np.log10((weight**2).sum() / (error**2).sum()), abs=0.1)
    assert eight_db > four_db + 15


def test_a_stored_weight_is_what_its_codes_stand_for() -> None:
    stored = store(random_array(64, 32), Encoding(INT4, PerBlock(0, 16)), "float16")
    np.testing.assert_array_equal(stored.scales, stored.scales.astype(np.float16))
    np.testing.assert_array_equal(stored.values, stored.codes * np.repeat(stored.scales, 16, 0))
