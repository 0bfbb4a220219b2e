"""Tests of normalizations and additions that go into the convolution before them; ONNX Runtime judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from folded import folded, op_types
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.graph.fold import fold_batch_norm, fold_bias


def _norm(num_channels: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(num_channels)
    scale, bias, mean, variance = generator.uniform(0.1, 3, (4, num_channels)).astype(np.float32)
    return {"s": scale, "b": -bias, "m": mean, "v": variance}


@pytest.mark.parametrize(
    ("conv", "weight"),
    [
        ("Conv<pads = [1, 1, 1, 1]>(x, w)", (6, 4, 3, 3)),
        ("Conv<pads = [1, 1, 1, 1]>(x, w, bias)", (6, 4, 3, 3)),
        ('Conv<pads = [1, 1, 1, 1]>(x, w, "")', (6, 4, 3, 3)),
        ("Conv<group = 4>(x, w)", (8, 1, 3, 3)),
        ("Conv<group = 2>(x, w)", (6, 2, 3, 3)),
        ("ConvTranspose<strides = [2, 2]>(x, w)", (4, 6, 3, 3)),
        ("ConvTranspose(x, w, bias)", (4, 6, 3, 3)),
    ],
)
@pytest.mark.parametrize("epsilon", ["", "<epsilon = 0.25>"])
def test_a_normalization_goes_into_the_convolution(
    model_of: Callable[..., ir.Model],
    assert_equal_outputs: Callable[..., None],
    conv: str,
    weight: tuple[int, ...],
    epsilon: str,
) -> None:
    num_channels = weight[1] if conv.startswith("ConvTranspose") else weight[0]
    bias = {"bias": random_array(num_channels)} if "bias" in conv else {}
    model = model_of(
        f"""g (float[N,4,5,5] x) => (float[N,C,H,W] y) {{
            c = {conv}
            n = BatchNormalization{epsilon}(c, s, b, m, v)
            y = Relu(n)
        }}""",
        w=random_array(*weight),
        **bias,
        **_norm(num_channels),
    )
    after, notes = folded(model, fold_batch_norm)
    assert op_types(after) == [conv.partition("(")[0].partition("<")[0], "Relu"]
    assert notes == ["folded 1 BatchNormalization node into the convolutions before them"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize("fold", ["norm", "bias"])
def test_an_output_keeps_its_name_when_its_node_is_folded(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None], fold: str
) -> None:
    text = {
        "norm": "y = BatchNormalization(c, s, b, m, v)",
        "bias": "y = Add(c, k)",
    }[fold]
    model = model_of(
        f"""g (float[N,4,5,5] x) => (float[N,6,3,3] y, float[N,6,3,3] z) {{
            c = Conv(x, w)
            {text}
            z = Relu(y)
        }}""",
        w=random_array(6, 4, 3, 3),
        k=random_array(6, 1, 1),
        **_norm(6),
    )
    after, _ = folded(model, fold_batch_norm, fold_bias)
    assert op_types(after) == ["Conv", "Relu"]
    assert_equal_outputs(model, after)


def test_a_weight_that_another_layer_has_too_stays_for_it(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        """g (float[N,4,5,5] x) => (float[N,6,3,3] y, float[N,6,3,3] z) {
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
            z = Conv(x, w)
        }""",
        w=random_array(6, 4, 3, 3),
        **_norm(6),
    )
    after, notes = folded(model, fold_batch_norm)
    assert len(notes) == 1
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "c = ConvTranspose<group = 2>(x, w) y = BatchNormalization(c, s, b, m, v) z = Relu(y)",
            id="grouped ConvTranspose",
        ),
        pytest.param(
            "c = Conv(x, w) y = BatchNormalization(c, s, b, m, v) z = Relu(c)",
            id="second user",
        ),
        pytest.param(
            "z = Conv(x, w) y = BatchNormalization(z, s, b, m, v)",
            id="convolution is an output",
        ),
        pytest.param(
            "c = Conv(x, w) r = Relu(c) y = BatchNormalization(r, s, b, m, v) z = Relu(y)",
            id="no convolution before it",
        ),
        pytest.param(
            "c = Conv(x, w) t = Add(s, s) y = BatchNormalization(c, t, b, m, v) z = Relu(y)",
            id="computed factors",
        ),
        pytest.param(
            "u = Add(w, w) c = Conv(x, u) y = BatchNormalization(c, s, b, m, v) z = Relu(y)",
            id="computed weight",
        ),
    ],
)
def test_a_normalization_stays_where_folding_would_change_something(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None], body: str
) -> None:
    num_channels = 4
    model = model_of(
        f"g (float[N,4,5,5] x) => (float[N,C,H,W] y, float[N,C,H,W] z) {{ {body} }}",
        w=random_array(4, 2, 3, 3) if "group" in body else random_array(4, 4, 3, 3),
        **_norm(num_channels),
    )
    after, notes = folded(model, fold_batch_norm)
    assert notes == []
    assert op_types(after) == op_types(model)
    assert_equal_outputs(model, after)


def test_a_normalization_of_an_input_stays(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,5,5] x) => (float[N,4,5,5] y) { y = BatchNormalization(x, s, b, m, v) }", **_norm(4)
    )
    assert folded(model, fold_batch_norm)[1] == []


@pytest.mark.parametrize("rest", ["mean, variance", '"", ""'])
def test_a_normalization_in_training_stays(model_of: Callable[..., ir.Model], rest: str) -> None:
    model = model_of(
        f"""g (float[N,4,5,5] x) => (float[N,6,3,3] y) {{
            c = Conv(x, w)
            y, {rest} = BatchNormalization<training_mode = 1>(c, s, b, m, v)
        }}""",
        w=random_array(6, 4, 3, 3),
        **_norm(6),
    )
    assert folded(model, fold_batch_norm)[1] == []


def test_a_normalization_that_fp16_weights_cannot_take_stays(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        """g (float16[N,4,5,5] x) => (float16[N,6,3,3] y) {
            t = Mul(x, small)
            c = Conv(t, w)
            y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v)
        }""",
        w=random_array(6, 4, 3, 3).astype(np.float16) * np.float16(100),
        small=np.array(1e-3, np.float16),
        s=np.full(6, 10, np.float16),
        b=np.zeros(6, np.float16),
        m=np.zeros(6, np.float16),
        v=np.full(6, 1e-4, np.float16),
    )
    after, notes = folded(model, fold_batch_norm)
    assert notes == []
    assert np.isfinite(outputs_of(after)[0]).all()


def test_the_hand_worked_normalization(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[1,1,1,1] x) => (float[1,2,1,1] y) { c = Conv(x, w, k) y = BatchNormalization<epsilon = 0.0>"
        "(c, s, b, m, v) }",
        w=np.array([[[[3]]], [[[-2]]]], np.float32),
        k=np.array([1, 2], np.float32),
        s=np.array([4, 1], np.float32),
        b=np.array([0.5, 10], np.float32),
        m=np.array([2, -1], np.float32),
        v=np.array([4, 0.25], np.float32),
    )
    after, _ = folded(model, fold_batch_norm)
    weight, bias = (value.const_value for value in after.graph.node(0).inputs[1:] if value is not None)
    assert weight is not None
    assert bias is not None
    assert weight.numpy().reshape(-1).tolist() == [6, -4]  # factors 4 / 2 and 1 / 0.5
    assert bias.numpy().tolist() == [(1 - 2) * 2 + 0.5, (2 + 1) * 2 + 10]


def test_a_normalization_by_nothing_stays(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,4,5,5] x) => (float[N,6,3,3] y) {"
        " c = Conv(x, w) y = BatchNormalization<epsilon = 0.0>(c, s, b, m, v) }",
        w=random_array(6, 4, 3, 3),
        **_norm(6) | {"v": np.zeros(6, np.float32)},
    )
    assert folded(model, fold_batch_norm)[1] == []


@pytest.mark.parametrize("order", ["c, k", "k, c"])
@pytest.mark.parametrize("bias", [", bias", ""])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
def test_a_constant_per_channel_goes_into_the_bias(
    model_of: Callable[..., ir.Model],
    assert_equal_outputs: Callable[..., None],
    order: str,
    bias: str,
    shape: tuple[int, ...],
) -> None:
    model = model_of(
        f"g (float[N,4,5,5] x) => (float[N,6,3,3] y) {{ c = Conv(x, w{bias}) a = Add({order}) y = Relu(a) }}",
        w=random_array(6, 4, 3, 3),
        k=random_array(*shape),
        **({"bias": random_array(6) + 3} if bias else {}),
    )
    after, notes = folded(model, fold_bias)
    assert op_types(after) == ["Conv", "Relu"]
    assert notes == ["folded 1 bias addition into the convolutions before them"]
    assert_equal_outputs(model, after)


def test_a_bias_of_a_convolution_in_one_dimension(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        "g (float[N,4,9] x) => (float[N,6,7] y) { c = Conv(x, w) y = Add(c, k) }",
        w=random_array(6, 4, 3),
        k=random_array(6, 1),
    )
    after, _ = folded(model, fold_bias)
    assert op_types(after) == ["Conv"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        pytest.param("c = Conv(x, w) y = Add(c, k) z = Relu(y)", (1,), id="one number"),
        pytest.param("c = Conv(x, w) y = Add(c, k) z = Relu(y)", (3,), id="along the columns"),
        pytest.param("c = Conv(x, w) y = Add(c, k) z = Relu(y)", (6, 3, 3), id="a whole image"),
        pytest.param("c = Conv(x, w) y = Add(c, k) z = Relu(c)", (6, 1, 1), id="second user"),
        pytest.param("z = Conv(x, w) y = Add(z, k)", (6, 1, 1), id="convolution is an output"),
        pytest.param("c = Conv(x, w) r = Relu(c) y = Add(r, k) z = Relu(y)", (6, 1, 1), id="no convolution"),
        pytest.param("c = Conv(x, w) d = Conv(x, w) y = Add(c, d) z = Relu(y)", (6, 1, 1), id="no constant"),
        pytest.param("u = Relu(w) c = Conv(x, u) y = Add(c, k) z = Relu(y)", (6, 1, 1), id="computed weight"),
    ],
)
def test_an_addition_that_is_no_bias_stays(
    model_of: Callable[..., ir.Model],
    assert_equal_outputs: Callable[..., None],
    body: str,
    shape: tuple[int, ...],
) -> None:
    model = model_of(
        f"g (float[N,4,5,5] x) => (float[N,6,3,3] y, float[N,6,3,3] z) {{ {body} }}",
        w=random_array(6, 4, 3, 3),
        k=random_array(*shape),
    )
    after, notes = folded(model, fold_bias)
    assert notes == []
    assert op_types(after) == op_types(model)
    assert_equal_outputs(model, after)
