"""Tests of what stays FP32 in a model that is cast to FP16, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_fp16 import cast, casts_of, types_of
from numpy.typing import NDArray

from trtq.kept import KeptFp32
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
Near = Callable[..., None]


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        pytest.param(
            "[range] r = Range(zero, three, one) y = Add(x, r)",
            {"range": "Range has no FP16 version"},
            id="no FP16 version",
        ),
        pytest.param(
            "[q] q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z) y = Add(x, d)",
            {"q": "DynamicQuantizeLinear has no FP16 version"},
            id="float by definition, and nothing else",
        ),
        pytest.param(
            "[random] r = RandomNormal<shape = [3]>() n = Mul(r, zero) y = Add(x, n)",
            {"random": "RandomNormal makes numbers of nothing"},
            id="random numbers",
        ),
        pytest.param(
            "[like] r = RandomUniformLike(x) n = Mul(r, zero) y = Add(x, n)",
            {"like": "RandomUniformLike makes numbers of nothing"},
            id="random numbers of another's shape",
        ),
        pytest.param(
            "[k] k = Constant<value = float[3] {1, 2, 3}>() y = Add(x, k)",
            {"k": "Constant makes numbers of nothing"},
            id="Constant",
        ),
        pytest.param(
            "[seq] s = SequenceConstruct(x, x) [at] a = SequenceAt(s, index) y = Add(a, x)",
            {"seq": "SequenceConstruct has no FP16 version", "at": "SequenceAt has no FP16 version"},
            id="sequences",
        ),
    ],
)
def test_an_operator_without_fp16_stays_fp32(
    model_of: Callable[..., ir.Model], assert_near: Near, text: str, reasons: dict[str, str]
) -> None:
    model = model_of(
        f"g (float[N,3] x) => (float[N,3] y) {{ {text} }}",
        zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
        three=np.array(3, np.float32),
        index=np.array(1),
    )
    result, found = cast(model)
    assert found == reasons
    assert_near(model, result)


def test_operators_of_other_domains_and_what_has_no_known_type_stay_fp32(assert_near: Near) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]>
        g (float[N,3] x) => (float[N,3] y) <float[N,3] r, float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[N,3] n> {
            [relu] r = Relu(x)
            [gelu] t = com.microsoft.Gelu(r)
            [add] a = MatMul(t, w)
            [neg] n = Neg(a)
            [out] y = Sigmoid(n)
        }
    """)
    result, found = to_fp16(model)
    assert {node.name: node.reason for node in found} == {
        "gelu": "com.microsoft::Gelu is unknown here",
        "add": "the type of tensor 't' is not known",
        "neg": "the type of tensor 'a' is not known",
    }
    assert types_of(result)["relu"] is F16
    assert_near(model, result)


def test_an_operator_that_onnx_does_not_know_stays_fp32() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N] x) => (float[N] y) { [new] y = Frobnicate(x) }'
    )
    assert to_fp16(model)[1] == (KeptFp32("new", "ai.onnx::Frobnicate is unknown here"),)


def test_tensors_that_were_seen_to_be_too_large_stay_fp32(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y) {
            [mul] b = Mul(x, w)
            [square] s = Mul(b, b)
            [log] l = Sqrt(s)
            [out] y = Mul(l, half)
        }""",
        w=np.array([300, 300, 300], np.float32),
        half=np.array(0.5, np.float32),
    )
    assert set(types_of(cast(model)[0]).values()) == {F16}
    result, reasons = cast(model, beyond_fp16={"s": 9e4})
    assert reasons == dict.fromkeys(("square", "log"), "tensor 's' reaches 9e+04, FP16 ends at 65504")
    assert types_of(result) == {"mul": F16, "square": F32, "log": F32, "out": F16}
    feed = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_allclose(outputs_of(result, feed=feed)[0], 150)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array(1e-12), "constant 'k' has 1e-12, too small for FP16"),
        (np.array([1.0, 2.0, 2e-7]), "constant 'k' has 2e-07, too small for FP16"),
        (np.array(-7e4), "constant 'k' has 7e+04, FP16 ends at 65504"),
        (np.full(3, 3.4e38), "constant 'k' has 3.4e+38, FP16 ends at 65504"),
        (np.array(1e-3), None),
        (np.array(0.0), None),
        (np.array(-np.inf), None),
        (np.array([1e-12, 1, 1] * 4).reshape(4, 1, 3), None),  # one small weight among many
        (np.full((4, 1, 3), 1e-12), "constant 'k' has 1e-12 at most, too small for FP16"),
        (
            np.array([-3e-8, 2e-8, 1e-8] * 4).reshape(4, 1, 3),
            "constant 'k' has 3e-08 at most, too small for FP16",
        ),
        (np.full((4, 1, 3), 1e-4), None),
        (np.full((4, 1, 3), 0.0), None),
    ],
)
def test_constants_that_fp16_cannot_hold_keep_their_node(
    model_of: Callable[..., ir.Model], value: NDArray[np.float64], reason: str | None
) -> None:
    model = model_of(
        "g (float[4,N,3] x) => (float[4,N,3] y) { [max] m = Max(x, k) [out] y = Relu(m) }",
        k=value.astype(np.float32),
    )
    result, reasons = cast(model)
    assert reasons == ({} if reason is None else {"max": reason})
    assert types_of(result) == {"max": F16 if reason is None else F32, "out": F16}


def test_a_divisor_is_not_zero(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    small = np.array([1, 1e-9] * 8, np.float32)
    text = "g (float[N,16] x) => (float[N,16] y) { [op] y = {} (x, k) }"
    result, reasons = cast(model_of(text.replace("{}", "Div"), k=small))
    assert reasons == {"op": "constant 'k' has 1e-09, too small for FP16"}
    found = outputs_of(result, feed={"x": np.full((1, 16), 1e-9, np.float32)})[0]
    np.testing.assert_allclose(found[0, 1], 1, rtol=1e-3)
    assert cast(model_of(text.replace("{}", "Mul"), k=small))[1] == {}


def test_large_constants_are_looked_at_in_pieces(model_of: Callable[..., ir.Model]) -> None:
    text = "g (float[N,2048] x) => (float[N,1024] y) { [mm] y = MatMul (x, w) }"
    weight = np.full((2048, 1024), 1e-9, np.float32)
    assert cast(model_of(text, w=weight))[1] == {"mm": "constant 'w' has 1e-09 at most, too small for FP16"}
    weight[:4] = 1e-3  # beside which all others are nothing
    assert cast(model_of(text, w=weight))[1] == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-3.4e38, "has 3.4e+38, FP16 ends at 65504"),
        (1e-12, "has 1e-12, too small for FP16"),
        (-np.inf, None),
        (-6e4, None),
    ],
)
def test_what_a_tensor_is_filled_with_is_a_constant(
    model_of: Callable[..., ir.Model], assert_near: Near, value: float, reason: str | None
) -> None:
    model = model_of("""g (float[N,N] x) => (float[N,N] y) {
        s = Shape(x)
        [fill] f = ConstantOfShape<value = float[1] {1.0}>(s)
        [upper] u = Trilu(f)
        [max] m = Max(x, u)
        [out] y = Sigmoid(m)
    }""")
    filled = next(node for node in model.graph if node.name == "fill")
    filled.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([value], np.float32)))
    result, reasons = cast(model)
    names = [("fill", "f"), ("upper", "f"), ("max", "u")]
    wanted = {} if reason is None else {node: f"constant {name!r} {reason}" for node, name in names}
    assert reasons == wanted
    assert types_of(result)["out"] is F16
    assert_near(model, result)


def test_bf16_holds_what_a_tensor_is_filled_with_clipped(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """g (float[N,N] x) => (float[N,N] y) {
        s = Shape(x)
        f = ConstantOfShape<value = float[1] {-3.4e38}>(s)
        y = Add(x, f)
    }""",
        opset=20,
    )
    result, kept = to_bf16(model)
    assert kept == ()
    (filled,) = [node for node in result.graph if node.op_type == "ConstantOfShape"]
    value = filled.attributes.get_tensor("value")
    assert value is not None
    assert value.dtype is ir.DataType.BFLOAT16
    assert float(value.numpy()[0]) == pytest.approx(-3.3895314e38, rel=1e-6)


@pytest.mark.parametrize(
    ("guard", "reader", "wanted"),
    [
        ("Add(x, eps)", "Log(a)", np.log(1e-12)),
        ("Max(x, eps)", "Div(x, a)", 0.0),
        ("Clip(x, eps)", "Reciprocal(a)", 1e12),
    ],
)
def test_an_epsilon_is_not_lost_before_what_divides(
    model_of: Callable[..., ir.Model],
    outputs_of: Callable[..., list[NDArray[Any]]],
    guard: str,
    reader: str,
    wanted: float,
) -> None:
    nodes = f"[guard] b = {guard} [same] a = Identity(b) [reader] y = {reader}"
    model = model_of(
        f"g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}",
        eps=np.array(1e-12, np.float32),
    )
    result, reasons = cast(model)
    assert list(reasons) == ["guard", "same", "reader"]
    assert reasons["reader"] == "tensor 'a' is kept from zero by a number that is too small for FP16"
    feed = {"x": np.zeros((2, 3), np.float32)}
    np.testing.assert_allclose(outputs_of(result, feed=feed)[0], wanted, rtol=1e-3)


@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_an_epsilon_that_fp16_holds_keeps_nothing(model_of: Callable[..., ir.Model], epsilon: float) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { a = Add(x, eps) y = Log(a) }"
    assert cast(model_of(text, eps=np.array(epsilon, np.float32)))[1] == {}


def test_infinities_in_constants_stay_infinite(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        "g (float[3] x) => (float[3] y) { a = Add(x, mask) y = Softmax(a) }",
        mask=np.array([0, -np.inf, 0], np.float32),
    )
    result, reasons = cast(model)
    assert reasons == {}
    mask = result.graph.initializers["mask_fp16"].const_value
    assert mask is not None
    assert mask.numpy().tolist() == [0, -np.inf, 0]
    assert_near(model, result)


@pytest.mark.parametrize("branch", [True, False])
def test_bodies_stay_fp32_and_so_does_what_they_capture(
    model_of: Callable[..., ir.Model], assert_near: Near, branch: bool
) -> None:
    model = model_of(
        """g (float[N,3] x, bool c) => (float[N,3] y) {
            [relu] r = Relu(x)
            [if] i = If(c) <
                then_branch = a () => (float[N,3] t) { [inner] u = MatMul(r, w) [inner2] t = Add(u, r) },
                else_branch = b () => (float[N,3] e) {
                    [nested] e = If(c) <
                        then_branch = d () => (float[N,3] p) { [deep] p = Relu(x) },
                        else_branch = f () => (float[N,3] q) { [deep2] q = Neg(r) }
                    >
                }
            >
            [add] y = Add(i, r)
        }""",
        w=_random(3, 3),
    )
    result, reasons = cast(model)
    assert reasons == {"if": "If has a subgraph"}
    assert types_of(result) == {"relu": F16, "if": F32, "add": F16}
    assert "r_to_fp32" in casts_of(result)
    assert_near(model, result, feed={"c": np.array(branch)})


def test_a_body_without_floats_at_its_border_gets_fp32_too(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of("""g (float[3] x, bool c) => (int64 y, float[3] z) {
        [relu] r = Relu(x)
        [if] y = If(c) <
            then_branch = a () => (int64 t) { [m] t = ArgMax<keepdims = 0>(r) },
            else_branch = b () => (int64 e) { s = Neg(r) e = ArgMax<keepdims = 0>(s) }
        >
        [neg] z = Neg(r)
    }""")
    result, _ = cast(model)
    assert casts_of(result) == ["r_to_fp32", "x_to_fp16", "z_to_fp32_output"]
    assert_near(model, result, feed={"c": np.array(True)})


def test_a_loop_keeps_its_state_in_fp32(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        """g (float[3] x) => (float[3] y) {
            [half] h = Mul(x, k)
            [loop] l = Loop(trip, yes, h) <
                body = b (int64 n, bool o, float[3] s) => (bool o2, float[3] s2) {
                    o2 = Identity(o)
                    s2 = Add(s, h)
                }
            >
            [out] y = Neg(l)
        }""",
        k=np.array(0.5, np.float32),
        trip=np.array(3),
        yes=np.array(True),
    )
    result, reasons = cast(model)
    assert reasons == {"loop": "Loop has a subgraph"}
    assert types_of(result) == {"half": F16, "loop": F32, "out": F16}
    assert_near(model, result)


def test_a_node_whose_tensor_has_steps_below_fp16_stays_fp32(graph_of: Callable[..., Graph]) -> None:
    text = """net (float[N, 4] x) => (float[N, 4] y) {
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      [neg] y = Neg (d)
    }"""
    for step, is_kept in ((2.0**-25, True), (2.0**-24, False)):
        model = graph_of(text, s=np.float32(step), z=np.int8(0)).model
        reasons = cast(model)[1]
        assert ("neg" in reasons) is is_kept
    assert cast(model, beyond_fp16={"d": 1e-7})[1]["neg"] == (
        "tensor 'd' reaches 1e-07, FP16 has no steps below 5.96e-08"
    )
