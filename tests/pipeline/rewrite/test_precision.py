"""Tests of the cast to FP16: what is cast, and where; ONNX Runtime and TensorRT-RTX judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checked_fp16 import cast, casts_of, types_of
from made_up import random_array
from numpy.typing import NDArray

from trtq.models.tensors import PIECE
from trtq.pipeline.formats import FP16
from trtq.pipeline.rewrite.precision import _cast_tensor

F32, F16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
Near = Callable[..., None]


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


NETWORK = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    [relu] r = Relu(c)
    [pool] p = GlobalAveragePool(r)
    [flat] f = Flatten(p)
    [fc] g = Gemm(f, v, k)
    [softmax] y = Softmax<axis = 1>(g)
}"""
WEIGHTS: dict[str, NDArray[Any]] = {
    "w": random_array(8, 3, 3, 3),
    "b": random_array(8),
    "v": random_array(8, 5),
    "k": random_array(5),
}


def test_a_network_computes_in_fp16_between_fp32_inputs_and_outputs(
    model_of: Callable[..., ir.Model],
    assert_near: Near,
    build_rtx: Callable[..., dict[str, set[str]]],
) -> None:
    model = model_of(NETWORK, **WEIGHTS)
    result, reasons = cast(model)
    assert reasons == {}
    assert set(types_of(result).values()) == {F16}
    assert casts_of(result) == ["x_to_fp16", "y_to_fp32_output"]
    assert {value.dtype for value in result.graph.initializers.values()} == {F16}
    assert_near(model, result)
    kernels = build_rtx(result)
    assert any("conv" in name and "Half" in types for name, types in kernels.items())


def test_a_pattern_keeps_nodes_with_one_cast_before_and_one_behind(
    model_of: Callable[..., ir.Model], assert_near: Near, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    model = model_of(NETWORK, **WEIGHTS)
    result, reasons = cast(model, keep_fp32=["^nothing$", "^relu$", "oo"])
    assert reasons == {"relu": "kept by '^relu$'", "pool": "kept by 'oo'"}
    assert types_of(result) == dict.fromkeys(("conv", "flat", "fc", "softmax"), F16) | {
        "relu": F32,
        "pool": F32,
    }
    assert casts_of(result) == ["c_to_fp32", "p_to_fp16", "x_to_fp16", "y_to_fp32_output"]
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
    result, _ = cast(model, keep_fp32=["keep"])
    assert casts_of(result) == [
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
        w=random_array(3),
    )
    result, _ = cast(model, keep_fp32=["keep"])
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
    result, reasons = cast(model)
    assert reasons == {}
    up = _node(result, "up")
    assert [value.dtype if value is not None else None for value in up.inputs] == [F16, None, F32]
    assert_near(model, result)
    build_rtx(result)


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
    result, reasons = cast(model)
    assert list(reasons) == ["to_int"]  # an index, perhaps
    assert _node(result, "to_float").attributes["to"].as_int() == F16
    assert _node(result, "to_int").attributes["to"].as_int() == ir.DataType.INT64
    assert types_of(result) == {"to_int": ir.DataType.INT64} | dict.fromkeys(
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
    result, reasons = cast(model)
    assert reasons == {}
    assert types_of(result)["fill"] is dtype
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
    result, reasons = cast(model)
    reason = "computes with tensor shapes"
    assert reasons == dict.fromkeys(("float", "mul", "floor", "int"), reason)
    assert casts_of(result) == ["float", "int", "x_to_fp16", "y_to_fp32_output"]
    assert types_of(result)["fill"] is F16
    assert_near(model, result, H=6, W=5)
    assert_near(model, result, N=1, H=2050, W=3)  # FP16 cannot tell 3075 from 3076
    build_rtx(result, H=6, W=6)


def test_an_output_that_is_read_too_is_cast_for_the_caller_only(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] a, float[N,3] y) { [relu] a = Relu(x) [neg] y = Neg(a) }"
    )
    result, _ = cast(model)
    assert casts_of(result) == ["a_to_fp32_output", "x_to_fp16", "y_to_fp32_output"]
    assert _node(result, "neg").inputs[0] is _node(result, "relu").outputs[0]
    assert_near(model, result)


def test_an_output_that_stays_fp32_is_cast_for_the_readers_only(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] a, float[N,3] y) { [relu] a = Relu(x) [neg] y = Neg(a) }"
    )
    result, _ = cast(model, keep_fp32=["relu"])
    assert casts_of(result) == ["a_to_fp16", "y_to_fp32_output"]
    assert_near(model, result)


def test_an_input_and_a_constant_that_are_outputs_stay(
    model_of: Callable[..., ir.Model], assert_near: Near
) -> None:
    model = model_of("g (float[N,3] x) => (float[N,3] y) { y = Add(x, w) }", w=random_array(3))
    model.graph.outputs.extend([model.graph.inputs[0], model.graph.initializers["w"]])
    result, _ = cast(model)
    assert result.graph.outputs[1] is result.graph.inputs[0]
    assert result.graph.outputs[2] is result.graph.initializers["w"]
    assert_near(model, result)


def test_integers_pass_untouched(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        "g (int64[N] i, float[5,3] t) => (float[N,3] y, int64[N] j) { y = Gather(t, k) j = Add(i, k) }",
        k=np.array([1, 0]),
    )
    result, _ = cast(model)
    assert casts_of(result) == ["t_to_fp16", "y_to_fp32_output"]
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
        w=random_array(3),
    )
    result, _ = cast(model)
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
        w=random_array(3).astype(np.float16),
    )
    result, reasons = cast(model)
    assert reasons == {}
    assert set(types_of(result).values()) == {F16}
    assert set(result.graph.initializers) == {"one_fp16", "w"}
    assert_near(model, result, tolerance=2e-2)
    kept, _ = cast(model, keep_fp32=["norm"])
    assert types_of(kept)["norm"] is F32
    assert_near(model, kept, tolerance=2e-2)


def test_an_fp16_resize_keeps_its_float_scales(model_of: Callable[..., ir.Model], assert_near: Near) -> None:
    model = model_of(
        'g (float16[1,2,4,4] x) => (float16[1,2,8,8] y) { [up] y = Resize<mode = "nearest">(x, "", scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    result, reasons = cast(model)
    assert reasons == {}
    assert set(result.graph.initializers) == {"scales"}
    assert_near(model, result)


def test_a_large_constant_is_cast_in_pieces_as_if_in_one() -> None:
    weight = np.random.default_rng(0).standard_normal((2, PIECE)).astype(np.float32)
    weight[1, 7], weight[1, 9] = 1e6, -np.inf
    found = _cast_tensor(ir.tensor(weight), FP16).numpy()
    assert found.dtype == np.float16
    assert (found[1, 7], found[1, 9]) == (65504.0, -np.inf)
    weight[1, 7] = 65504.0
    np.testing.assert_array_equal(found, weight.astype(np.float16))
