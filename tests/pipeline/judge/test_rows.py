"""Tests of the tensors that a softmax gets, of their rows, and of the ranges that these give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.cross_entropy import CrossEntropy
from trtq.calibrators.ranges import Range, Ranges
from trtq.pipeline.formats import INT8
from trtq.pipeline.judge.rows import (
    Logits,
    add_row_variants,
    find_logits,
    measure_row_amaxes,
    sample_rows,
    with_row_amaxes,
)

_ATTENTION = """
net (float[N, 4, 8] x, float[N, 1, 4] m) => (float[N, 4, 4] y, float[N, 4, 8] logits) {
  k = Transpose <perm = [0, 2, 1]> (x)
  a = MatMul (x, k)
  s = Div (a, eight)
  t = Identity (s)
  b = Add (t, m)
  y = Softmax <axis = -1> (b)
  w = Mul (half, x)
  logits = Cast <to = 1> (w)
}"""
ModelOf = Callable[..., ir.Model]
_CONSTANTS = {"eight": np.array(8, np.float32), "half": np.array([0.5], np.float32)}


def _every(model: ir.Model) -> list[str]:
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return [str(value.name) for value in values]


def _batches(**arrays: NDArray[np.float32]) -> Batches:
    """Returns feeds of two samples each."""
    size = len(next(iter(arrays.values())))

    def read() -> Iterator[Feed]:
        for start in range(0, size, 2):
            yield Feed({name: array[start : start + 2] for name, array in arrays.items()}, "made up", 2)

    return Batches(read, "made up", size)


def test_what_a_softmax_gets_is_found_back_to_what_a_mask_is_added_to(model_of: ModelOf) -> None:
    model = model_of(_ATTENTION, **_CONSTANTS)
    assert find_logits(model, _every(model)) == {
        "b": Logits("b", -1),
        "logits": Logits("logits", -1),
        "w": Logits("logits", -1),
        "x": Logits("logits", -1, 0.5),
    }
    assert find_logits(model, ["a", "y"]) == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("b = Div (x, eight) y = Softmax <axis = 1> (b)", {"b": Logits("b", 1), "x": Logits("b", 1, 0.125)}),
        ("b = Mul (x, eight) y = LogSoftmax (b)", {"b": Logits("b", -1), "x": Logits("b", -1, 8.0)}),
        ("b = Mul (x, many) y = Softmax (b)", {"b": Logits("b", -1)}),  # no multiple of x
        ("b = Div (eight, x) y = Softmax (b)", {"b": Logits("b", -1)}),
        ("b = Mul (x, minus) y = Softmax (b)", {"b": Logits("b", -1)}),
        ("b = Reshape (x, shape) y = Softmax (b)", {"b": Logits("b", -1), "x": Logits("b", -1)}),
        ("b = Relu (x) y = Softmax (b)", {"b": Logits("b", -1)}),
        ("b = Mul (x, eight) y = Relu (b)", {}),
        ("y = Softmax (ones)", {}),
    ],
)  # fmt: skip
def test_multiples_of_what_a_softmax_gets_are_found(
    model_of: ModelOf, body: str, found: dict[str, Logits]
) -> None:
    constants = {"eight": 8.0, "many": [1.0, 2, 3, 4], "minus": -1.0, "ones": [[1.0] * 4]}
    arrays = {name: np.array(value, np.float32) for name, value in constants.items()}
    text = f"net (float[N, 4] x) => (float[N, 4] y) {{ {body} }}"
    model = model_of(text, **arrays, shape=np.array([-1, 4], np.int64))
    assert find_logits(model, _every(model)) == found


@pytest.mark.parametrize("op_type", ["Softmax", "Sigmoid", "LogSoftmax"])
def test_an_output_called_logits_that_is_normalized_is_none(model_of: ModelOf, op_type: str) -> None:
    body = f"p = {op_type} (x) logits = Identity (p) also_logits = {op_type} (x)"
    model = model_of(f"net (float[N, 4] x) => (float[N, 4] logits, float[N, 4] also_logits) {{ {body} }}")
    assert not {"logits", "also_logits", "p"} & find_logits(model, _every(model)).keys()


def test_rows_lie_along_the_axis_of_the_softmax(model_of: ModelOf) -> None:
    model = model_of("net (float[N, 3, 2] x) => (float[N, 3, 2] y) { y = Softmax <axis = 1> (x) }")
    array = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    rows = sample_rows(model, find_logits(model, ["x"]), _batches(x=array))["x"]
    assert sorted(rows.tolist()) == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def test_an_old_softmax_goes_over_all_axes_from_its_own_on(model_of: ModelOf) -> None:
    text = "net (float[N, 3, 2] x) => (float[N, 3, 2] y) { y = Softmax (x) }"
    model = model_of(text, opset=11, ir_version=6)
    rows = sample_rows(model, find_logits(model, ["x"]), _batches(x=np.ones((2, 3, 2), np.float32)))["x"]
    assert rows.shape == (2, 6)


def test_rows_are_of_the_even_feeds_and_bounded(model_of: ModelOf) -> None:
    model = model_of("net (float[N, 900, 4] x) => (float[N, 900, 4] y) { b = Neg (x) y = Softmax (b) }")
    feeds = np.arange(24, dtype=np.float32).repeat(3600).reshape(24, 900, 4)
    rows = sample_rows(model, find_logits(model, ["b"]), _batches(x=feeds))["b"]
    assert rows.shape == (1024, 4)
    assert set(np.unique(-rows)) == {0, 1, 4, 5, 8, 9, 12, 13}


def test_a_multiple_gets_the_range_of_what_the_softmax_gets_divided(model_of: ModelOf) -> None:
    model = model_of(_ATTENTION, **_CONSTANTS)
    rng = np.random.default_rng(0)
    data = _batches(
        x=rng.standard_normal((8, 4, 8)).astype(np.float32),
        m=np.where(rng.random((8, 1, 4)) < 0.3, np.float32(-3e38), np.float32(0)),
    )
    amaxes = measure_row_amaxes(model, dict.fromkeys(["x", "b"], INT8), data)
    assert 0 < amaxes["b"] < 60
    rows = sample_rows(model, find_logits(model, ["x"]), data)["logits"]
    assert amaxes["x"] == pytest.approx(CrossEntropy().amax(rows) / 0.5)
    assert measure_row_amaxes(model, dict.fromkeys(["a"], INT8), data) == {}


def test_a_dead_tensor_keeps_its_range(model_of: ModelOf) -> None:
    model = model_of("net (float[N, 4] x) => (float[N, 4] y) { y = Softmax (x) }")
    assert measure_row_amaxes(model, {"x": INT8}, _batches(x=np.zeros((4, 4), np.float32))) == {}


def test_the_variants_of_ranges_say_so() -> None:
    ranges = Ranges({"a": Range(9, -9, 9), "b": Range(5, -5, 5)}, "entropy(n=1)", "0", "none", 1)
    made = with_row_amaxes(ranges, {"a": 3.0, "c": 1.0})
    assert made.tensors == {"a": Range(3, -9, 9), "b": Range(5, -5, 5)}
    assert made.method == "entropy(n=1) + cross-entropy"
    assert add_row_variants([ranges], {"a": 3.0}, only=False) == [ranges, made]
    assert add_row_variants([ranges], {"a": 3.0}, only=True) == [made]
    assert add_row_variants([ranges], {}, only=True) == [ranges]
