"""Peaks that were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from trtq.errors import ModelError
from trtq.pipeline.graph.liveness import find_peak_memory, fix_shapes

ModelOf = Callable[..., ir.Model]


def test_a_chain_needs_its_input_and_two_neighbours(model_of: ModelOf) -> None:
    model = model_of("""g (float[1,100] x) => (float[1,10] y) {
      [one] a = Concat <axis = 1> (x, x)
      [two] b = Concat <axis = 1> (a, a)
      [three] c = ReduceMax <keepdims = 1> (b)
      [four] y = Expand (c, size)
    }""", size=np.array([1, 10]))  # fmt: skip
    peak = find_peak_memory(model, 4)
    assert (peak.nbytes, peak.node, peak.unknown) == (4 * (100 + 200 + 400), "two", 0)
    assert find_peak_memory(model, 2).nbytes == 2 * 700


def test_views_take_nothing_and_pointwise_operators_write_over_their_input(model_of: ModelOf) -> None:
    model = model_of("""g (float[4,100] x) => (float[1] y) {
      [a] h = Concat <axis = 1> (x, x)
      [b] r = Relu (h)
      [c] f = Reshape (r, flat)
      [d] s = Sigmoid (f)
      [e] y = ReduceMax <keepdims = 1> (s)
    }""", flat=np.array([800]))  # fmt: skip
    assert find_peak_memory(model, 4).nbytes == 4 * (400 + 800 + 1)


def test_a_tensor_that_is_read_later_is_not_written_over(model_of: ModelOf) -> None:
    model = model_of("""g (float[100] x) => (float[100] y) {
      [a] h = Concat <axis = 0> (x)
      [b] r = Relu (h)
      [c] y = Add (r, h)
    }""")  # fmt: skip
    assert find_peak_memory(model, 4).nbytes == 4 * 300  # at b: x, h and r; at c: y takes the place of r


def test_a_view_keeps_its_source_alive(model_of: ModelOf) -> None:
    model = model_of("""g (float[2,50] x) => (float[100] y, float[200] z) {
      [a] h = Concat <axis = 0> (x)
      [b] v = Reshape (h, flat)
      [c] z = Concat <axis = 0> (v, v)
      [d] y = Concat <axis = 0> (v)
    }""", flat=np.array([100]))  # fmt: skip
    assert find_peak_memory(model, 4).nbytes == 4 * (100 + 100 + 200 + 100)


def test_whole_numbers_keep_their_own_size_and_bools_are_a_byte(model_of: ModelOf) -> None:
    model = model_of("g (int64[10] x, int64[10] z) => (bool[10] y) { y = Less (x, z) }")
    assert find_peak_memory(model, 2).nbytes == 2 * 80 + 10


def test_tensors_read_in_a_body_live_until_its_node(model_of: ModelOf) -> None:
    model = model_of("""g (float[100] x, bool c) => (float[100] y) {
      [a] h = Concat <axis = 0> (x)
      [b] k = Concat <axis = 0> (x)
      [c] m = ReduceMax <keepdims = 1> (k)
      [d] y = If (c) <
        then_branch = t () => (float[100] p) { p = Add (h, m) },
        else_branch = e () => (float[100] q) { q = Sub (h, m) }>
    }""")  # fmt: skip
    assert find_peak_memory(model, 4).nbytes == 1 + 4 * (100 + 100 + 100 + 1)


def test_open_shapes_are_told_by_those_of_the_inputs(model_of: ModelOf) -> None:
    model = model_of("""g (float[N,S,8] x) => (float[A,B,C] y) {
      [a] s = Shape (x)
      [b] n = Gather (s, first)
      [c] size = Concat <axis = 0> (n, rest)
      [d] y = Reshape (x, size)
    }""", first=np.array([0]), rest=np.array([4, -1]))  # fmt: skip
    assert find_peak_memory(model, 4).unknown > 0
    fixed = fix_shapes(model, {"x": (3, 6, 8)})
    assert find_peak_memory(fixed, 4).unknown == 0
    assert fixed.graph.outputs[0].shape == ir.Shape([3, 4, 12])
    assert len(model.graph) == 4  # the source is as it was


def test_shapes_that_contradict_the_model_are_refused(model_of: ModelOf) -> None:
    model = model_of(
        "g (float[N,8] x) => (float[N,4] y) { y = MatMul (x, w) }", w=np.zeros((8, 4), np.float32)
    )
    with pytest.raises(ModelError, match="shapes of the model do not fit together"):
        fix_shapes(model, {"x": (3, 9)})
