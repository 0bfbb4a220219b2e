"""Tests of which nodes a kernel of ONNX Runtime computes, on graphs as it writes them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from trtq.pipeline.bench.owners import Owner, find_owners, match_nodes


def graph(text: str) -> ir.Model:
    """Returns a graph; the names of the operators of ONNX Runtime are taken as they are."""
    return ir.from_onnx_text(f'<ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]> g {text}')


def owners(model: str, optimized: str) -> dict[str, Owner]:
    return find_owners(graph(model), graph(optimized))


FLOAT = """(float[1, 8, 4, 4] x) => (float[1, 8] y) {
    [c1] t1 = Conv (x, w1)
    [r1] t2 = Relu (t1)
    [c2] t3 = Conv (t2, w2)
    [add] t4 = Add (t2, t3)
    [r2] t5 = Relu (t4)
    [pool] t6 = GlobalAveragePool (t5)
    [flat] y = Flatten (t6)
}"""


def test_a_kernel_is_told_by_what_it_is_named_for_and_takes_what_is_fused_behind() -> None:
    found = owners(
        FLOAT,
        """(float[1, 8, 4, 4] x) => (float[1, 8] y) {
            [ReorderInput] a = ReorderInput (x)
            [t2_nchwc] b = Conv (a, w1)
            [t3_nchwc] c = Conv (b, w2, bias, b)
            [ReorderOutput] t5 = ReorderOutput (c)
            [pool] t6 = GlobalAveragePool (t5)
            [flat] y = Flatten (t6)
        }""",
    )
    assert found == {
        "ReorderInput": Owner(("c1", "r1"), converts=True),
        "t2_nchwc": Owner(("c1", "r1"), converts=False),
        "t3_nchwc": Owner(("c2", "add", "r2"), converts=False),
        "ReorderOutput": Owner(("c2", "add", "r2"), converts=True),
        "pool": Owner(("pool",), converts=False),
        "flat": Owner(("flat",), converts=False),
    }


def test_conversions_are_those_of_the_layer_that_has_codes() -> None:
    found = owners(
        """(float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) {
            [x_q] xq = QuantizeLinear (x, s, z)
            [x_dq] xd = DequantizeLinear (xq, s, z)
            [w_dq] wd = DequantizeLinear (w, s, z)
            [conv] t1 = Conv (xd, wd)
            [relu] t2 = Relu (t1)
            [t_q] tq = QuantizeLinear (t2, s, z)
            [t_dq] td = DequantizeLinear (tq, s, z)
            [soft] y = Softmax (td)
        }""",
        """(float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) {
            [x_q] xq = QuantizeLinear (x, s, z)
            [Transpose] a = Transpose (xq)
            [conv_token_1] b = QLinearConv (a, s, z, w, s, z, s, z)
            [Transpose_token_2] tq = Transpose (b)
            [t_dq] td = DequantizeLinear (tq, s, z)
            [soft] y = Softmax (td)
        }""",
    )
    layer = ("conv", "relu")
    assert found == {
        "x_q": Owner(layer, converts=True),
        "Transpose": Owner(layer, converts=True),
        "conv_token_1": Owner(layer, converts=False),
        "Transpose_token_2": Owner(layer, converts=True),
        "t_dq": Owner(layer, converts=True),
        "soft": Owner(("soft",), converts=False),
    }


def test_what_a_fused_kernel_is_made_of_lies_before_its_output() -> None:
    found = owners(
        """(float[1, 8] x) => (float[1, 8] y) {
            [mean] m = ReduceMean (x)
            [sub] d = Sub (x, m)
            [pow] p = Pow (d, two)
            [var] v = ReduceMean (p)
            [root] r = Sqrt (v)
            [div] n = Div (d, r)
            [scale] y1 = Mul (n, g)
            [relu] y = Relu (y1)
        }""",
        """(float[1, 8] x) => (float[1, 8] y) {
            [LayerNormFusion] y1 = LayerNormalization (x, g)
            [relu] y = Relu (y1)
        }""",
    )
    assert set(found["LayerNormFusion"].nodes) == {"mean", "sub", "pow", "var", "root", "div", "scale"}
    assert found["relu"] == Owner(("relu",), converts=False)


def test_what_belongs_to_another_kernel_is_not_taken() -> None:
    found = owners(
        """(float[8] x, float[8] z) => (float[8] y, float[8] u) {
            [a] t1 = Relu (x)
            [b] t2 = Exp (z)
            [c] t3 = Neg (t2)
            [sum] y = Add (t1, t3)
            [d] u = Identity (t2)
        }""",
        """(float[8] x, float[8] z) => (float[8] y, float[8] u) {
            [a_token_1] p = Relu (x)
            [b_token_2] u = Exp (z)
            [c_token_3] q = Neg (u)
            [sum] y = Add (p, q)
        }""",
    )
    assert found["a_token_1"].nodes == ("a",)
    assert found["c_token_3"].nodes == ("c",)
    assert found["sum"].nodes == ("sum",)
    assert set(found["b_token_2"].nodes) == {"b", "d"}


def test_a_cast_in_the_name_of_what_it_converts_computes_nothing() -> None:
    found = owners(
        "(float16[8] x) => (float16[8] y) { [a] t = Relu (x) [b] y = Softmax (t) }",
        """(float16[8] x) => (float16[8] y) {
            [InsertedPrecisionFreeCast_x] p = Cast <to = 1> (x)
            [InsertedPrecisionFreeCast_t] q = Relu (p)
            [r] t = Cast <to = 10> (q)
            [b] y = Softmax (t)
        }""",
    )
    assert found == {
        "InsertedPrecisionFreeCast_x": Owner(("a",), converts=True),
        "InsertedPrecisionFreeCast_t": Owner(("a",), converts=False),
        "r": Owner(("a",), converts=True),
        "b": Owner(("b",), converts=False),
    }


def test_constants_are_no_layers_and_conversions_may_have_none() -> None:
    found = owners(
        "(float[8] x) => (float[8] y) { [k] c = Constant <value_float = 1.0> () [a] y = Add (x, c) }",
        "(float[8] x) => (float[8] y, float[8] u) { [a] y = Add (x, c) [stray] u = Cast <to = 1> (x) }",
    )
    assert found == {"a": Owner(("a",), converts=False), "stray": Owner((), converts=True)}


def test_nodes_of_other_names_are_matched_by_what_they_make(path_of: Callable[..., Path]) -> None:
    first = path_of("g (float[8] x) => (float[8] y) { t = Relu (x) [last] y = Neg (t) }")
    second = path_of("g (float[8] x) => (float[8] y) { [Relu_0] t = Relu (x) [last] y = Neg (t) }")
    assert match_nodes(first, second) == {"Relu_0": "t"}
    assert match_nodes(second, first) == {"t": "Relu_0"}
    assert match_nodes(Path("a.engine"), Path("b.engine")) == {}
