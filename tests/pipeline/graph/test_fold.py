"""Tests of constants and identities that are folded away without a change; ONNX Runtime is the judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from folded import folded, op_types
from made_up import random_array

from trtq.errors import ModelError
from trtq.pipeline.graph.fold import (
    drop_identities,
    fold_batch_norm,
    fold_bias,
    fold_constants,
)


def test_what_depends_on_no_input_is_computed(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        """g (float[N,4] x) => (float[N,3] y) {
            t = Transpose<perm = [1, 0]>(w)
            h = Mul(t, half)
            a, b = Split<axis = 1, num_outputs = 2>(h)
            m = MatMul(x, a)
            n = MatMul(x, b)
            y = Sub(m, n)
        }""",
        w=random_array(6, 4),
        half=np.float32(0.5),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["MatMul", "MatMul", "Sub"]
    assert notes == ["folded 3 nodes that depend on no input"]
    assert_equal_outputs(model, after)


@pytest.mark.parametrize(("place", "end"), [(-5, 4), (4, 4), (9, 3)], ids=["before", "behind", "columns"])
def test_what_a_table_does_not_have_is_refused(
    model_of: Callable[..., ir.Model], place: int, end: int
) -> None:
    model = model_of(
        f"""g (float[3] x) => (float[K] y) {{
            [shift] p = Sub(places, one)
            [look] t = Gather<axis = {int(end == 3)}>(table, p)
            [flat] f = Reshape(t, all)
            y = Concat<axis = 0>(f, x)
        }}""",
        table=random_array(4, 3),
        places=np.array([0, place + 1]),
        one=np.array(1),
        all=np.array([-1]),
    )
    with pytest.raises(
        ModelError,
        match=rf"node 'look' reads entry {place} of 'table', which has {end}; if these are positions, the "
        rf"model takes {end} at the most: choose smaller sizes \(--past plus --new, or --seq\), or export",
    ):
        folded(model, fold_constants)


def test_nothing_to_fold_is_no_note(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { a = Add(x, x) y = Relu(a) }")
    after, notes = folded(model, fold_constants, fold_batch_norm, fold_bias)
    assert op_types(after) == ["Add", "Relu"]
    assert notes == []


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [("", [2, 3, 5]), ("<start = 1>", [3, 5]), ("<start = -2, end = -1>", [3]), ("<end = 9>", [2, 3, 5])],
)
def test_the_shape_of_a_static_tensor_is_a_constant(
    model_of: Callable[..., ir.Model],
    assert_equal_outputs: Callable[..., None],
    attributes: str,
    wanted: list[int],
) -> None:
    model = model_of(
        f"g (float[2,3,5] x) => (int64[M] y) {{ r = Relu(x) s = Shape{attributes}(r) y = Mul(s, two) }}",
        two=np.array([2]),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["Relu", "Mul"]
    shape = after.graph.node(1).inputs[0]
    assert shape is not None
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == wanted
    assert notes == ["folded 1 node that depend on no input"]
    assert_equal_outputs(model, after)


def test_what_is_computed_from_a_static_shape_is_computed(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        """g (float[2,3,4] x) => (float[2,12] y) {
            s = Shape(x)
            n = Gather(s, zero)
            t = Concat<axis = 0>(n, rest)
            y = Reshape(x, t)
        }""",
        zero=np.array([0]),
        rest=np.array([-1]),
    )
    after, _ = folded(model, fold_constants)
    assert op_types(after) == ["Reshape"]
    assert_equal_outputs(model, after)


def test_an_open_shape_and_a_shape_that_is_an_output_stay(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        "g (float[N,3] x, float[2,3] z) => (int64[2] p, int64[2] q) { s = Shape(x) p = Neg(s) q = Shape(z) }"
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["Shape", "Neg", "Shape"]
    assert notes == []
    assert_equal_outputs(model, after)


def test_values_that_would_grow_the_model_stay_computed(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        "g (float[N,1024] x) => (float[N,1024] y) { e = Expand(w, shape) r = Relu(e) y = MatMul(x, r) }",
        w=random_array(1, 1024),
        shape=np.array([1024, 1024]),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["Expand", "Relu", "MatMul"]
    assert notes == []
    assert_equal_outputs(model, after)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_large_weight_is_folded_through_many_nodes(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None], dtype: type
) -> None:
    model = model_of(
        """g (float[N,600] x) => (float[N,600] y) {
            t = Transpose<perm = [1, 0]>(w)
            c = Cast<to = 1>(t)
            h = Mul(c, half)
            y = MatMul(x, h)
        }""",
        w=random_array(600, 600).astype(dtype),
        half=np.float32(0.5),
    )
    after, _ = folded(model, fold_constants)
    assert op_types(after) == ["MatMul"]
    assert_equal_outputs(model, after, atol=1e-4)  # sums of 600 products


def test_bodies_are_left_alone(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        """g (float[N,3] x, bool c) => (float[N,3] y, float[3] z) {
            w2 = Mul(w, w)
            i = If(yes) <
                then_branch = a () => (float[3] t) { u = Neg(w2) t = Neg(u) },
                else_branch = b () => (float[3] e) { e = Relu(w2) }
            >
            y = If(c) <
                then_branch = d () => (float[N,3] p) { p = Add(x, w2) },
                else_branch = f () => (float[N,3] q) { q = Add(x, i) }
            >
            z = Loop(trip, yes, w) <
                body = k (int64 n, bool o, float[3] s) => (bool o2, float[3] s2) {
                    o2 = Identity(o)
                    s2 = Add(s, w2)
                }
            >
        }""",
        w=random_array(3),
        yes=np.array(True),
        trip=np.array(4),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["If", "If", "Loop"]
    assert notes == ["folded 1 node that depend on no input"]
    for branch in (True, False):
        assert_equal_outputs(model, after, feed={"c": np.array(branch)})


def test_random_numbers_and_quantized_weights_are_not_computed(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y, float[3] z) {
            r = RandomNormal<shape = [3]>()
            n = Mul(r, zero)
            d = DequantizeLinear(q, half)
            y = Add(x, d)
            z = Relu(n)
        }""",
        zero=np.float32(0),
        q=np.array([1, 2, 3], np.int8),
        half=np.float32(0.5),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["RandomNormal", "Mul", "DequantizeLinear", "Add", "Relu"]
    assert notes == []


def test_values_that_are_no_numpy_arrays_are_not_computed(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        """g (float[N,3] x) => (float[N,3] y) {
            s = SequenceConstruct(w, w)
            a = SequenceAt(s, one)
            h = Cast<to = 16>(w)
            b = Cast<to = 1>(h)
            c = Add(a, b)
            y = Add(x, c)
        }""",
        w=random_array(3),
        one=np.array(1),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == op_types(model)
    assert notes == []
    assert_equal_outputs(model, after)


def test_a_constant_output_stays_but_what_leads_to_it_is_computed(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[3] k, float[N,3] y) { a = Neg(w) b = Neg(a) k = Relu(b) y = Add(x, k) }",
        w=random_array(3),
    )
    after, notes = folded(model, fold_constants)
    assert op_types(after) == ["Relu", "Add"]
    assert notes == ["folded 2 nodes that depend on no input"]
    assert_equal_outputs(model, after)


def test_operators_of_other_domains_are_not_computed() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 19, "com.microsoft": 1]>'
        " g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}, float[3] t>"
        " { t = com.microsoft.Gelu(w) y = Add(x, t) }"
    )
    assert list(fold_constants(model)) == []
    assert op_types(model) == ["Gelu", "Add"]


def test_an_identity_between_two_nodes_goes(
    model_of: Callable[..., ir.Model], assert_equal_outputs: Callable[..., None]
) -> None:
    model = model_of("""g (float[N,3] x) => (float[N,3] y) {
        a = Identity(x)
        b = Relu(a)
        c = Identity(b)
        y = Identity(c)
    }""")
    after = model.clone()
    drop_identities(after)
    assert op_types(after) == ["Relu"]
    assert_equal_outputs(model, after)


def test_an_identity_of_nothing_stays() -> None:
    header = '<ir_version: 9, opset_import: ["": 19]>'
    model = ir.from_onnx_text(header + 'g (float[N] x) => (float[N] y) { a = Identity("") y = Relu(x) }')
    drop_identities(model)
    assert op_types(model) == ["Identity", "Relu"]
