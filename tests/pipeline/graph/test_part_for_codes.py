"""Tests of what a float graph becomes for integer kernels; ONNX Runtime says it is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from folded import folded, op_types
from made_up import random_array

from trtq.pipeline.graph.biased import join_biases
from trtq.pipeline.graph.factors import find_factor
from trtq.pipeline.graph.fold import fold_bias, fold_factor, fold_number
from trtq.pipeline.graph.hard import part_hard_activations
from trtq.pipeline.graph.load import load, part_for_codes

ModelOf = Callable[..., ir.Model]
Same = Callable[..., None]


@pytest.mark.parametrize("order", ["c, k", "k, c"])
@pytest.mark.parametrize("conv", ["Conv(x, w)", "Conv(x, w, b)", "Conv<group = 2>(x, v, b)"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
def test_a_factor_goes_into_the_convolution(
    model_of: ModelOf, assert_equal_outputs: Same, order: str, conv: str, shape: tuple[int, ...]
) -> None:
    model = model_of(
        f"g (float[N,4,5,5] x) => (float[N,6,3,3] y) {{ c = {conv} y = Mul({order}) }}",
        w=random_array(6, 4, 3, 3), v=random_array(6, 2, 3, 3), b=random_array(6), k=random_array(*shape),
    )  # fmt: skip
    after, notes = folded(model, fold_factor)
    assert op_types(after) == ["Conv"]
    assert notes == ["folded 1 factor into the convolutions before them"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("c = Conv(x, w) y = Mul(c, k) z = Relu(c)", id="second user"),
        pytest.param("c = ConvTranspose(x, t) y = Mul(c, s) z = Relu(y)", id="other weight layout"),
        pytest.param("c = Conv(x, w) y = Mul(c, c) z = Relu(y)", id="no constant"),
        pytest.param("c = Conv(x, w) y = Mul(c, columns) z = Relu(y)", id="along the columns"),
        pytest.param("c = Conv(x, v) y = Mul(c, huge) z = Relu(y)", id="not finite"),
    ],
)
def test_a_factor_that_a_convolution_cannot_take_stays(model_of: ModelOf, body: str) -> None:
    model = model_of(
        f"g (float[N,4,5,5] x) => (float[N,6,A,A] y, float[N,6,A,A] z) {{ {body} }}",
        w=random_array(6, 4, 3, 3), v=random_array(6, 4, 3, 3) * 9, t=random_array(4, 6, 3, 3),
        k=random_array(6, 1, 1), s=random_array(1), columns=random_array(3),
        huge=np.full(1, 3e38, np.float32),
    )  # fmt: skip
    after, notes = folded(model, fold_factor)
    assert (notes, op_types(after)) == ([], op_types(model))


@pytest.mark.parametrize("shape", [(1,), (), (1, 1, 1)])
def test_one_number_goes_into_the_bias(
    model_of: ModelOf, assert_equal_outputs: Same, shape: tuple[int, ...]
) -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,3,3] y) { c = Conv(x, w, b) y = Add(c, k) }"
    model = model_of(text, w=random_array(6, 4, 3, 3), b=random_array(6), k=random_array(*shape))
    after, notes = folded(model, fold_number)
    assert (op_types(after), notes) == (["Conv"], ["folded 1 addition into the convolutions before them"])
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(("number", "count"), [(20.0, 1), (-20.0, 1), (1e4, 0), (-1e4, 0)])
def test_a_number_that_would_make_codes_coarse_stays(model_of: ModelOf, number: float, count: int) -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,3,3] y) { c = Conv(x, w) y = Add(c, k) }"
    model = model_of(text, w=random_array(6, 4, 3, 3), k=np.float32(number))
    assert len(folded(model, fold_number)[1]) == count


def test_a_bias_of_a_transposed_convolution(model_of: ModelOf, assert_equal_outputs: Same) -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,7,7] y) { c = ConvTranspose<group = 2>(x, w) y = Add(c, k) }"
    model = model_of(text, w=random_array(4, 3, 3, 3), k=random_array(1, 6, 1, 1))
    after, _ = folded(model, fold_bias)
    assert op_types(after) == ["ConvTranspose"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        ("HardSigmoid(x)", ["Add", "Clip", "Mul"]),
        ("HardSigmoid<alpha = 0.3, beta = 0.4>(x)", ["Add", "Clip", "Mul"]),
        ("HardSwish(x)", ["Add", "Clip", "Mul", "Mul"]),
    ],
)
def test_a_hard_activation_becomes_sums_and_products(
    model_of: ModelOf, assert_equal_outputs: Same, node: str, parts: list[str]
) -> None:
    model = model_of(f"g (float[N,64] x) => (float[N,64] y) {{ y = {node} }}", opset=14)
    after, notes = folded(model, part_hard_activations)
    assert (op_types(after), [value.name for value in after.graph.outputs]) == (parts, ["y"])
    assert notes == ["wrote 1 HardSigmoid or HardSwish node as sums and products"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,8] x) => (float[N,8] y) { y = HardSigmoid<alpha = -0.2>(x) }",
        "g (float16[N,8] x) => (float16[N,8] y) { y = HardSwish(x) }",
    ],
)
def test_one_that_falls_or_is_half_stays(model_of: ModelOf, text: str) -> None:
    assert folded(model_of(text, opset=14), part_hard_activations)[1] == []


@pytest.mark.parametrize("order", ["p, b", "b, p"])
def test_a_product_and_its_bias_become_gemm(
    model_of: ModelOf, assert_equal_outputs: Same, order: str
) -> None:
    text = f"g (float[N,16] x) => (float[N,4] y) {{ p = MatMul(x, w) y = Add({order}) }}"
    model = model_of(text, w=random_array(16, 4), b=random_array(4))
    after, notes = folded(model, join_biases)
    assert (op_types(after), notes) == (["Gemm"], ["wrote 1 MatMul and the bias behind as Gemm"])
    assert [node.name for node in after.graph] == [model.graph.node(0).name]
    assert_equal_outputs(model, after)


def test_a_reshape_tells_the_axes(model_of: ModelOf, assert_equal_outputs: Same) -> None:
    text = """g (float[N,4,4] x, int64[2] sizes) => (float[M,4] y) {
        r = Reshape(x, sizes) p = MatMul(r, w) y = Add(p, b)
    }"""
    model = model_of(text, w=random_array(16, 4), b=random_array(4))
    for value in (model.graph.node(0).outputs[0], model.graph.node(1).outputs[0]):
        value.shape = None
    assert op_types(folded(model, join_biases)[0]) == ["Reshape", "Gemm"]


@pytest.mark.parametrize(
    ("x", "tail"),
    [
        ("float[N,5,16] x", "y = Add(p, b)"),  # three axes
        ("float[N,16] x", "y = Add(p, one)"),  # no value for each column
        ("float[N,16] x", "y = Add(p, p)"),
        ("float[N,16] x", "y = Sub(p, b)"),
    ],
)
def test_another_product_stays(model_of: ModelOf, x: str, tail: str) -> None:
    text = f"g ({x}) => (float y) {{ p = MatMul(x, w) {tail} }}"
    model = model_of(text, w=random_array(16, 4), b=random_array(4), one=random_array(1))
    assert folded(model, join_biases)[1] == []


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("Mul(x, half)", (0, 0.5)),
        ("Mul(half, x)", (1, 0.5)),
        ("Div(x, half)", (0, 2.0)),
        ("Div(half, x)", None),
        ("Mul(x, less)", None),
        ("Mul(x, two)", None),
        ("Mul(x, wide)", None),  # the product has more axes
        ("Mul(x, x)", None),
        ("Add(x, half)", None),
    ],
)
def test_a_positive_number_is_a_factor(model_of: ModelOf, node: str, found: tuple[int, float] | None) -> None:
    half = np.array(0.5, np.float32)
    constants = {"half": half, "less": -half, "two": np.stack([half] * 2), "wide": half.reshape(1, 1, 1)}
    model = model_of(f"g (float[N,2] x) => (float y) {{ y = {node} }}", **constants)
    assert find_factor(model.graph.node(0)) == found


def test_a_graph_says_what_was_changed(path_of: Callable[..., Path], assert_equal_outputs: Same) -> None:
    text = "g (float[N,4,5,5] x) => (float[N,6,3,3] y) { c = Conv(x, w) m = Mul(c, k) y = HardSwish(m) }"
    path = path_of(text, opset=14, w=random_array(6, 4, 3, 3), k=random_array(1))
    graph = load(path, min_opset=13)
    after = part_for_codes(graph)
    assert op_types(after.model) == ["Conv", "Add", "Clip", "Mul", "Mul"]
    assert (op_types(graph.model), after.is_rewritten) == (["Conv", "Mul", "HardSwish"], True)
    assert after.notes[-2:] == (
        "folded 1 factor into the convolutions before them",
        "wrote 1 HardSigmoid or HardSwish node as sums and products",
    )
    assert_equal_outputs(graph.model, after.model)
    assert part_for_codes(after) is after
