"""Tests of the rules by which tensors get Q/DQ, and of the reasons for what keeps its precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from int8_encodings import int8_along, int8_scheme
from made_up import random_array

from trtq.kept import KeptNode
from trtq.pipeline.formats import FP8, INT8_OF_7_BITS
from trtq.pipeline.graph.placement import Placement, QuantizedNode, QuantizedWeight, find_unmatched, place


def _only(placement: Placement) -> QuantizedNode:
    assert placement.kept == ()
    (node,) = placement.quantized
    return node


def _reason(placement: Placement) -> str:
    assert placement.quantized == ()
    (node,) = placement.kept
    return node.reason


@pytest.mark.parametrize(
    ("call", "x", "w", "activation", "weight"),
    [
        pytest.param("Conv(x, w)", "N,4,8,8", (6, 4, 3, 3), (0, "x"), (1, 0), id="Conv"),
        pytest.param("Conv(x, w, b)", "N,4,8,8", (6, 4, 3, 3), (0, "x"), (1, 0), id="Conv with a bias"),
        pytest.param("Conv<group = 4>(x, w)", "N,4,8,8", (8, 1, 3, 3), (0, "x"), (1, 0), id="depthwise Conv"),
        pytest.param("Conv(x, w)", "N,4,8", (6, 4, 3), (0, "x"), (1, 0), id="Conv in one dimension"),
        pytest.param("Gemm(x, w, b)", "N,4", (4, 6), (0, "x"), (1, 1), id="Gemm"),
        pytest.param("Gemm<transB = 0>(x, w)", "N,4", (4, 6), (0, "x"), (1, 1), id="Gemm with transB = 0"),
        pytest.param("Gemm<transB = 1>(x, w)", "N,4", (6, 4), (0, "x"), (1, 0), id="Gemm with transB = 1"),
        pytest.param("Gemm<transA = 1>(x, w)", "4,N", (4, 6), (0, "x"), (1, 1), id="Gemm with transA = 1"),
        pytest.param("MatMul(x, w)", "N,5,4", (4, 6), (0, "x"), (1, 1), id="MatMul with the weight right"),
        pytest.param("MatMul(w, x)", "N,4,5", (6, 4), (1, "x"), (0, 0), id="MatMul with the weight left"),
        pytest.param("MatMul(x, w)", "3,5,4", (3, 4, 6), (0, "x"), (1, None), id="MatMul with many weights"),
        pytest.param("MatMul(w, x)", "3,4,5", (3, 6, 4), (1, "x"), (0, None), id="MatMul, many weights left"),
        pytest.param("MatMul(x, w)", "N,4", (4,), (0, "x"), (1, None), id="MatMul with a vector"),
    ],
)
def test_a_layer_with_a_constant_weight(
    model_of: Callable[..., ir.Model],
    call: str,
    x: str,
    w: tuple[int, ...],
    activation: tuple[int, str],
    weight: tuple[int, int | None],
) -> None:
    model = model_of(
        f"g (float[{x}] x) => (float y) {{ [layer] t = {call} y = ReduceSum<keepdims = 0>(t) }}",
        w=random_array(*w),
        b=random_array(6),
    )
    place_of_weight, axis = weight
    assert _only(place(model)) == QuantizedNode(
        "layer",
        call.partition("(")[0].partition("<")[0],
        int8_scheme("weighted-input", activation[0], weight=int8_along(axis)),
        (activation,),
        (place_of_weight, "w"),
    )


def test_one_scale_a_weight_changes_nothing_else(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,4,8,8] x) => (float[N,6,8,8] y) { a = Conv(x, w) b = Conv(x, v) y = Add(a, b) }"
    placement = place(model_of(text, w=random_array(6, 4, 1, 1), v=random_array(6, 4, 1, 1)))
    found = placement.with_one_scale()
    assert [node.held_weight for node in found.layers] == [
        QuantizedWeight("w", int8_along(None)),
        QuantizedWeight("v", int8_along(None)),
    ]
    assert [(node.name, node.scheme.rule, node.activations) for node in found.quantized] == [
        (node.name, node.scheme.rule, node.activations) for node in placement.quantized
    ]
    assert (len(found.quantized), found.kept) == (3, placement.kept)


def test_weights_of_7_bits_change_nothing_else(model_of: Callable[..., ir.Model]) -> None:
    placement = place(
        model_of("g (float[N,4,8,8] x) => (float[N,6,8,8] y) { y = Conv(x, w) }", w=random_array(6, 4, 1, 1))
    )
    found = placement.with_weights_of_7_bits()
    (before,), (after,) = placement.layers, found.layers
    assert after.scheme.weight == replace(int8_along(0), format=INT8_OF_7_BITS)
    assert after.scheme.inputs == before.scheme.inputs
    assert found.with_weights_of_7_bits() == found


@pytest.mark.parametrize(
    ("attributes", "w", "axis"),
    [("", (4, 6, 3, 3), 1), ("<group = 1>", (4, 6, 3, 3), 1), ("<group = 2>", (4, 3, 3, 3), None)],
)
def test_a_transposed_convolution_is_quantized_only_on_demand(
    model_of: Callable[..., ir.Model], attributes: str, w: tuple[int, ...], axis: int | None
) -> None:
    model = model_of(
        f"g (float[N,4,8,8] x) => (float[N,6,10,10] y) {{ y = ConvTranspose{attributes}(x, w) }}",
        w=random_array(*w),
    )
    assert _reason(place(model)) == "TensorRT runs ConvTranspose in float"
    asked = _only(place(model, op_types=("Conv", "ConvTranspose")))
    assert asked.weight == (1, "w")
    assert asked.scheme.weight == int8_along(axis)
    assert asked.activations == ((0, "x"),)


def test_weights_in_half_precision_are_quantized(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float16[N,4] x) => (float16[N,6] y) { y = MatMul(x, w) }"
    model = model_of(text, w=random_array(4, 6).astype(np.float16))
    assert _only(place(model)).held_weight == QuantizedWeight("w", int8_along(1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "y = MatMul(x, x)",
            "two-activations: TensorRT fuses attention in float; INT8 with Attention in --op-types",
            id="MatMul of two activations",
        ),
        pytest.param("v = Relu(w) y = Gemm(x, v)", "its weight is not a constant", id="computed weight"),
        pytest.param("y = Gemm(w, x)", "its first input is the constant one", id="Gemm of a constant"),
        pytest.param("y = MatMul(w, w)", "it has no activation to quantize", id="two constants"),
        pytest.param(
            "i = Cast<to = 7>(x) m = MatMul(i, n) y = Cast<to = 1>(m)",
            "its inputs are INT64 and INT64, not float",
            id="integers",
        ),
        pytest.param(
            "d = Cast<to = 11>(x) m = MatMul(d, e) y = Cast<to = 1>(m)",
            "its inputs are DOUBLE and DOUBLE, not float",
            id="double",
        ),
    ],
)
def test_a_layer_keeps_its_precision_and_says_why(
    model_of: Callable[..., ir.Model], text: str, reason: str
) -> None:
    model = model_of(
        f"g (float[4,4] x) => (float[4,4] y) {{ {text} }}",
        w=random_array(4, 4),
        n=np.ones((4, 4), np.int64),
        e=np.ones((4, 4)),
    )
    assert _reason(place(model)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("LSTM<hidden_size = 4>(x, w, r)", "LSTM stays float: TensorRT has no INT8 kernel for it"),
        ("GRU<hidden_size = 4>(x, u, s)", "GRU stays float: TensorRT has no INT8 kernel for it"),
    ],
)
def test_recurrent_layers_stay_float(model_of: Callable[..., ir.Model], text: str, reason: str) -> None:
    model = model_of(
        f"g (float[S,1,3] x) => (float[S,1,1,4] y) {{ y = {text} }}",
        w=random_array(1, 16, 3),
        r=random_array(1, 16, 4),
        u=random_array(1, 12, 3),
        s=random_array(1, 12, 4),
    )
    assert _reason(place(model)) == reason
    assert _reason(place(model, op_types=("Conv", "LSTM", "GRU"))) == reason


def test_a_type_that_was_not_asked_for_is_kept(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[N,4] x) => (float[N,6] y) { y = MatMul(x, w) }", w=random_array(4, 6))
    assert _reason(place(model, op_types=("Conv",))) == "MatMul is not among the types to quantize"


TWO_LAYERS = """g (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) {
    [stem] a = Conv(x, w)
    [body_1] y = Conv(a, w)
    [head] z = Conv(a, v)
}"""


def test_a_tensor_with_two_readers_is_one_activation(model_of: Callable[..., ir.Model]) -> None:
    placement = place(model_of(TWO_LAYERS, w=random_array(4, 4, 1, 1), v=random_array(4, 4, 1, 1)))
    assert placement.activations == ("x", "a")
    assert [node.name for node in placement.quantized] == ["stem", "body_1", "head"]
    assert placement.layers == placement.quantized


def test_layers_are_skipped_by_a_pattern_in_their_names(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(TWO_LAYERS, w=random_array(4, 4, 1, 1), v=random_array(4, 4, 1, 1))
    placement = place(model, skip=["^nothing$", "ody_[0-9]", "^st"])
    assert [node.name for node in placement.quantized] == ["head"]
    assert placement.kept == (
        KeptNode("stem", "Conv", "skipped by '^st'"),
        KeptNode("body_1", "Conv", "skipped by 'ody_[0-9]'"),
    )
    assert placement.activations == ("a",)


def test_a_node_is_kept_for_the_reason_that_is_given_with_its_name(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(TWO_LAYERS, w=random_array(4, 4, 1, 1), v=random_array(4, 4, 1, 1))
    kept = {"body_1": "no-kernel: it ran as float", "stem": "chosen", "unknown": "of another graph"}
    placement = place(model, skip=["^stem$", "^hea"], kept=kept)
    assert placement.quantized == ()
    assert placement.kept == (
        KeptNode("stem", "Conv", "chosen"),
        KeptNode("body_1", "Conv", "no-kernel: it ran as float"),
        KeptNode("head", "Conv", "skipped by '^hea'"),
    )


def test_patterns_that_match_nothing_come_with_the_names_nearest_to_them(
    model_of: Callable[..., ir.Model],
) -> None:
    model = model_of(TWO_LAYERS, w=random_array(4, 4, 1, 1), v=random_array(4, 4, 1, 1))
    assert list(find_unmatched(model, ["^stem$", "bodi_1", "ead", "zzzzzzzzzz"])) == [
        ("bodi_1", ["body_1"]),
        ("zzzzzzzzzz", []),
    ]
    assert list(find_unmatched(model, [])) == []


def _adds(model: ir.Model, **arguments: Any) -> list[tuple[str, tuple[tuple[int, str], ...]]]:
    placement = place(model, **arguments)
    adds = [node for node in placement.quantized if node.op_type == "Add"]
    assert all(node.scheme.rule == "residual-add" and node.weight is None for node in adds)
    assert not set(adds) & set(placement.layers)
    return [(node.name, node.activations) for node in adds]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("[add] y = Add(c, r)", (1, "r"), id="convolution first"),
        pytest.param("[add] y = Add(r, c)", (0, "r"), id="convolution second"),
        pytest.param("d = Conv(r, v) [add] y = Add(c, d)", (1, "d"), id="two convolutions"),
        pytest.param("d = Conv(r, v) [add] y = Add(d, c)", (1, "c"), id="two convolutions, the other way"),
        pytest.param("[add] t = Add(c, r) y = Relu(t)", (1, "r"), id="before an activation"),
    ],
)
def test_the_other_input_of_an_addition_after_a_convolution(
    model_of: Callable[..., ir.Model], text: str, wanted: tuple[int, str]
) -> None:
    model = model_of(
        f"g (float[N,4,8,8] x) => (float[N,4,8,8] y) {{ r = Relu(x) c = Conv(r, w) {text} }}",
        w=random_array(4, 4, 1, 1),
        v=random_array(4, 4, 1, 1),
    )
    assert _adds(model) == [("add", (wanted,))]
    assert place(model).activations[0] == "r"
    assert _adds(model, form=FP8) == []  # the builder makes the same kernels without


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("p = GlobalAveragePool(r) y = Add(c, p)", id="broadcast over the image"),
        pytest.param("y = Add(c, row)", id="constant"),
        pytest.param("k = Relu(row) y = Add(c, k)", id="broadcast of another rank"),
        pytest.param("y = Add(c, one)", id="broadcast over an open batch"),
        pytest.param("y = Add(c, c)", id="the convolution twice"),
        pytest.param("a = Add(c, r) s = Sigmoid(c) y = Mul(a, s)", id="convolution with two users"),
        pytest.param("s = Sigmoid(c) y = Add(s, r)", id="no convolution right before it"),
        pytest.param("t = ConvTranspose(r, w) y = Add(t, r)", id="layer that is not quantized"),
        pytest.param("m = MatMul(c, square) y = Add(m, r)", id="MatMul"),
        pytest.param("y = Mul(c, r)", id="product"),
    ],
)
def test_other_additions_stay_float(model_of: Callable[..., ir.Model], text: str) -> None:
    model = model_of(
        f"""g (float[N,4,8,8] x, float[1,4,8,8] one) => (float[N,4,8,8] y) {{
            r = Relu(x)
            c = Conv(r, w)
            {text}
        }}""",
        w=random_array(4, 4, 1, 1),
        row=random_array(1, 1, 8) if "Relu(row)" in text else random_array(1, 4, 8, 8),
        square=random_array(8, 8),
    )
    assert _adds(model) == []


def test_an_addition_after_a_convolution_that_is_an_output_stays_float(
    model_of: Callable[..., ir.Model],
) -> None:
    model = model_of(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] c, float[N,4,8,8] y) { c = Conv(x, w) y = Add(c, x) }",
        w=random_array(4, 4, 1, 1),
    )
    assert _adds(model) == []


def test_an_addition_of_a_constant_image_stays_float(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { c = Conv(x, w) y = Add(c, image) }",
        w=random_array(4, 4, 1, 1),
        image=random_array(1, 4, 8, 8),
    )
    assert _adds(model) == []


def test_an_addition_of_open_dims_that_may_be_equal_is_quantized(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,H,W] x, float[M,4,8,K] s) => (float[A,4,B,C] y) { c = Conv(x, w) [add] y = Add(c, s) }",
        w=random_array(4, 4, 1, 1),
    )
    assert _adds(model) == [("add", ((1, "s"),))]


def test_an_addition_of_unknown_shapes_stays_float(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """g (float[N,4,H,W] x, int64[K] s) => (float[A,4,B,C] y) {
            c = Conv(x, w)
            r = Reshape(x, s)
            y = Add(c, r)
        }""",
        w=random_array(4, 4, 1, 1),
    )
    assert _adds(model) == []


def test_an_addition_can_be_skipped_and_goes_with_its_convolution(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { [conv] c = Conv(x, w) [add] y = Add(c, x) }",
        w=random_array(4, 4, 1, 1),
    )
    assert _adds(model) == [("add", ((1, "x"),))]
    assert _adds(model, skip=["^add$"]) == []
    assert _adds(model, skip=["^conv$"]) == []
    assert _adds(model, kept={"add": "its other input has no range"}) == []
    assert _adds(model, kept={"conv": "it loses too much"}) == []
    assert [node.name for node in place(model).layers] == ["conv"]


def test_decisions_are_in_the_order_of_the_graph(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """g (float[N,4,8,8] x) => (float[N,8] y) {
            [c1] a = Conv(x, w)
            [add] b = Add(a, x)
            [c2] c = Conv(b, w)
            [up] d = ConvTranspose(c, w)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            [fc] e = Gemm(f, v)
            t = Transpose(e)
            [self] y = MatMul(e, t)
        }""",
        w=random_array(4, 4, 1, 1),
        v=random_array(4, 8),
    )
    placement = place(model)
    assert [node.name for node in placement.quantized] == ["c1", "add", "c2", "fc"]
    assert [node.name for node in placement.kept] == ["up", "self"]
    assert placement.activations == ("x", "b", "f")


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_what_a_softmax_gets_is_quantized_only_on_demand(
    model_of: Callable[..., ir.Model], op_type: str
) -> None:
    text = f"""net (float[N, 4] x) => (float[N, 6] y, float[1, 4] z) {{
      [mm] a = MatMul (x, w)  [soft] y = {op_type} (a)  [fixed] z = {op_type} (c)
    }}"""
    model = model_of(text, w=random_array(4, 6), c=random_array(1, 4))
    assert [node.name for node in place(model, force=["."]).quantized] == ["mm"]
    types = ("MatMul", "Softmax")
    placement = place(model, force=["."], op_types=types)
    assert placement.quantized[1:] == (
        QuantizedNode("soft", op_type, int8_scheme("softmax-input", 0), ((0, "a"),)),
    )
    assert [node.name for node in placement.layers] == ["mm"]
    assert len(place(model, force=["."], op_types=types, skip=["soft"]).quantized) == 1
