"""Tests of what computes with indices in float, of which 16 bits have too few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.pipeline.formats import BF16, FP16, FP32
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.rewrite.indices import find_index_nodes
from trtq.pipeline.rewrite.precision import to_bf16, to_fp16

_HEAT_MAP = """g (float[N,3,H,100] x) => (float[N,3] y, float[N,3] column) {
    [smooth] h = Relu (x) f = Reshape (h, flat) i = ArgMax <axis = 2, keepdims = 0> (f)
    [cast] p = Cast <to = 1> (i) s = Shape <start = 3, end = 4> (x) [width] w = Cast <to = 1> (s)
    [row] r = Div (p, w) [floor] y = Floor (r) [start] b = Mul (y, w) [column] column = Sub (p, b) }"""


@pytest.mark.parametrize("convert", [to_fp16, to_bf16])
def test_the_place_of_a_maximum_is_exact(
    graph_of: Callable[..., Graph],
    outputs_of: Callable[..., list[NDArray[Any]]],
    convert: Callable[[ir.Model], tuple[ir.Model, Any]],
) -> None:
    model = graph_of(_HEAT_MAP, flat=np.array([0, 3, -1])).model
    half, kept = convert(model)
    assert {"cast", "row", "floor", "start", "column"} <= {item.name for item in kept}
    assert "smooth" not in {item.name for item in kept}
    name, largest = ("FP16", 2048) if convert is to_fp16 else ("BF16", 256)
    reason = f"computes with indices, and {name} lacks whole numbers above {largest}"
    assert reason in {item.reason for item in kept}
    emulated = emulate_halves(half)
    assert emulated is not None
    x = np.zeros((2, 3, 100, 100), np.float32)
    places = np.array([[[99, 97], [20, 49], [0, 0]], [[41, 1], [98, 98], [77, 3]]])
    for sample, channel in np.ndindex(2, 3):
        row, column = places[sample, channel]
        x[sample, channel, row, column] = 1
    rows, columns = outputs_of(emulated, feed={"x": x})
    np.testing.assert_array_equal(np.stack([rows, columns], axis=-1), places)


@pytest.mark.parametrize(
    ("text", "size", "names"),
    [
        ("v, i = TopK (x, k) [float] y = Cast <to = 1> (i)", 2049, {"float"}),
        ("v, i = TopK (x, k) [float] y = Cast <to = 1> (i)", 2048, set()),
        ("i = NonZero (x) [float] y = Cast <to = 1> (i)", 8, {"float"}),
        ("i = ArgMax (x) [float] y = Cast <to = 1> (i)", "H", {"float"}),
        ("i = ArgMax (x) [float] f = Cast <to = 1> (i) [offset] y = Add (f, x)", "H", {"float"}),
        ("i = ArgMax (x) z = Cast <to = 6> (i) [float] y = Cast <to = 1> (z)", "H", {"float"}),
        ("i = ArgMax (x) [values] y = Gather (x, i)", "H", set()),
    ],
)
def test_what_computes_with_large_indices_is_found(
    model_of: Callable[..., ir.Model], text: str, size: Any, names: set[str]
) -> None:
    model = model_of(f"g (float[{size},{size}] x) => (float[N,N] y) {{ {text} }}", k=np.array([2]))
    assert {node.name for node in find_index_nodes(model.graph, 2048)} == names


@pytest.mark.parametrize("form", [FP32, FP16, BF16], ids=str)
def test_a_format_has_all_whole_numbers_up_to_the_largest_exact_one(form: FloatFormat) -> None:
    kind = np.dtype(getattr(ml_dtypes, form.array_dtype.name, form.array_dtype))
    numbers = np.array([form.largest_exact - 1, form.largest_exact, form.largest_exact + 1])
    assert (numbers.astype(kind).astype(np.int64) == numbers).tolist() == [True, True, False]
