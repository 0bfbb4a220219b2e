"""Graphs with weights of few bits: what they compute, how large they are, whether TensorRT-RTX takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from reference_nf4 import dequantize_absmax

from trtq.errors import ModelError
from trtq.models.session import save
from trtq.pipeline.formats.double import quantize_absmax
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.weights.apply import Runtime, encode_weight, quantize_weights
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, choose_weights, group_by_weight
from trtq.pipeline.rewrite.weights.layout import plan_parts

ModelOf = Callable[..., ir.Model]
OutputsOf = Callable[..., list[NDArray[np.float32]]]
SCHEMES = [
    WeightScheme("int8"),
    WeightScheme("fp8"),
    WeightScheme("int4"),
    WeightScheme("int4", "mse", block_size=32),
    WeightScheme("nf4"),
    WeightScheme("nf4", block_size=16, double_quantization=True),
]
TEXT = """g (int64[N,4] ids) => (float[A,B] y) {
  [embed] e = Gather (table, ids)
  [up] h = MatMul (e, w)
  [act] a = Relu (h)
  [flat] f = Reshape (a, size)
  [gemm] m = Gemm <transB = 1> (f, v)
  [back] t = Transpose <perm = [1, 0]> (m)
  [left] l = MatMul (u, t)
  [out] y = Transpose <perm = [1, 0]> (l)
}"""


def network(model_of: ModelOf) -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"table": (90, 64), "w": (64, 128), "v": (96, 128), "u": (48, 96)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return model_of(TEXT, opset=21, ir_version=10, size=np.array([-1, 128]), **weights)


def chosen_of(model: ir.Model, scheme: WeightScheme) -> tuple[ChosenWeight, ...]:
    return group_by_weight(model, choose_weights(model, scheme))


def dequantized(model: ir.Model, scheme: WeightScheme) -> ir.Model:
    """Returns the float model with the weights that the codes stand for: the slow, obvious way."""
    result = model.clone()
    for weight in chosen_of(model, scheme):
        value = result.graph.initializers[weight.tensor]
        assert value.const_value is not None
        codes, scales = encode_weight(value.const_value, weight, "float32", scheme.method)
        if scheme.double_quantization:
            axis = weight.blocks.axis
            scales = scales if axis else scales.T
            again = dequantize_absmax(quantize_absmax(np.ascontiguousarray(scales))).reshape(scales.shape)
            scales = again if axis else again.T
        array = weight.encoding.format.decode(codes, scales, weight.encoding.granularity)
        value.const_value = ir.tensor(array.astype(np.float32), name=weight.tensor)
    return result


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_graph_computes_what_the_codes_stand_for(
    model_of: ModelOf, outputs_of: OutputsOf, scheme: WeightScheme, runtime: Runtime
) -> None:
    model = network(model_of)
    chosen = chosen_of(model, scheme)
    assert len(chosen) == 4
    result = quantize_weights(model, model, chosen, method=scheme.method, runtime=runtime)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    feed = {"ids": np.arange(8).reshape(2, 4)}
    wanted, found = outputs_of(dequantized(model, scheme), feed=feed), outputs_of(result, feed=feed)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-3)
    assert "w" not in result.graph.initializers
    assert "w" in model.graph.initializers  # the source is as it was


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_constants_are_as_large_as_the_plan_says(model_of: ModelOf, scheme: WeightScheme) -> None:
    model = network(model_of)
    half, _ = to_fp16(model)
    chosen = chosen_of(model, scheme)
    result = quantize_weights(half, model, chosen, method=scheme.method)
    planned = sum(part.nbytes for weight in chosen for part in plan_parts(weight, ir.DataType.FLOAT16))
    held = sum(
        value.const_value.nbytes
        for name, value in result.graph.initializers.items()
        if value.const_value and name.rsplit("/", 1)[-1].startswith(("codes", "scale", "absmax"))
    )
    assert held == planned
    floats = sum(weight.num_elements for weight in chosen)
    assert 8 * planned / floats < {"int8": 8.5, "fp8": 8.5, "int4": 4.6, "nf4": 5.2}[scheme.format]


@pytest.mark.parametrize(
    ("scheme", "half"),
    list(zip(SCHEMES, (True, True, False, True, False, True), strict=True)),
    ids=str,
)
def test_tensorrt_builds_it_and_keeps_the_codes(
    model_of: ModelOf, build_rtx: Callable[..., dict[str, set[str]]], scheme: WeightScheme, half: bool
) -> None:
    model = network(model_of)
    base = to_fp16(model)[0] if half else model
    kernels = build_rtx(quantize_weights(base, model, chosen_of(model, scheme), method=scheme.method), N=2)
    wanted = {"int8": "Int8", "fp8": "FP8"}.get(scheme.format, "Int4")
    assert sum(wanted in dtypes for dtypes in kernels.values()) >= 3


def test_only_onnx_runtime_gets_its_own_operator_and_only_for_products(model_of: ModelOf) -> None:
    model, scheme = network(model_of), WeightScheme("nf4")
    chosen = chosen_of(model, scheme)
    ours = quantize_weights(model, model, chosen, method=scheme.method, runtime="onnxruntime")
    node = next(node for node in ours.graph if node.op_type == "MatMulBnb4")
    assert (node.name, node.domain) == ("up", "com.microsoft")
    theirs = quantize_weights(model, model, chosen, method=scheme.method)
    assert not any(node.domain for node in theirs.graph)


def test_a_product_that_is_an_output_keeps_its_name(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = model_of(
        "g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }", opset=21, ir_version=10, w=weight
    )
    scheme = WeightScheme("nf4")
    result = quantize_weights(
        model, model, chosen_of(model, scheme), method=scheme.method, runtime="onnxruntime"
    )
    assert [value.name for value in result.graph.outputs] == ["y"]
    np.testing.assert_allclose(
        outputs_of(result)[0], outputs_of(dequantized(model, scheme))[0], rtol=1e-4, atol=1e-4
    )


def test_nothing_in_the_activation_changes_an_nf4_weight(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    """The look-up waits for the first element of the activation, which may be anything."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = model_of(
        "g (float[2,64] x) => (float[2,64] y) { y = MatMul (x, w) }", opset=21, ir_version=10, w=weight
    )
    scheme = WeightScheme("nf4")
    result = quantize_weights(model, model, chosen_of(model, scheme), method=scheme.method)
    plain = np.ones((2, 64), np.float32)
    wanted = outputs_of(result, feed={"x": plain})[0][1]
    for value in (np.nan, np.inf, -np.inf):
        odd = plain.copy()
        odd[0, 0] = value
        np.testing.assert_array_equal(outputs_of(result, feed={"x": odd})[0][1], wanted)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_empty_activation_gives_an_empty_product(
    model_of: ModelOf, outputs_of: OutputsOf, scheme: WeightScheme, runtime: Runtime
) -> None:
    """The first step of a model that decodes has a past of length 0."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    text = "g (float[1,P,64] x) => (float[1,P,64] y) { y = MatMul (x, w) }"
    model = model_of(text, opset=21, ir_version=10, w=weight)
    chosen = chosen_of(model, scheme)
    result = quantize_weights(model, model, chosen, method=scheme.method, runtime=runtime)
    (empty,) = outputs_of(result, feed={"x": np.zeros((1, 0, 64), np.float32)})
    assert empty.shape == (1, 0, 64)


def test_a_weight_of_two_precisions_is_held_in_both(model_of: ModelOf, outputs_of: OutputsOf) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    text = (
        "g (float[N,64] x) => (float[N,64] y, float[N,64] z) { [a] y = MatMul (x, w) [b] z = MatMul (x, w) }"
    )
    model = model_of(text, opset=21, ir_version=10, w=weight)
    half, _ = to_fp16(model, keep_fp32=["^b$"])
    scheme = WeightScheme("int4")
    result = quantize_weights(half, model, chosen_of(model, scheme), method=scheme.method)
    kinds = {node.inputs[1].dtype for node in result.graph if node.op_type == "DequantizeLinear"}  # type: ignore[union-attr]
    assert kinds == {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    first, second = outputs_of(result)
    np.testing.assert_allclose(first, second, rtol=0.01, atol=0.05)


def test_weights_of_another_file_are_quantized_when_they_are_written(
    model_of: ModelOf, outputs_of: OutputsOf, tmp_path: Path
) -> None:
    model = network(model_of)
    ir.save(model, tmp_path / "large.onnx", external_data="large.data")
    lazy = ir.load(tmp_path / "large.onnx")
    feed = {"ids": np.arange(8).reshape(2, 4)}
    for scheme in SCHEMES:
        chosen = chosen_of(lazy, scheme)
        result = quantize_weights(lazy, lazy, chosen, method=scheme.method)
        assert any(
            isinstance(value.const_value, ir.LazyTensor) for value in result.graph.initializers.values()
        )
        save(result, tmp_path / "small.onnx")
        wanted = outputs_of(quantize_weights(model, model, chosen, method=scheme.method), feed=feed)
        np.testing.assert_array_equal(outputs_of(tmp_path / "small.onnx", feed=feed)[0], wanted[0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(
    model_of: ModelOf, tmp_path: Path, scheme: WeightScheme, value: float
) -> None:
    model = network(model_of)
    spoilt = np.ones((64, 128), np.float32)
    spoilt[3, 5] = value
    model.graph.initializers["w"].const_value = ir.tensor(spoilt, name="w")
    chosen = chosen_of(model, scheme)
    message = f"weight 'w' has 1 values that are infinite or not a number, such as {value}"
    with pytest.raises(ModelError, match=message):
        quantize_weights(model, model, chosen, method=scheme.method)
    ir.save(model, tmp_path / "large.onnx", external_data="large.data")
    lazy = ir.load(tmp_path / "large.onnx")
    with pytest.raises(ModelError, match=message):
        save(quantize_weights(lazy, lazy, chosen, method=scheme.method), tmp_path / "small.onnx")
