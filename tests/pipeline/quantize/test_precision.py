"""Tests of the cast to FP16: what is cast, what stays and why; ONNX Runtime and TensorRT-RTX judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.pipeline.graph.placement import place
from trtq.pipeline.quantize.precision import KeptFp32, to_fp16
from trtq.pipeline.quantize.qdq import quantize

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _cast(model: ir.Model, **arguments: Any) -> tuple[ir.Model, dict[str, str]]:
    """Returns the model in FP16, which passes the checker and keeps its signature, and the reasons."""
    before = ir.to_proto(model).SerializeToString()
    result, kept = to_fp16(model, **arguments)
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for old, new in (
        (model.graph.inputs, result.graph.inputs),
        (model.graph.outputs, result.graph.outputs),
    ):
        assert [(value.name, value.dtype) for value in new] == [(value.name, value.dtype) for value in old]
    return result, {node.name: node.reason for node in kept}


def _types(model: ir.Model) -> dict[str, ir.DataType | None]:
    """Returns the dtype of the first output of every node that was there before."""
    return {
        str(node.name): node.outputs[0].dtype
        for node in model.graph
        if "_to_fp16" not in str(node.name) and "_to_fp32" not in str(node.name)
    }


def _casts(model: ir.Model) -> list[str]:
    return sorted(str(node.name) for node in model.graph if node.op_type == "Cast")


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


Near = Callable[..., None]


@pytest.fixture
def assert_near(outputs_of: Callable[..., list[NDArray[Any]]]) -> Near:
    """Checks with ONNX Runtime that two models give nearly the same on random inputs, and the same dtypes."""

    def check(before: ir.Model, after: ir.Model, *, tolerance: float = 5e-3, **arguments: Any) -> None:
        for seed in (0, 1):
            wanted, found = (outputs_of(model, seed=seed, **arguments) for model in (before, after))
            for want, have in zip(wanted, found, strict=True):
                assert want.dtype == have.dtype
                assert np.isfinite(want).all()
                np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * np.abs(want).max())

    return check


NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    [relu] r = Relu(c)
    [pool] p = GlobalAveragePool(r)
    [flat] f = Flatten(p)
    [fc] g = Gemm(f, v, k)
    [softmax] y = Softmax<axis = 1>(g)
}"""
WEIGHTS: dict[str, NDArray[Any]] = {
    "w": _random(8, 3, 3, 3),
    "b": _random(8),
    "v": _random(8, 5),
    "k": _random(5),
}


def test_a_network_computes_in_fp16_between_fp32_inputs_and_outputs(
    model_of: Callable[..., ir.Model],
    assert_near: Near,
    build_rtx: Callable[..., dict[str, set[str]]],
) -> None:
    model = model_of(NETWORK, **WEIGHTS)
    result, reasons = _cast(model)
    assert reasons == {}
    assert set(_types(result).values()) == {F16}
    assert _casts(result) == ["x_to_fp16", "y_to_fp32_output"]
    assert {value.dtype for value in result.graph.initializers.values()} == {F16}
    assert_near(model, result)
    kernels = build_rtx(result)
    assert any("conv" in name and "Half" in types for name, types in kernels.items())


def test_a_pattern_keeps_nodes_with_one_cast_before_and_one_behind(
    model_of: Callable[..., ir.Model], assert_near: Near, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    model = model_of(NETWORK, **WEIGHTS)
    result, reasons = _cast(model, keep_fp32=["^nothing$", "^relu$", "oo"])
    assert reasons == {"relu": "kept by '^relu$'", "pool": "kept by 'oo'"}
    assert _types(result) == dict.fromkeys(("conv", "flat", "fc", "softmax"), F16) | {
        "relu": F32,
        "pool": F32,
    }
    assert _casts(result) == ["c_to_fp32", "p_to_fp16", "x_to_fp16", "y_to_fp32_output"]
    assert_near(model, result)
    build_rtx(result)


def test_a_tensor_is_cast_once_in_each_direction(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y) {
            [a] a = Relu(x)
            [b] b = Sigmoid(x)
            [keep1] c = Add(a, b)
            [keep2] d = Mul(a, b)
            [e] e = Sub(c, d)
            [f] f = Add(c, d)
            [g] y = Mul(e, f)
        }"""
    )
    result, _ = _cast(model, keep_fp32=["keep"])
    assert _casts(result) == [
        "a_to_fp32",
        "b_to_fp32",
        "c_to_fp16",
        "d_to_fp16",
        "x_to_fp16",
        "y_to_fp32_output",
    ]
    assert_near(model, result)


def test_a_constant_is_cast_once_and_stays_for_those_who_need_it(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] y) { [a] a = Add(x, w) [b] b = Mul(a, w) [keep] y = Sub(b, w) }",
        w=_random(3),
    )
    result, _ = _cast(model, keep_fp32=["keep"])
    assert set(result.graph.initializers) == {"w", "w_fp16"}
    assert _node(result, "a").inputs[1] is _node(result, "b").inputs[1]
    assert _node(result, "keep").inputs[1] is result.graph.initializers["w"]
    assert_near(model, result)


def test_the_scales_of_a_resize_stay_float(
    model_of: Callable[..., ir.Model],
    assert_near: Near,
    build_rtx: Callable[..., dict[str, set[str]]],
) -> None:
    model = model_of(
        'g (float[1,2,4,4] x) => (float[1,2,8,8] y) { [up] y = Resize<mode = "linear">(x, "", scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    result, reasons = _cast(model)
    assert reasons == {}
    up = _node(result, "up")
    assert [value.dtype if value is not None else None for value in up.inputs] == [F16, None, F32]
    assert_near(model, result)
    build_rtx(result)


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
    result, found = _cast(model)
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
    assert _types(result)["relu"] is F16
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
    assert set(_types(_cast(model)[0]).values()) == {F16}
    result, reasons = _cast(model, beyond_fp16={"s": 9e4})
    assert reasons == dict.fromkeys(("square", "log"), "tensor 's' reaches 9e+04, FP16 ends at 65504")
    assert _types(result) == {"mul": F16, "square": F32, "log": F32, "out": F16}
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
    ],
)
def test_constants_that_fp16_cannot_hold_keep_their_node(
    model_of: Callable[..., ir.Model], value: NDArray[np.float64], reason: str | None
) -> None:
    model = model_of(
        "g (float[4,N,3] x) => (float[4,N,3] y) { [max] m = Max(x, k) [out] y = Relu(m) }",
        k=value.astype(np.float32),
    )
    result, reasons = _cast(model)
    assert reasons == ({} if reason is None else {"max": reason})
    assert _types(result) == {"max": F16 if reason is None else F32, "out": F16}


def test_an_epsilon_is_not_lost(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] y) { [add] a = Add(x, eps) [log] y = Log(a) }",
        eps=np.array(1e-12, np.float32),
    )
    result, reasons = _cast(model, keep_fp32=["log"])
    assert list(reasons) == ["add", "log"]
    feed = {"x": np.zeros((2, 3), np.float32)}
    np.testing.assert_allclose(outputs_of(result, feed=feed)[0], np.log(1e-12), rtol=1e-3)


def test_infinities_in_constants_stay_infinite(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        "g (float[3] x) => (float[3] y) { a = Add(x, mask) y = Softmax(a) }",
        mask=np.array([0, -np.inf, 0], np.float32),
    )
    result, reasons = _cast(model)
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
    result, reasons = _cast(model)
    assert reasons == {"if": "If has a body of its own"}
    assert _types(result) == {"relu": F16, "if": F32, "add": F16}
    assert "r_to_fp32" in _casts(result)
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
    result, _ = _cast(model)
    assert _casts(result) == ["r_to_fp32", "x_to_fp16", "z_to_fp32_output"]
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
    result, reasons = _cast(model)
    assert reasons == {"loop": "Loop has a body of its own"}
    assert _types(result) == {"half": F16, "loop": F32, "out": F16}
    assert_near(model, result)


def test_casts_to_float_become_casts_to_fp16(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z) {
            [to_int] i = Cast<to = 7>(x)
            [to_float] f = Cast<to = 1>(i)
            [like] l = CastLike(i, x)
            [mul] y = Mul(f, x)
            [out] z = Add(l, x)
        }"""
    )
    result, reasons = _cast(model)
    assert reasons == {}
    assert _node(result, "to_float").attributes["to"].as_int() == F16
    assert _node(result, "to_int").attributes["to"].as_int() == ir.DataType.INT64
    assert _types(result) == {"to_int": ir.DataType.INT64} | dict.fromkeys(
        ("to_float", "like", "mul", "out"), F16
    )
    assert_near(model, result)


@pytest.mark.parametrize(
    ("attribute", "dtype"),
    [("<value = float[1] {2.5}>", F16), ("", F16), ("<value = int64[1] {2}>", ir.DataType.INT64)],
)
def test_tensors_filled_with_one_number(
    model_of: Callable[..., ir.Model], assert_near: Near, attribute: str, dtype: ir.DataType
) -> None:
    model = model_of(
        f"""g (float[N,3] x) => (float[N,3] y) {{
            s = Shape(x)
            [fill] f = ConstantOfShape{attribute}(s)
            [like] c = CastLike(f, x)
            y = Add(x, c)
        }}"""
    )
    result, reasons = _cast(model)
    assert reasons == {}
    assert _types(result)["fill"] is dtype
    assert_near(model, result)


def test_computing_with_shapes_stays_fp32(
    model_of: Callable[..., ir.Model],
    assert_near: Near,
    build_rtx: Callable[..., dict[str, set[str]]],
) -> None:
    model = model_of(
        """g (float[N,2,H,W] x) => (float[N,2,P,Q] y) {
            [relu] r = Relu(x)
            [shape] s = Shape(r)
            [float] f = Cast<to = 1>(s)
            [mul] m = Mul(f, factors)
            [floor] l = Floor(m)
            [int] i = Cast<to = 7>(l)
            [fill] c = ConstantOfShape<value = float[1] {1.0}>(i)
            [resize] u = Resize<mode = "nearest">(r, "", "", i)
            [add] y = Add(u, c)
        }""",
        factors=np.array([1, 1, 1.5, 1.5], np.float32),
    )
    result, reasons = _cast(model)
    reason = "computes with the shapes of tensors"
    assert reasons == dict.fromkeys(("float", "mul", "floor", "int"), reason)
    assert _casts(result) == ["float", "int", "x_to_fp16", "y_to_fp32_output"]
    assert _types(result)["fill"] is F16
    assert_near(model, result, H=6, W=5)
    assert_near(model, result, N=1, H=2050, W=3)  # FP16 cannot tell 3075 from 3076
    build_rtx(result, H=6, W=6)


def test_an_output_that_is_read_too_is_cast_for_the_caller_only(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] a, float[N,3] y) { [relu] a = Relu(x) [neg] y = Neg(a) }"
    )
    result, _ = _cast(model)
    assert _casts(result) == ["a_to_fp32_output", "x_to_fp16", "y_to_fp32_output"]
    assert _node(result, "neg").inputs[0] is _node(result, "relu").outputs[0]
    assert_near(model, result)


def test_an_output_that_stays_fp32_is_cast_for_the_readers_only(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] a, float[N,3] y) { [relu] a = Relu(x) [neg] y = Neg(a) }"
    )
    result, _ = _cast(model, keep_fp32=["relu"])
    assert _casts(result) == ["a_to_fp16", "y_to_fp32_output"]
    assert_near(model, result)


def test_an_input_and_a_constant_that_are_outputs_stay(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of("g (float[N,3] x) => (float[N,3] y) { y = Add(x, w) }", w=_random(3))
    model.graph.outputs.extend([model.graph.inputs[0], model.graph.initializers["w"]])
    result, _ = _cast(model)
    assert result.graph.outputs[1] is result.graph.inputs[0]
    assert result.graph.outputs[2] is result.graph.initializers["w"]
    assert_near(model, result)


def test_integers_pass_untouched(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        "g (int64[N] i, float[5,3] t) => (float[N,3] y, int64[N] j) { y = Gather(t, k) j = Add(i, k) }",
        k=np.array([1, 0]),
    )
    result, _ = _cast(model)
    assert _casts(result) == ["t_to_fp16", "y_to_fp32_output"]
    assert_near(model, result)


def test_names_that_are_taken_are_not_taken_again(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y) {
            x_fp16 = Relu(x)
            w_fp16 = Add(x_fp16, w)
            y_fp16 = Neg(w_fp16)
            y = Add(y_fp16, x)
        }""",
        w=_random(3),
    )
    result, _ = _cast(model)
    assert_near(model, result)


def test_an_fp16_model_stays_and_its_fp32_part_joins_it(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        """g (float16[N,3] x) => (float16[N,3] y) {
            [relu] r = Relu(x)
            [up] f = Cast<to = 1>(r)
            [norm] n = LayerNormalization(f, one)
            [down] h = Cast<to = 10>(n)
            [out] y = Add(h, w)
        }""",
        one=np.ones(3, np.float32),
        w=_random(3).astype(np.float16),
    )
    result, reasons = _cast(model)
    assert reasons == {}
    assert set(_types(result).values()) == {F16}
    assert set(result.graph.initializers) == {"one_fp16", "w"}
    assert_near(model, result, tolerance=2e-2)
    kept, _ = _cast(model, keep_fp32=["norm"])
    assert _types(kept)["norm"] is F32
    assert_near(model, kept, tolerance=2e-2)


def test_an_fp16_resize_keeps_its_float_scales(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        'g (float16[1,2,4,4] x) => (float16[1,2,8,8] y) { [up] y = Resize<mode = "nearest">(x, "", scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    result, reasons = _cast(model)
    assert reasons == {}
    assert set(result.graph.initializers) == {"scales"}
    assert_near(model, result)


def _quantized(model: ir.Model, amax: float, scale_dtype: str = "float16") -> ir.Model:
    placement = place(model)
    tensors = {name: Range(amax, -amax, amax) for name in placement.activations}
    ranges = Ranges(tensors, "minmax()", "0" * 64, "made up", 1)
    return quantize(model, placement, ranges, scale_dtype=scale_dtype)


QUANTIZED = "g (float[N,8,6,6] x) => (float[N,16,6,6] y) { [relu] r = Relu(x) [conv] y = Conv(r, w, b) }"


def test_pairs_and_scales_become_fp16(
    model_of: Callable[..., ir.Model], assert_near: Near, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    float_model = model_of(QUANTIZED, w=_random(16, 8, 1, 1), b=_random(16))
    model = _quantized(float_model, 4.0)
    result, reasons = _cast(model)
    assert reasons == {}
    pair = [node for node in result.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pair) == 3
    for node in pair:
        assert node.inputs[1] is not None
        assert node.inputs[1].dtype is F16
    assert _casts(result) == ["x_to_fp16", "y_to_fp32_output"]
    for name in ("r_scale", "w_scale"):
        before, after = (
            value.const_value.numpy().astype(np.float64)
            for graph in (model.graph.initializers, result.graph.initializers)
            for key, value in graph.items()
            if key.removesuffix("_fp16") == name and value.const_value is not None
        )
        np.testing.assert_array_equal(before, after)
    assert_near(model, result, tolerance=1e-2)
    assert any("conv" in name and "Int8" in types for name, types in build_rtx(result).items())


def test_what_a_pair_passes_on_beyond_fp16_is_read_in_fp32(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = _quantized(model_of(QUANTIZED, w=_random(16, 8, 1, 1) * 1e-4, b=_random(16)), 2e5)
    result, reasons = _cast(model, beyond_fp16={"r": 2e5, "x": 2e5})
    assert reasons == {
        "relu": "tensor 'x' reaches 2e+05, FP16 ends at 65504",
        "r_QuantizeLinear": "tensor 'r' reaches 2e+05, FP16 ends at 65504",
        "r_DequantizeLinear": "scale 'r_scale' gives values up to 2e+05, FP16 ends at 65504",
        "conv": "tensor 'r_dequantized' reaches 2e+05, FP16 ends at 65504",
    }
    feed = {"x": np.abs(_random(1, 8, 6, 6)) * 5e4}
    want, have = outputs_of(model, feed=feed)[0], outputs_of(result, feed=feed)[0]
    np.testing.assert_allclose(have, want, rtol=1e-2, atol=1e-2 * np.abs(want).max())


def test_scales_that_fp16_would_lose_stay_fp32(
    model_of: Callable[..., ir.Model], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    weight = _random(16, 8, 1, 1)
    weight[3] *= 1e-8
    model = _quantized(model_of(QUANTIZED, w=weight, b=np.zeros(16, np.float32)), 4.0, "float32")
    result, reasons = _cast(model)
    assert list(reasons) == ["w_dequantized_DequantizeLinear"]
    assert "too small for FP16" in reasons["w_dequantized_DequantizeLinear"]
    assert _types(result)["conv"] is F16
    feed = {"x": _random(1, 8, 6, 6)}
    want, have = outputs_of(model, feed=feed)[0], outputs_of(result, feed=feed)[0]
    np.testing.assert_allclose(have, want, rtol=2e-2, atol=1e-2)


def test_a_computed_scale_is_left_to_fp16(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        """g (float[N,4] x) => (float[N,4] y) {
            m = ReduceMax<keepdims = 0>(limits)
            q = QuantizeLinear(x, m, zero)
            d = DequantizeLinear(q, m, zero)
            y = Relu(d)
        }""",
        limits=np.array([0.125, 0.0625], np.float32),
        zero=np.array(0, np.int8),
    )
    result, reasons = _cast(model)
    assert reasons == {}
    assert_near(model, result, tolerance=1e-2)
