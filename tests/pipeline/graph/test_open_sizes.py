"""Sizes that values decide are told from those that the shapes of the inputs decide."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from trtq.pipeline.graph.open_sizes import find_open_sizes


@pytest.mark.parametrize(
    ("body", "is_open"),
    [
        ("y = NonZero (x)", True),
        ("z = NonZero (x) s = Shape (z) y = ConstantOfShape (s)", True),  # by way of the size of another
        ("i = ArgMax <keepdims = 1> (x) e = Reshape <allowzero = 0> (i, ones) y = Slice (x, e, four)", True),
        ("y = If (yes) <then_branch = a () => (float[2, 4] p) { p = Relu (x) },"
         " else_branch = b () => (float[2, 4] q) { q = Tanh (x) }>", True),
        ("s = Shape (x) y = Expand (x, s)", False),
        ("s = Shape (x) n = Slice (s, ones, four) r = Reshape <allowzero = 0> (n, flat)"
         " y = Tile (x, r)", False),
        ("s = NonZero (ones) r = Reshape <allowzero = 0> (s, flat) y = Expand (x, r)", False),
        ("s = Size (x) y = Range (zero, s, one)", False),
        ("n = ReduceMax <keepdims = 0> (x) s = Cast <to = 7> (n) y = Range (zero, s, one)", True),
    ],
)  # fmt: skip
def test_values_or_shapes_decide_a_size(body: str, is_open: bool) -> None:
    constants = "int64[1] ones = {1}, int64[1] four = {4}, int64[1] flat = {-1}, int64 zero = {0}"
    text = f"net (float[2, 4] x, bool yes) => (float y) <{constants}, int64 one = {{1}}> {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> {text}')
    model = ir.from_proto(proto)
    assert find_open_sizes(model) >= {*model.graph.outputs} if is_open else not find_open_sizes(model)
