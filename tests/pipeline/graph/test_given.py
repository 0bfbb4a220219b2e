"""What a model brings along of Q/DQ: layers, and tensors that new layers find quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import map_values
from trtq.pipeline.graph.given import explain_given, find_given
from trtq.pipeline.graph.placement import place

ModelOf = Callable[..., ir.Model]
_ARRAYS: dict[str, NDArray[Any]] = {
    "s": np.asarray(0.05, np.float32),
    "other": np.asarray(0.07, np.float32),
    "z": np.asarray(0, np.int8),
    "s_each": np.full(8, 0.1, np.float32),
    "z_each": np.zeros(8, np.int8),
    "z16": np.asarray(0, np.int16),
    "w": np.ones((8, 8), np.float32),
    "codes": np.ones((8, 8), np.int8),
}
_PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
_PAIR16 = "q = QuantizeLinear (x, s, z16) d = DequantizeLinear (q, s, z16)"
_PAIR_EACH = "q = QuantizeLinear (x, s_each, z_each) d = DequantizeLinear (q, s_each, z_each)"


@pytest.fixture
def parse(model_of: ModelOf) -> Callable[[str], ir.Model]:
    """Returns a model of an input x and an output y, with the arrays that its nodes read."""

    def parse_body(body: str, inputs: str = "float[8, 8] x") -> ir.Model:
        words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
        read = {name: array for name, array in _ARRAYS.items() if name in words}
        return model_of(f"g ({inputs}) => (float[8, 8] y) {{ {body} }}", opset=21, **read)

    return parse_body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"{_PAIR} v = DequantizeLinear (codes, s, z) [fc] y = MatMul (d, v)", "it comes quantized"),
        ("v = DequantizeLinear (codes, s, z) [fc] y = MatMul (x, v)", "its weight is already quantized"),
        (f"{_PAIR} r = Relu (x) [fc] y = MatMul (d, r)", "one of its inputs is already quantized"),
        (f"{_PAIR} [fc] y = MatMul (d, w)", ""),
        ("[fc] y = MatMul (x, w)", ""),
        ("v = DequantizeLinear (codes, s, z) [fc] y = Add (x, v)", ""),
    ],
)
def test_a_layer_comes_quantized_if_its_weight_is_behind_a_dequantize(
    body: str, said: str, parse: Callable[..., ir.Model]
) -> None:
    model = parse(body)
    layer = next(node for node in model.graph if node.name == "fc")
    assert explain_given(layer) == said


def test_an_embedding_comes_quantized_by_its_table(parse: Callable[..., ir.Model]) -> None:
    model = parse("t = DequantizeLinear (codes, s, z) [emb] y = Gather (t, ids)", "int64[8] ids")
    assert [(node.name, node.reason) for node in place(model).given] == [
        ("emb", "its table is already quantized")
    ]


@pytest.mark.parametrize(
    ("body", "read", "found"),
    [
        (f"{_PAIR} y = MatMul (d, w)", "d", "d"),
        (f"{_PAIR} y = MatMul (d, w)", "x", "d"),
        (f"{_PAIR} t = Transpose <perm = [0, 1]> (d) y = MatMul (t, w)", "t", "t"),
        (f"{_PAIR} r = Relu (d) y = MatMul (r, w)", "r", None),
        (f"{_PAIR_EACH} y = MatMul (d, w)", "d", None),
        (f"{_PAIR_EACH} y = MatMul (d, w)", "x", None),
        (f"{_PAIR16} y = MatMul (d, w)", "d", None),
        ("q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, other, z) y = MatMul (d, w)", "x", None),
        ("r = Relu (x) y = MatMul (r, w)", "r", None),
    ],
)
def test_a_pair_with_one_constant_scale_serves_new_layers(
    body: str, read: str, found: str | None, parse: Callable[..., ir.Model]
) -> None:
    values = map_values(parse(body).graph)
    given = find_given(values[read])
    assert (given and given.name) == found


def test_a_layer_that_reads_other_codes_than_int8_stays_float(parse: Callable[..., ir.Model]) -> None:
    (kept,) = place(parse(f"{_PAIR16} [fc] y = MatMul (d, w)")).kept
    assert kept.reason == "given: its input is already quantized, and not in INT8 with one scale"


def test_a_given_tensor_needs_no_range(parse: Callable[..., ir.Model]) -> None:
    placement = place(parse(f"{_PAIR} [fc] h = MatMul (d, w) r = Relu (h) [last] y = MatMul (r, w)"))
    assert [node.name for node in placement.layers] == ["fc", "last"]
    assert (placement.activations, [name for name, _ in placement.encodings]) == (("r",), ["d", "r"])
