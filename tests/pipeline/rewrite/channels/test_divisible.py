"""Tests that what makes a tensor takes the division of its channels, and the outputs stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folded import op_types
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import GraphEditor, map_values
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.channels.divisible import find_divisible
from trtq.pipeline.rewrite.channels.rescale import rescale_tensor

GraphOf = Callable[..., Graph]
Outputs = Callable[..., list[NDArray[np.float32]]]
VECTORS = ("g", "b", "c")
NET = "g (float[N, 5, 16] x) => (float[N, 5, 8] y) {{ {makes} [last] y = MatMul (t, w) }}"
TAKES = {
    "LayerNormalization": "t = LayerNormalization <axis = -1> (x, g, b)",
    "without a bias": "t = LayerNormalization <axis = 2> (x, g)",
    "RMSNormalization": "t = RMSNormalization <axis = -1> (x, g)",
    "decomposed RMS norm": "p = Mul (x, x) m = ReduceMean <keepdims = 1> (p, last) r = Sqrt (m) "
    "n = Div (x, r) t = Mul (g, n)",
    "decomposed layer norm": "n = Mul (x, g) t = Add (n, b)",
    "MatMul": "t = MatMul (x, v)",
    "MatMul, bias, ReLU": "a = MatMul (x, v) s = Add (b, a) t = Relu (s)",
    "MatMul, Sub from a bias": "a = MatMul (x, v) s = Sub (b, a) t = LeakyRelu <alpha = 0.1> (s)",
    "MatMul and PReLU": "a = MatMul (x, v) t = PRelu (a, c)",
    "gate": "a = MatMul (x, u) s = Sigmoid (a) f = MatMul (x, v) t = Mul (s, f)",
    "number": "s = Sigmoid (x) t = Mul (s, two)",
    "divisor": "s = Sigmoid (x) t = Div (s, c)",
    "divided number": "s = Exp (x) t = Div (two, s)",
    "Clip": "a = MatMul (x, v) s = Add (a, b) t = Clip (s, zero, six)",
}
KEEPS = {
    "GELU bends at fixed values": "a = MatMul (x, v) t = Gelu (a)",
    "a square": "a = MatMul (x, v) t = Mul (a, a)",
    "statistics over two axes": "t = LayerNormalization <axis = 1> (x, g2)",
    "two activations added": "a = MatMul (x, v) f = MatMul (x, u) t = Add (a, f)",
    "a computed bias": "a = MatMul (x, v) f = Sigmoid (x) t = Add (a, f)",
    "a quotient of one": "a = MatMul (x, v) t = Div (a, a)",
    "a weight that is read twice": "a = MatMul (x, v) f = MatMul (a, v) t = Relu (f)",
    "a broadcast channel": "m = ReduceMean <keepdims = 1> (x, last) t = Add (m, g)",
    "another reader between": "a = MatMul (x, v) q = Sigmoid (a) s = Relu (a) t = Mul (q, s)",
}


def constants() -> dict[str, Any]:
    weights = {name: random_array(16, 16) + np.float32(index) for index, name in enumerate("uv")}
    vectors = {name: np.abs(random_array(16)) + np.float32(0.5) for name in VECTORS}
    numbers = {"two": np.float32(2), "zero": np.float32(0), "six": np.float32(6), "last": np.array([-1])}
    return {**weights, **vectors, **numbers, "g2": random_array(5, 16), "w": random_array(16, 8)}


def graph_with(graph_of: GraphOf, makes: str) -> Graph:
    used = {name: value for name, value in constants().items() if f" {name}" in makes.replace("(", "( ")}
    return graph_of(NET.format(makes=makes), opset=23, w=random_array(16, 8), **used)


@pytest.mark.parametrize("makes", TAKES.values(), ids=TAKES)
def test_what_makes_a_tensor_is_divided_and_the_outputs_stay(
    graph_of: GraphOf, outputs_of: Outputs, makes: str
) -> None:
    model = graph_with(graph_of, makes).model
    made = model.clone()
    readers, scale = [node for node in made.graph if node.name == "last"], np.geomspace(0.1, 10, 16)
    producer = find_divisible(map_values(made.graph)["t"], readers)
    assert producer is not None
    rescale_tensor(GraphEditor(made), "t", readers, scale, producer=producer)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    if "Clip" not in makes:
        assert op_types(made) == op_types(model)
    (ours,), (theirs,) = outputs_of(made), outputs_of(model)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("makes", KEEPS.values(), ids=KEEPS)
def test_what_cannot_take_a_division_exactly_does_not(graph_of: GraphOf, makes: str) -> None:
    model = graph_with(graph_of, makes).model
    readers = [node for node in model.graph if node.name == "last"]
    assert find_divisible(map_values(model.graph)["t"], readers) is None


def test_a_tensor_with_another_reader_or_that_is_an_output_is_not_divided(graph_of: GraphOf) -> None:
    text = "t = Mul (x, g) [last] y = MatMul (t, v) z = Relu (t)"
    for other in ("z", "t"):
        found = {name: value for name, value in constants().items() if name in "gv"}
        net = f"g (float[N, 16] x) => (float[N, 16] y, float[N, 16] {other}) {{ {text} }}"
        model = graph_of(net, opset=21, **found).model
        readers = [node for node in model.graph if node.name == "last"]
        assert find_divisible(map_values(model.graph)["t"], readers) is None


def test_an_input_is_not_divided(graph_of: GraphOf) -> None:
    model = graph_with(graph_of, "t = Relu (x)").model
    assert find_divisible(model.graph.inputs[0], list(model.graph)) is None


def test_a_layer_that_is_taken_keeps_its_weight(graph_of: GraphOf) -> None:
    model = graph_with(graph_of, "[first] t = MatMul (x, v)").model
    readers = [node for node in model.graph if node.name == "last"]
    assert find_divisible(map_values(model.graph)["t"], readers, {"first"}) is None
    assert find_divisible(map_values(model.graph)["t"], readers) is not None
