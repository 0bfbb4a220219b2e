"""Tests of which layers have a scale for each row."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from made_up import random_array

from trtq.pipeline.formats import NVFP4
from trtq.pipeline.graph.placement import place
from trtq.pipeline.graph.tokens import explain_one_scale


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("MatMul(x, w)", ""),
        ("Gemm(x, w)", ""),
        ("Gemm <transB=1> (x, w)", ""),
        ("Gemm <transA=1> (x, w)", "transA: it sums over columns"),
        ("MatMul(w, x)", "its constant is the first operand, so that it sums over columns"),
    ],
)
def test_rows_have_scales_where_the_layer_sums_over_them(
    model_of: Callable[..., ir.Model], node: str, reason: str
) -> None:
    model = model_of(f"g (float[32,32] x) => (float[32,32] y) {{ [fc] y = {node} }}", w=random_array(32, 32))
    placement = place(model, per_token=True)
    (layer,) = placement.quantized
    assert explain_one_scale(model.graph[0], layer) == reason
    assert placement.activations == (("x",) if reason else ())
    assert place(model).activations == ("x",)


def test_a_vector_leaves_no_rows(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[32,32] x) => (float[32] y) { [fc] y = MatMul(x, w) }", w=random_array(32))
    placement = place(model, per_token=True)
    assert placement == place(model)
    (layer,) = placement.quantized
    reason = "its constant is a vector, so that its output has no rows"
    assert explain_one_scale(model.graph[0], layer) == reason


def test_a_convolution_keeps_one_scale(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,8,8,8] x) => (float[N,8,8,8] y) { [c] c = Conv(x, w1) [fc] y = MatMul(c, w2) }"
    placement = place(model_of(text, w1=random_array(8, 8, 1, 1), w2=random_array(8, 8)), per_token=True)
    assert [node.name for node in placement.layers] == ["c", "fc"]
    assert placement.activations == ("x",)


def test_scales_of_blocks_are_finer_than_those_of_rows_and_stay(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[N,32] x) => (float[N,32] y) { [fc] y = MatMul(x, w) }", w=random_array(32, 32))
    placement = place(model, form=NVFP4, per_token=True)
    assert placement == place(model, form=NVFP4)
    assert placement.activations == ("x",)
