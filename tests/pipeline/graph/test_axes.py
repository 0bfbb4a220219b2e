"""Tests of which layers get NVFP4, and what the others get."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up import random_array

from trtq.pipeline.calibrate.data import describe_others
from trtq.pipeline.formats import FP8, NVFP4
from trtq.pipeline.formats.granularity import PerBlock, PerChannel, PerTensor
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place


@pytest.mark.parametrize(
    ("x", "call", "shape", "axes"),
    [
        ("float[N, 64] x", "MatMul (x, w)", (64, 32), (1, 0)),
        ("float[N, 7, 48] x", "MatMul (x, w)", (48, 30), (2, 0)),
        ("float[N, 2, 7, 16] x", "MatMul (x, w)", (16, 32), (3, 0)),
        ("float[N, 64] x", "Gemm (x, w)", (64, 32), (1, 0)),
        ("float[N, 64] x", "Gemm <transB = 1> (x, w)", (32, 64), (1, 1)),
    ],
)
def test_products_get_blocks_along_the_summed_axis(
    graph_of: Callable[..., Graph], x: str, call: str, shape: tuple[int, ...], axes: tuple[int, int]
) -> None:
    text = f"g ({x}) => (float y) {{ [layer] h = {call} y = Relu (h) }}"
    placement = place(graph_of(text, w=random_array(*shape)).model, form=NVFP4)
    (layer,) = placement.layers
    ((_, activation),) = layer.scheme.inputs
    assert activation.is_dynamic
    assert activation.granularity == PerBlock(axes[0], 16)
    assert layer.scheme.weight is not None
    assert layer.scheme.weight.granularity == PerBlock(axes[1], 16)
    assert layer.scheme.formats == {NVFP4}
    assert placement.min_opset == 23
    assert placement.formats == {"x": NVFP4}
    assert placement.with_one_scale() == placement.with_weights_of_7_bits() == placement


@pytest.mark.parametrize(
    ("x", "call", "shape", "reason"),
    [
        ("float[N, 40] x", "MatMul (x, w)", (40, 32), "takes multiples of 16 inputs, it has 40"),
        ("float[N, 64, 5] x", "MatMul (w, x)", (32, 64), "takes an activation and, as the second operand, a"),
        ("float[4, N, 64] x", "MatMul (x, w)", (4, 64, 32), "takes one matrix as weight"),
        ("float[64, N] x", "Gemm <transA = 1> (x, w)", (64, 32), "an activation that is not transposed"),
        ("float[N, 16, 4, 4] x", "Conv (x, w)", (32, 16, 1, 1), "is for MatMul and Gemm, not for Conv"),
    ],
)
def test_other_layers_get_fp8_and_the_reason_is_told(
    graph_of: Callable[..., Graph], x: str, call: str, shape: tuple[int, ...], reason: str
) -> None:
    text = f"g ({x}) => (float y) {{ [layer] h = {call} y = Relu (h) }}"
    model = graph_of(text, w=random_array(*shape)).model
    placement = place(model, form=NVFP4)
    (layer,) = placement.layers
    assert layer.scheme == place(model, form=FP8).layers[0].scheme
    assert layer.scheme.formats == {FP8}
    assert isinstance(layer.scheme.weight and layer.scheme.weight.granularity, PerChannel | PerTensor)
    told = describe_others(model, placement, NVFP4)
    assert told.startswith("1 of 1 layers get FP8: 'layer' (NVFP4 ")
    assert reason in told
    assert describe_others(model, place(model, form=FP8), FP8) == ""


def test_a_tensor_that_is_read_in_two_formats_has_the_range_that_holds_all_of_it(
    graph_of: Callable[..., Graph],
) -> None:
    text = """g (float[N, 64] x, float[64, N] z) => (float[N, 32] y, float[N, N] p) {
      [first] y = MatMul (x, w) [second] p = MatMul (x, z) }"""
    model = graph_of(text, w=random_array(64, 32)).model
    types = ("MatMul", "Attention")
    for form, formats in ((NVFP4, {"x": NVFP4, "z": FP8}), (FP8, {"x": FP8, "z": FP8})):
        placement = place(model, form=form, op_types=types, force=["."])
        assert placement.formats == formats
        assert [str(node.scheme) for node in placement.layers] == [f"{form} x {form}", "fp8 x fp8"]


def test_a_convolution_and_a_softmax_read_fp8(graph_of: Callable[..., Graph]) -> None:
    text = """g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) {
      [conv] c = Conv (x, w) [add] a = Add (c, x) [softmax] y = Softmax (a) }"""
    model = graph_of(text, w=random_array(16, 16, 1, 1)).model
    placement = place(model, form=NVFP4, op_types=("Conv", "Softmax"), force=["."])
    assert {str(node.name): node.scheme.formats for node in placement.quantized} == {
        "conv": {FP8},
        "softmax": {FP8},
    }
