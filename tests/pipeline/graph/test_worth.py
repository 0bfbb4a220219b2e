"""Tests of the rules by which layers that could run in INT8 stay float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.formats import FP8
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.graph.placement import ATTENTION, DEFAULT_OP_TYPES, place

ModelOf = Callable[..., ir.Model]


def _kept(model: ir.Model, **settings: Any) -> dict[str, str]:
    """Returns the rule that keeps each layer float, by node name."""
    infer_shapes(model)
    return {node.name: node.reason.partition(":")[0] for node in place(model, **settings).kept}


@pytest.mark.parametrize(
    ("x", "w", "rule"),
    [
        pytest.param("N,1,4000", (258, 1, 256), "filter-bank", id="a Fourier transform"),
        pytest.param("N,1,1,4000", (36, 1, 1, 256), "filter-bank", id="one with two axes"),
        pytest.param("N,1,400", (16, 1, 32), "filter-bank", id="the shortest"),
        pytest.param("N,1,400", (16, 1, 31), "", id="a shorter filter"),
        pytest.param("N,1,64,64", (24, 1, 3, 3), "", id="a gray picture"),
        pytest.param("N,1,64,64", (24, 1, 64, 64), "", id="a whole picture"),
        pytest.param("N,2,400", (16, 2, 256), "", id="two channels"),
        pytest.param("N,8,8,8", (2, 8, 1, 1), "few-outputs", id="two outputs"),
        pytest.param("N,8,8,8", (3, 8, 1, 1), "", id="three outputs"),
    ],
)
def test_a_convolution_by_its_weight(x: str, w: tuple[int, ...], rule: str, model_of: ModelOf) -> None:
    model = model_of(
        f"g (float[{x}] x) => (float y) {{ [c] t = Conv (x, w) y = ReduceSum <keepdims = 0> (t) }}",
        w=random_array(*w),
    )
    assert _kept(model) == ({"c": rule} if rule else {})
    assert _kept(model, force=("^c$",)) == {}


def test_a_depthwise_convolution_by_long_filters_is_no_transform(model_of: ModelOf) -> None:
    text = "g (float[N,8,400] x) => (float[N,8,145] y) { [c] y = Conv <group = 8> (x, w) }"
    assert _kept(model_of(text, w=random_array(8, 1, 256))) == {}


@pytest.mark.parametrize(
    ("call", "w", "rule"),
    [
        ("MatMul (x, w)", (8, 2), "few-outputs"),
        ("MatMul (x, w)", (8, 3), ""),
        ("Gemm <transB = 1> (x, w)", (1, 8), "few-outputs"),
        ("Gemm <transB = 1> (x, w)", (8, 8), ""),
    ],
)
def test_a_product_by_its_outputs(call: str, w: tuple[int, ...], rule: str, model_of: ModelOf) -> None:
    text = f"g (float[N,8] x) => (float y) {{ [m] t = {call} y = ReduceSum <keepdims = 0> (t) }}"
    assert _kept(model_of(text, w=random_array(*w))) == ({"m": rule} if rule else {})


_HEAD = "[big] a = MatMul (x, w) [mid] b = MatMul (a, v) r = Relu (b) [head] t = MatMul (r, u)"


@pytest.mark.parametrize(
    ("num_outputs", "end", "kept"),
    [
        pytest.param(4, "y = Softmax (t)", {"head": "head"}, id="a small head"),
        pytest.param(20, "y = Softmax (t)", {"head": "head"}, id="twenty outputs"),
        pytest.param(2, "y = Softmax (t)", {"head": "few-outputs"}, id="two outputs"),
        pytest.param(
            4, "z = Sigmoid (t) [after] y = MatMul (z, k)", {"after": "head"}, id="a layer after it"
        ),
    ],
)
def test_a_small_last_layer(num_outputs: int, end: str, kept: dict[str, str], model_of: ModelOf) -> None:
    weights = {"w": (64, 1024), "v": (1024, 16), "u": (16, num_outputs), "k": (4, 16)}
    used = {name: random_array(*shape) for name, shape in weights.items() if f"{name})" in _HEAD + end}
    model = model_of(f"g (float[N,64] x) => (float[N,M] y) {{ {_HEAD} {end} }}", **used)
    assert _kept(model) == kept
    assert _kept(model, force=("head|after",)) == {}


@pytest.mark.parametrize(
    ("channels", "kept"),
    [
        pytest.param(
            1, {"boxes": "head", "classes": "head", "sum": "few-outputs"}, id="the sum of its channels"
        ),
        pytest.param(3, {"sum": "head"}, id="a layer"),
    ],
)
def test_the_heads_of_a_detector_that_gives_the_expected_sides_of_boxes(
    channels: int, kept: dict[str, str], model_of: ModelOf
) -> None:
    weights = {"w": (256, 16, 3, 3), "v": (256, 256, 3, 3), "u": (32, 256, 3, 3)}
    weights |= {"b": (16, 32, 1, 1), "c": (20, 32, 1, 1), "one": (channels, 16, 1, 1)}
    text = """g (float[N,16,16,16] x) => (float[N,C,10,10] y, float[N,20,10,10] classes) {
        s = Conv (x, w) r = Relu (s) t = Conv (r, v) z = Conv (t, u)
        [boxes] p = Conv (z, b) [classes] q = Conv (z, c) joined = Concat <axis = 1> (p, q)
        sides, classes = Split <axis = 1> (joined, parts)
        soft = Softmax <axis = 1> (sides) [sum] y = Conv (soft, one)
    }"""
    arrays = {name: random_array(*shape) for name, shape in weights.items()}
    assert _kept(model_of(text, **arrays, parts=np.array([16, 20], np.int64))) == kept


def test_a_last_layer_that_holds_a_part_of_the_weights_is_quantized(model_of: ModelOf) -> None:
    weights = {"w": random_array(64, 16), "v": random_array(16, 16), "u": random_array(16, 4)}
    assert _kept(model_of(f"g (float[N,64] x) => (float[N,4] t) {{ {_HEAD} }}", **weights)) == {}


def _gate(end: str) -> str:
    return f"""g (float[N,16,8,8] x) => (float y) {{
        p = GlobalAveragePool (x)
        [down] d = Conv (p, w)
        r = Relu (d)
        [up] u = Conv (r, v)
        s = HardSigmoid (u)
        {end}
    }}"""


def _gate_weights() -> dict[str, NDArray[np.float32]]:
    return {"w": random_array(4, 16, 1, 1), "v": random_array(16, 4, 1, 1), "k": random_array(8, 16, 3, 3)}


def test_the_convolutions_of_a_squeeze_and_excitation_block_stay_float(model_of: ModelOf) -> None:
    model = model_of(_gate("m = Mul (x, s) [c] y = Conv (m, k)"), **_gate_weights())
    assert _kept(model) == {"down": "gate", "up": "gate"}
    assert _kept(model, force=("down|up",)) == {}


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("y = Flatten (s)", id="a classifier"),
        pytest.param("h = Mul (s, u) y = Flatten (h)", id="a product of its own parts"),
    ],
)
def test_convolutions_on_one_position_that_are_no_gate_are_quantized(end: str, model_of: ModelOf) -> None:
    assert _kept(model_of(_gate(end), **_gate_weights())) == {}


@pytest.mark.parametrize(
    ("inputs", "body", "rule"),
    [
        ("int64[N,8] i", "x = Cast <to = 1> (i)", "indices"),
        ("bool[N,8] i", "x = Cast <to = 1> (i)", "indices"),
        (
            "float[N,8] f",
            "s = Shape (f) c = Cast <to = 1> (s) e = Expand (c, n) x = Reshape (e, m)",
            "indices",
        ),
        ("int32[N,4] i, int32[N,4] j", "k = Concat <axis = 1> (i, j) x = Cast <to = 1> (k)", "indices"),
        ("int64[N,4] i, float[N,4] f", "k = Cast <to = 1> (i) x = Concat <axis = 1> (k, f)", ""),
        ("uint8[N,8] i", "x = Cast <to = 1> (i)", ""),
        ("int64[N,8] i", "k = Cast <to = 1> (i) x = Sin (k)", ""),
        ("float[N,8] f", "z = ConstantOfShape (m) x = Identity (z)", "filled"),
        ("float[N,8] f", "z = ConstantOfShape (m) r = Relu (f) x = Concat <axis = 0> (z, r)", ""),
        ("float[N,8] f", "x = Relu (f)", ""),
        ("float[N,8] f", "x = Identity (f)", ""),
    ],
)
def test_what_is_made_of_integers_or_filled_is_not_quantized(
    inputs: str, body: str, rule: str, model_of: ModelOf
) -> None:
    model = model_of(
        f"g ({inputs}) => (float y) {{ {body} [mm] t = MatMul (x, w) y = ReduceSum <keepdims = 0> (t) }}",
        w=random_array(8, 8),
        n=np.asarray([4, 2], np.int64),
        m=np.asarray([1, 8], np.int64),
    )
    assert _kept(model) == ({"mm": rule} if rule else {})


def test_attention_is_quantized_on_demand(model_of: ModelOf) -> None:
    text = """g (float[N,8,8] x) => (float[N,8,8] y) {
        [scores] s = MatMul (x, x)
        p = Softmax (s)
        [mix] y = MatMul (p, x)
    }"""
    model = model_of(text)
    assert _kept(model) == {"scores": "attention", "mix": "attention"}
    placement = place(model, op_types=(*DEFAULT_OP_TYPES, ATTENTION))
    assert [(node.name, node.scheme.rule, node.activations) for node in placement.quantized] == [
        ("scores", "two-activations", ((0, "x"), (1, "x"))),
        ("mix", "two-activations", ((0, "p"), (1, "x"))),
    ]
    assert [node.name for node in placement.layers] == ["scores", "mix"]


def test_attention_of_doubles_is_not(model_of: ModelOf) -> None:
    model = model_of("g (double[8,8] x) => (double[8,8] y) { [scores] y = MatMul (x, x) }")
    assert _kept(model, op_types=(ATTENTION,)) == {"scores": "its inputs are not float"}


@pytest.mark.parametrize(
    ("channels", "outputs", "group", "reason"),
    [
        (32, 32, 1, ""),
        (3, 32, 1, "narrow: FP8 kernels multiply 16 channels at once, and a group of it has 3"),
        (32, 8, 1, "narrow: FP8 kernels multiply 16 channels at once, and a group of it has 8"),
        (32, 32, 32, "narrow: FP8 kernels multiply 16 channels at once, and a group of it has 1"),
        (64, 64, 4, ""),
    ],
)
def test_a_narrow_convolution_stays_float_in_fp8(
    model_of: Callable[..., ir.Model], channels: int, outputs: int, group: int, reason: str
) -> None:
    text = f"""g (float[N,{channels},8,8] x) => (float[N,{outputs},8,8] y) {{
        [conv] c = Conv<group = {group}>(x, w) y = Relu(c) }}"""
    model = model_of(text, w=random_array(outputs, channels // group, 1, 1))
    assert [node.name for node in place(model, force=["."], form=FP8).quantized] == ["conv"]
    kept = place(model, form=FP8).kept
    assert [node.reason for node in kept if node.reason.startswith("narrow")] == ([reason] if reason else [])
    assert not any(node.reason.startswith("narrow") for node in place(model).kept)
