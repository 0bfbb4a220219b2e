"""Repairs: what they leave, and that the model computes the same in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.operands import find_constant
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.graph.repair import repair, summarize_changes
from trtq.pipeline.graph.repair.change import Change
from trtq.pipeline.graph.repair.constants import repair_constants

ModelOf = Callable[..., ir.Model]
Same = Callable[..., None]
PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
MATRIX = "g (float[8,16] x) => (float[8,32] y)"


def codes(*shape: int, dtype: Any = np.int8) -> Any:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.random.default_rng(0).integers(low, high, shape, dtype, endpoint=True)


def symmetric(dtype: Any = np.int8, zero: int = 0) -> dict[str, Any]:
    return {"s": np.float32(0.05), "z": dtype(zero)}


def weight(rows: int = 16, columns: int = 32, axis: int = 1) -> dict[str, Any]:
    count = (rows, columns)[axis]
    scales = np.linspace(0.001, 0.01, count).astype(np.float32)
    return {"w": codes(rows, columns), "sw": scales, "zw": np.zeros(count, np.int8)}


WEIGHT = "dw = DequantizeLinear <axis = 1> (w, sw, zw)"


def test_a_model_that_tensorrt_takes_is_left_as_it_is(model_of: ModelOf) -> None:
    text = f"{MATRIX} {{ {PAIR} {WEIGHT} y = MatMul (d, dw) }}"
    model = model_of(text, **symmetric(), **weight())
    repaired = repair(model, requantize=True)
    assert repaired.changes == ()
    assert [node.op_type for node in repaired.model.graph] == [node.op_type for node in model.graph]


def test_an_int32_bias_becomes_float(model_of: ModelOf, assert_equal_outputs: Same) -> None:
    text = f"{MATRIX} {{ {PAIR} {WEIGHT} [b] b = DequantizeLinear (c, t) y = Gemm (d, dw, b) }}"
    bias = {"c": codes(32, dtype=np.int32) // 2**10, "t": np.float32(1e-6)}
    model = model_of(text, **symmetric(), **weight(), **bias)
    repaired = repair(model)
    assert repaired.changes == (Change("int32", "b", "a float constant of the same values"),)
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


@pytest.mark.parametrize("through", ["q", "Transpose <perm = [0, 1]> (q)", "Concat <axis = 1> (q)"])
def test_uint8_around_128_becomes_int8(through: str, model_of: ModelOf, assert_equal_outputs: Same) -> None:
    moved = "" if through == "q" else f"r = {through}"
    name = "q" if through == "q" else "r"
    text = f"""{MATRIX} {{ q = QuantizeLinear (x, s, z) {moved} d = DequantizeLinear ({name}, s, z)
        {WEIGHT} y = MatMul (d, dw) }}"""
    model = model_of(text, **symmetric(np.uint8, 128), **weight())
    repaired = repair(model)
    assert [change.is_exact for change in repaired.changes] == [True, True]
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


def test_a_uint8_output_cannot_be_moved(model_of: ModelOf) -> None:
    text = "g (float[8] x) => (uint8[8] y) { y = QuantizeLinear (x, s, z) }"
    assert repair(model_of(text, **symmetric(np.uint8, 128)), requantize=True).changes == ()


def test_a_missing_zero_point_is_read_as_tensorrt_reads_it(model_of: ModelOf) -> None:
    text = f"{MATRIX} {{ q = QuantizeLinear (x, s) d = DequantizeLinear (q, s) {WEIGHT} y = MatMul (d, dw) }}"
    repaired = repair(model_of(text, s=np.float32(0.05), **weight()))
    assert {change.rule for change in repaired.changes} == {"missing-zero-point"}
    assert lint(repaired.model) == ()
    zero = find_constant(next(node for node in repaired.model.graph if node.op_type == "QuantizeLinear"), 2)
    assert zero is not None
    assert (zero.dtype.name, zero.shape, zero.tolist()) == ("int8", (), 0)


@pytest.mark.parametrize("count", [1, 16])
def test_equal_scales_of_an_activation_become_one(
    count: int, model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    text = """g (float[1,16,9,9] x) => (float[1,8,7,7] y) {
        q = QuantizeLinear <axis = 1> (x, s, z) d = DequantizeLinear <axis = 1> (q, s, z)
        dw = DequantizeLinear (w, t) y = Conv (d, dw) }"""
    scales = {"s": np.full(count, 0.05, np.float32), "z": np.zeros(count, np.int8)}
    model = model_of(text, **scales, w=codes(8, 16, 3, 3), t=np.float32(0.01))
    repaired = repair(model)
    assert lint(model) != ()
    assert lint(repaired.model) == ()
    assert find_quantized_layers(repaired.model)[0].scale_shape == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "zero", "low", "high"),
    [(np.uint8, 128, 0, 256), (np.uint8, 100, 30, 200), (np.int8, 5, -100, 100), (np.int16, 300, 200, 400)],
)
def test_a_constants_zero_point_goes_into_its_codes_where_they_fit(
    dtype: Any, zero: int, low: int, high: int, model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    text = f"{MATRIX} {{ {PAIR} dw = DequantizeLinear (w, t, u) y = MatMul (d, dw) }}"
    values = np.random.default_rng(0).integers(low, high, (16, 32)).astype(dtype)
    constants = {"w": values, "t": np.float32(0.01), "u": dtype(zero)}
    model = model_of(text, opset=21, ir_version=10, **symmetric(), **constants)
    repaired = repair(model)
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


def test_a_float_weight_quantized_around_a_zero_point_is_computed_first(
    model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    text = f"""{MATRIX} {{ {PAIR} qw = QuantizeLinear <axis = 1> (w, sw, u)
        dw = DequantizeLinear <axis = 1> (qw, sw, u) y = MatMul (d, dw) }}"""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.uniform(-1, 1, (16, 32)).astype(np.float32),
        "sw": np.linspace(0.009, 0.01, 32).astype(np.float32),
        "u": np.full(32, 128, np.uint8),
    }
    model = model_of(text, **symmetric(), **constants)
    repaired = repair(model)
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


def test_a_channel_of_scale_0_holds_zeros(model_of: ModelOf, assert_equal_outputs: Same) -> None:
    constants = weight()
    constants["sw"][3] = 0
    model = model_of(f"{MATRIX} {{ {PAIR} {WEIGHT} y = MatMul (d, dw) }}", **symmetric(), **constants)
    repaired = repair(model)
    assert [change.rule for change in repaired.changes] == ["scale"]
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0)


def test_a_weight_on_the_wrong_axis_is_quantized_again_along_the_right_one(
    model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    text = f"{MATRIX} {{ {PAIR} {WEIGHT.replace('= 1', '= 0')} [mm] y = MatMul (d, dw) }}"
    model = model_of(text, **symmetric(), **weight(axis=0))
    (change,) = (repaired := repair(model)).changes
    assert (change.rule, change.node, change.is_exact) == ("weight-axis", "mm", False)
    assert change.what == "its weight quantized along axis 1, rounded anew"
    assert change.detail.startswith(" by at most 0.")
    assert find_quantized_layers(repaired.model)[0].weight_axis == 1
    assert_equal_outputs(model, repaired.model, atol=0.2, rtol=0)


def test_a_reshaped_weight_whose_channels_have_several_scales_is_rounded_anew(model_of: ModelOf) -> None:
    text = f"""{MATRIX} {{ {PAIR} v = DequantizeLinear <axis = 0> (w, sw, zw)
        e = Reshape (v, shape) y = MatMul (d, e) }}"""
    constants = {**weight(4, 128, axis=0), "shape": np.array([16, 32])}
    model = model_of(text, **symmetric(), **constants)
    assert [finding.rule for finding in lint(model)] == ["weight-axis"]
    (change,) = repair(model).changes
    assert not change.is_exact


def test_a_joined_weight_whose_channels_have_one_scale_each_keeps_its_codes(
    model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    text = f"""{MATRIX} {{ {PAIR} a = DequantizeLinear <axis = 1> (w, sw, zw)
        b = DequantizeLinear <axis = 1> (w, sw, zw) e = Concat <axis = 1> (a, b) y = MatMul (d, e) }}"""
    model = model_of(text, **symmetric(), **weight(16, 16))
    (change,) = (repaired := repair(model)).changes
    assert (change.rule, change.is_exact) == ("joined-weight", True)
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model)


def test_bounds_tables_and_recurrent_inputs_become_float(
    model_of: ModelOf, assert_equal_outputs: Same
) -> None:
    bound = model_of(
        f"g (float[8] x) => (float[8] y) {{ {PAIR} a = DequantizeLinear (c, s, z) [clip] y = Clip (d, a) }}",
        **symmetric(),
        c=np.int8(3),
    )
    table = model_of(
        "g (int64[4] x) => (float[4,16] y) { [pick] g = Gather (c, x) y = DequantizeLinear (g, s, z) }",
        **symmetric(),
        c=codes(9, 16),
    )
    recurrent = model_of(
        f"""g (float[5,N,16] x) => (float[5,1,N,8] y) {{ {PAIR}
            [lstm] y = LSTM <hidden_size = 8> (d, w, r) }}""",
        **symmetric(),
        w=np.full((1, 32, 16), 0.1, np.float32),
        r=np.full((1, 32, 8), 0.1, np.float32),
    )
    feed = {"feed": {"x": np.array([0, 8, 3, 3])}}
    for model, node, arguments in ((bound, "clip", {}), (table, "pick", feed), (recurrent, "lstm", {})):
        repaired = repair(model)
        assert [change.node for change in repaired.changes] == [node]
        assert lint(model) != ()
        assert lint(repaired.model) == ()
        assert_equal_outputs(model, repaired.model, rtol=0, atol=0, **arguments)


def test_a_layer_that_a_scales_shape_keeps_in_float_stays_so_if_int8_would_be_refused(
    model_of: ModelOf,
) -> None:
    text = """g (float[1,16,9,9] x) => (float[1,8,7,7] y) {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        c = Cast <to = 17> (f) dw = DequantizeLinear (c, t) [layer] y = Conv (d, dw) }"""  # float8
    one = {"s": np.full(1, 0.05, np.float32), "z": np.zeros(1, np.int8), "t": np.float32(1)}
    model = model_of(text, **one, f=np.ones((8, 16, 3, 3), np.float32))
    assert [finding.rule for finding in lint(model)] == ["activation-scale"]
    assert [finding.rule for finding in lint(repair(model).model)] == ["activation-scale"]


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, 0), (np.uint8, 100), (np.int8, -128), (np.int8, 7)])
def test_requantizing_keeps_the_range_and_what_was_cut_off(
    dtype: Any, zero: int, model_of: ModelOf, outputs_of: Callable[..., Any]
) -> None:
    text = f"g (float[1000] x) => (float[1000] y) {{ {PAIR} y = Identity (d) }}"
    model = model_of(text, **symmetric(dtype, zero))
    assert repair(model).changes == ()
    repaired = repair(model, requantize=True)
    assert [change.is_exact for change in repaired.changes] == [False, False]
    assert lint(repaired.model) == ()
    values = {"x": np.linspace(-20, 20, 1000).astype(np.float32)}
    (before,), (after,) = outputs_of(model, feed=values), outputs_of(repaired.model, feed=values)
    step = max(abs(before.min()), abs(before.max())) / 127
    assert np.abs(before - after).max() <= (step + 0.05) / 2 + 1e-5


def test_requantizing_takes_the_largest_of_unequal_scales_and_leaves_weights_by_channel(
    model_of: ModelOf,
) -> None:
    text = """g (float[8,16] x) => (float[8,32] y) {
        q = QuantizeLinear <axis = 1> (x, s, z) d = DequantizeLinear <axis = 1> (q, s, z)
        f = QuantizeLinear <axis = 1> (w, sw, zw) e = DequantizeLinear <axis = 1> (f, sw, zw)
        y = MatMul (d, e) }"""
    constants = weight()
    constants["w"] = constants["w"].astype(np.float32) / 100
    scales = {"s": np.linspace(0.01, 0.05, 16).astype(np.float32), "z": np.zeros(16, np.int8)}
    repaired = repair(model_of(text, **scales, **constants), requantize=True)
    assert {change.rule for change in repaired.changes} == {"activation-scale"}
    (layer,) = find_quantized_layers(repaired.model)
    assert (layer.scale_shape, layer.weight_axis) == ((), 1)


def test_requantizing_a_constant_rounds_it_anew(model_of: ModelOf, assert_equal_outputs: Same) -> None:
    text = f"{MATRIX} {{ {PAIR} dw = DequantizeLinear <axis = 1> (w, sw, u) y = MatMul (d, dw) }}"
    constants = {**weight(), "w": codes(16, 32, dtype=np.uint8), "u": np.full(32, 7, np.uint8)}
    constants.pop("zw")
    model = model_of(text, **symmetric(), **constants)
    assert [finding.rule for finding in lint(repair(model).model)] == ["zero-point"]
    repaired = repair(model, requantize=True)
    assert lint(repaired.model) == ()
    assert_equal_outputs(model, repaired.model, rtol=0, atol=0.5)


@given(
    values=st.lists(st.integers(0, 255), min_size=4, max_size=4),
    zero=st.integers(0, 255),
    scale=st.floats(2.0**-20, 2.0**10, width=32),
)
def test_moving_a_zero_point_changes_no_value(values: list[int], zero: int, scale: float) -> None:
    inputs = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
        for name, array in (
            ("c", np.array(values, np.uint8)),
            ("s", np.asarray(scale, np.float32)),
            ("z", np.asarray(zero, np.uint8)),
        )
    ]
    for value in inputs:
        assert value.const_value is not None
        value.type = ir.TensorType(value.const_value.dtype)
    node = ir.node("DequantizeLinear", inputs, name="dq")
    graph = ir.Graph([], [node.outputs[0]], nodes=[node], initializers=inputs, opset_imports={"": 19})
    changes = list(repair_constants(GraphEditor(ir.Model(graph, ir_version=9))))
    moved, points = find_constant(node, 0), find_constant(node, 2)
    assert moved is not None
    assert points is not None
    wanted = np.array(values, np.int64) - zero
    fits = bool(wanted.min() >= -128 and wanted.max() <= 127)
    assert bool(changes) == fits
    assert (moved.astype(np.int64) - points.astype(np.int64) == wanted).all()


def test_the_summary_counts_what_is_the_same() -> None:
    changes = (
        Change("a", "n1", "x"),
        Change("a", "n2", "x"),
        Change("a", "n3", "z"),
        Change("b", "n4", "y", False, " of 1"),
        Change("b", "n5", "w", False, " of 2"),
        Change("b", "n6", "w", False, " of 3"),
        Change("b", "n7", "v", False, " of 4"),
        Change("b", "n8", "v", False, " of 4"),
    )
    assert list(summarize_changes(changes)) == [
        ("repaired (a): 2 nodes such as 'n1' now have x", True),
        ("repaired (a): node 'n3' now has z", True),
        ("quantized again (b): node 'n4' now has y of 1", False),
        ("quantized again (b): 2 nodes such as 'n5' now have w", False),
        ("quantized again (b): 2 nodes such as 'n7' now have v of 4", False),
    ]
