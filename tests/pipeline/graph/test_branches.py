"""Tests of putting the branch of an If with a constant condition into the graph, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folded import folded, op_types
from made_up import random_array

from trtq.pipeline.graph.branches import inline_branches
from trtq.pipeline.graph.load import Graph, load

ModelOf = Callable[..., ir.Model]
Check = Callable[..., None]

_TWO = """g (float[N,4] x, bool d) => (float[N,4] y) {
    h = If(c) <
        then_branch = a () => (float[N,4] t) { [mul] m = MatMul(x, w) [relu] t = Relu(m) },
        else_branch = b () => (float[N,4] e) { m2 = Neg(x) e = Exp(m2) }
    >
    y = If(d) <
        then_branch = a2 () => (float[N,4] t2) { t2 = Relu(h) },
        else_branch = b2 () => (float[N,4] e2) { e2 = Neg(h) }
    >
}"""


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_branch_that_is_taken_stands_in_the_graph(
    model_of: ModelOf, assert_equal_outputs: Check, taken: bool, shape: tuple[int, ...]
) -> None:
    model = model_of(_TWO, c=np.full(shape, taken), w=random_array(4, 4))
    after, notes = folded(model, inline_branches)
    assert op_types(after) == [*(["MatMul", "Relu"] if taken else ["Neg", "Exp"]), "If"]
    assert not taken or [str(node.name) for node in after.graph][:2] == ["mul", "relu"]
    assert notes == ["inlined the branch of 1 If node with a constant condition"]
    for answer in (True, False):
        assert_equal_outputs(model, after, feed={"d": np.array(answer)})


def test_a_condition_that_is_not_known_stays(model_of: ModelOf) -> None:
    model = model_of(_TWO.replace("If(c)", "If(d)").replace("MatMul(x, w)", "Abs(x)"))
    after, notes = folded(model, inline_branches)
    assert (op_types(after), notes) == (["If", "If"], [])


@pytest.mark.parametrize(
    ("branch", "wanted"),
    [
        ("t = Relu(x)", ["Relu"]),
        ("t = Identity(x)", ["Identity"]),
        ("t = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()", ["Constant"]),
        ("t = If(c) <then_branch = p () => (float[N,4] q) { q = Abs(x) }, "
         "else_branch = r () => (float[N,4] s) { s = Neg(x) }>", ["Abs"]),
    ],
)  # fmt: skip
def test_an_output_of_the_model_keeps_its_name(
    model_of: ModelOf, assert_equal_outputs: Check, branch: str, wanted: list[str]
) -> None:
    model = model_of(
        f"""g (float[N,4] x) => (y) {{
            y = If(c) <
                then_branch = a () => (t) {{ {branch} }},
                else_branch = b () => (e) {{ e = Neg(x) }}
            >
        }}""",
        c=np.array(True),
    )
    before = model.clone()
    while list(inline_branches(model)):
        pass
    assert op_types(model) == wanted
    assert_equal_outputs(before, model)


def test_names_that_both_branches_have_are_parted(model_of: ModelOf, assert_equal_outputs: Check) -> None:
    text = """If({}) <
        then_branch = a () => (float[N,4] t) {{ v = Mul(x, {}) t = Relu(v) }},
        else_branch = b () => (float[N,4] t) {{ v = Neg(x) t = Exp(v) }}
    >"""
    model = model_of(
        f"g (float[N,4] x) => (float[N,4] y) {{ h = {text.format('c', 'k')} i = {text.format('d', 'h')} "
        "y = Add(h, i) }",
        c=np.array(True),
        d=np.array(True),
        k=random_array(4),
    )
    after, _ = folded(model, inline_branches)
    assert op_types(after) == ["Mul", "Relu", "Mul", "Relu", "Add"]
    assert_equal_outputs(model, after)


def test_weights_of_a_branch_are_those_of_the_graph(tmp_path: Path, assert_equal_outputs: Check) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> {_TWO}')
    weight = onnx.numpy_helper.from_array(random_array(4, 4), "w")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    for body in (proto.graph.node[0].attribute[0].g, proto.graph.node[0].attribute[1].g):
        body.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=19)
    assert len(graph.model.graph.initializers) == 1
    assert_equal_outputs(tmp_path / "m.onnx", graph.model, feed={"d": np.array(True)})


def test_a_size_that_is_known_decides_a_branch(
    graph_of: Callable[..., Graph], assert_equal_outputs: Check, model_of: ModelOf
) -> None:
    """PyTorch's first exporter writes `squeeze` so."""
    text = """g (float[N,1,4] x) => (float[N,4] z) {
        s = Shape(x)
        n = Gather(s, one)
        c = Equal(n, one)
        y = If(c) <
            then_branch = a () => (float[N,4] t) { t = Squeeze(x, axes) },
            else_branch = b () => (float[N,1,4] e) { e = Identity(x) }
        >
        [fc] z = MatMul(y, w)
    }"""
    weights: dict[str, Any] = {"one": np.array(1), "axes": np.array([1]), "w": random_array(4, 4)}
    graph = graph_of(text, **weights)
    assert op_types(graph.model) == ["Squeeze", "MatMul"]
    assert graph.notes[-1] == "inlined the branch of 1 If node with a constant condition"
    assert [str(item) for item in graph.outputs] == ["z float32 (N, 4)"]
    assert_equal_outputs(model_of(text, **weights), graph.model)


def test_only_sizes_that_are_known_are_picked(
    model_of: ModelOf, graph_of: Callable[..., Graph], assert_equal_outputs: Check
) -> None:
    text = """g (float[N,3,5] x) => (int64[2] a, int64 b, int64 c, int64[1] d) {
        s = Shape(x)
        t = Shape<start = -1>(x)
        a = Gather(s, back)
        open = Gather(s, zero)
        size = Gather(s, minus)
        b = Neg(open)
        c = Neg(size)
        other = Gather(pairs, t)
        d = Neg(other)
    }"""
    numbers = {"back": [2, 1], "zero": 0, "minus": -2, "pairs": [7, 8, 9, 10, 11, 12]}
    weights = {name: np.array(value) for name, value in numbers.items()}
    graph = graph_of(text, **weights)
    assert op_types(graph.model).count("Gather") == 2  # the open size, and an output of the model
    assert_equal_outputs(model_of(text, **weights), graph.model)
