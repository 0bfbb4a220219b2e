"""Tests of the one way to change a graph: names, constants, insertions, replacements, and linear work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtq.calibrators.ranges import Range, Ranges
from trtq.models.session import open_session, run, save
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.edit import GraphEditor, list_bodies, map_values, widen
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.graph.placement import place
from trtq.pipeline.graph.repair import repair
from trtq.pipeline.judge.switchable import build_switchable
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.weights.apply import quantize_weights
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight

WITH_BODIES = """g (float[N,3] x, bool c) => (float[N,3] y) {
    [add] r = Add(x, w)
    [choice] y = If(c) <
        then_branch = a () => (float[N,3] t) { [inner] t = Relu(r) },
        else_branch = b () => (float[N,3] e) { e = Neg(r) }
    >
}"""
CHAIN = "g (float[N,3] x) => (float[N,3] y) { [a] h = Relu(x) [b] y = Neg(h) }"


def _array(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def with_bodies(model_of: Callable[..., ir.Model]) -> ir.Model:
    return model_of(WITH_BODIES, w=_array(3))


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph.all_nodes() if node.name == name)


def _answer(model: ir.Model, x: NDArray[Any]) -> NDArray[Any]:
    (found,) = run(open_session(model, optimize=False), [str(model.graph.outputs[0].name)], {"x": x})
    return np.asarray(found)


def test_a_name_is_unique_among_all_values(with_bodies: ir.Model) -> None:
    edit = GraphEditor(with_bodies)
    names = [edit.name_value(name) for name in ("x", "w", "r", "t", "new", "new", "x", "inner")]
    assert names == ["x_1", "w_1", "r_1", "t_1", "new", "new_1", "x_2", "inner"]


def test_a_name_is_unique_among_all_nodes(with_bodies: ir.Model) -> None:
    edit = GraphEditor(with_bodies)
    names = [edit.name_node(name) for name in ("add", "inner", "choice", "new", "new", "x")]
    assert names == ["add_1", "inner_1", "choice_1", "new", "new_1", "x"]


def test_a_name_that_a_number_would_give_is_passed_over(with_bodies: ir.Model) -> None:
    edit = GraphEditor(with_bodies)
    assert [edit.name_value(name) for name in ("x_1", "x", "x")] == ["x_1", "x_2", "x_3"]


def test_constants_have_the_dtype_and_shape_of_what_they_hold(with_bodies: ir.Model) -> None:
    edit = GraphEditor(with_bodies)
    values = [
        edit.add_constant("w", np.zeros((), np.int8)),
        edit.add_constant("w", ir.tensor(_array(2, 3))),
        edit.add_constant("w", ir.LazyTensor(lambda: ir.tensor(_array(4)), ir.DataType.FLOAT, ir.Shape([4]))),
    ]
    assert [value.name for value in values] == ["w_1", "w_2", "w_3"]
    assert [value.dtype for value in values] == [ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.FLOAT]
    assert [value.shape.rank() for value in values if value.shape is not None] == [0, 2, 1]
    assert [with_bodies.graph.initializers[str(value.name)] for value in values] == values


def test_a_node_stands_behind_what_makes_its_first_input(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CHAIN)
    edit, values = GraphEditor(model), map_values(model.graph)
    behind = edit.insert("Abs", [values["h"]], like=values["h"], output="h", name="a")
    front = edit.insert("Abs", [values["x"]], like=values["x"], output="front")
    last = _node(model, "b")
    before = edit.insert(
        "Cast",
        [values["x"]],
        {"to": 10},
        like=values["x"],
        dtype=ir.DataType.FLOAT16,
        output="c",
        before=last,
    )
    assert [node.name for node in model.graph] == ["front_Abs", "a", "a_1", "c_Cast", "b"]
    assert [value.name for value in (behind, front, before)] == ["h_1", "front", "c"]
    assert (before.dtype, before.shape) == (ir.DataType.FLOAT16, values["x"].shape)


def test_a_node_comes_into_an_empty_graph() -> None:
    value = ir.val("x", ir.DataType.FLOAT, [2])
    model = ir.Model(ir.Graph([value], [], nodes=[], opset_imports={"": 17}), ir_version=9)
    GraphEditor(model).insert("Relu", [value], like=value, output="y")
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_a_node_comes_into_a_body(with_bodies: ir.Model) -> None:
    edit, inner = GraphEditor(with_bodies), _node(with_bodies, "inner")
    source = map_values(with_bodies.graph)["r"]
    made = edit.insert("Abs", [source], like=source, output="t", before=inner)
    inner.replace_input_with(0, made)
    then, other = list_bodies(_node(with_bodies, "choice"))
    assert [node.op_type for node in then] == ["Abs", "Relu"]
    assert len(other) == 1
    x = _array(2, 3)
    feed = {"x": x, "c": np.array(True)}
    (found,) = run(open_session(with_bodies, optimize=False), ["y"], feed)
    np.testing.assert_array_equal(found, np.abs(x + _array(3)))


def test_an_output_that_is_replaced_keeps_its_name_and_shape(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CHAIN)
    edit, old = GraphEditor(model), model.graph.outputs[0]
    new = edit.insert("Exp", [old], like=ir.val(None, ir.DataType.FLOAT), output="z")
    edit.replace(old, new, rename="y_before")
    assert (model.graph.outputs[0], new.name, new.shape, old.name) == (new, "y", old.shape, "y_before")
    x = _array(2, 3)
    np.testing.assert_allclose(_answer(model, x), np.exp(-np.maximum(x, 0)), rtol=1e-6)


def test_what_was_an_output_is_called_otherwise_and_can_be_written(
    model_of: Callable[..., ir.Model], tmp_path: Path
) -> None:
    model = model_of(CHAIN)
    edit, old = GraphEditor(model), model.graph.outputs[0]
    edit.replace(old, edit.insert("Exp", [old], like=old, output="y_exp"))
    assert ([value.name for value in model.graph.outputs], old.name) == (["y"], "y_1")
    ir.save(model, tmp_path / "m.onnx")


def test_what_is_replaced_is_replaced_in_bodies_too(with_bodies: ir.Model) -> None:
    edit, old = GraphEditor(with_bodies), map_values(with_bodies.graph)["r"]
    new = edit.insert("Abs", [old], like=old, output="r_abs")
    edit.replace(old, new)
    assert [use.node.op_type for use in old.uses()] == ["Abs"]
    assert sorted(use.node.op_type for use in new.uses()) == ["Neg", "Relu"]
    assert (old.name, new.name) == ("r", "r_abs")


def test_a_name_goes_on_where_the_old_value_goes_away(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(CHAIN)
    edit, relu = GraphEditor(model), _node(model, "a")
    new = edit.insert("Abs", [relu.inputs[0]], like=relu.outputs[0], output="h", before=relu)
    edit.replace(relu.outputs[0], new, rename="")
    edit.remove(relu)
    assert new.name == "h"
    assert [node.op_type for node in model.graph] == ["Abs", "Neg"]


def test_what_nothing_reads_is_dropped(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] y) { u = Add(x, w) v = Neg(u) y = Relu(x) }", w=_array(3)
    )
    GraphEditor(model).drop_unused()
    assert [node.op_type for node in model.graph] == ["Relu"]
    assert not model.graph.initializers


def _write(path: Path, names: list[str], count: int) -> Path:
    """Writes a chain of MatMul, Relu and Add of the same constant with these names of nodes."""
    nodes, weights, source = [], [numpy_helper.from_array(_array(64), "b")], "x"
    for index in range(count):
        weights.append(numpy_helper.from_array(_array(64, 64) / 8, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
        nodes.append(helper.make_node("Add", [f"r{index}", "b"], [f"a{index}"]))
        source = f"a{index}"
    for node, name in zip(nodes, names, strict=False):
        node.name = name
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in ("x", source)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


def _ranges(tensors: tuple[str, ...]) -> Ranges:
    found = dict.fromkeys(tensors, Range(4.0, -4.0, 4.0))
    return Ranges(tensors=found, method="minmax", model_sha256="", data="none", num_samples=1)


def _rewrite(model: ir.Model, folder: Path) -> dict[str, ir.Model]:
    """Returns what each stage that changes graphs makes of a model."""
    placement = place(model)
    ranges, scheme = _ranges(placement.activations), WeightScheme("int8")
    int8, chosen = quantize(model, placement, ranges), group_by_weight(model, choose_weights(model, scheme))
    unsigned = quantize(model, placement, replace(ranges, activations="asymmetric"))
    save(unsigned, folder / "unsigned.onnx")
    return {
        "quantize": int8,
        "to_fp16": to_fp16(model)[0],
        "to_fp16 of Q/DQ": to_fp16(int8)[0],
        "quantize_weights": quantize_weights(model, model, chosen),
        "build_switchable": build_switchable(model, placement, ranges),
        "repair": repair(load_as_it_is(folder / "unsigned.onnx"), requantize=True).model,
    }


NAMES = {
    "taken": ["x_QuantizeLinear", "x_DequantizeLinear", "w0_dequantized_DequantizeLinear"],
    "doubled": ["same", "same", "same", "same"],
    "empty": ["", "", "", ""],
    "those of values": ["x", "m0_fp16", "w0_fp16", "x_quantized"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_stage_gives_every_node_a_name_of_its_own(tmp_path: Path, kind: str) -> None:
    model = load(_write(tmp_path / "m.onnx", NAMES[kind], 2), min_opset=19).model
    x = _array(4, 64)
    wanted = _answer(model, x)
    for stage, made in _rewrite(model, tmp_path).items():
        for graph in (made.graph, *made.graph.subgraphs()):
            names = [node.name for node in graph]
            assert all(names), stage
            assert len(set(names)) == len(names), stage
        switches = {str(value.name): np.array(True) for value in made.graph.inputs[1:]}
        name = str(made.graph.outputs[0].name)
        (found,) = run(open_session(made, optimize=False), [name], {"x": x, **switches})
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max(), stage


class _Counted:
    """Counts how often a method of a class is called."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.calls, real = 0, getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            return real(*given, **named)

        patch.setattr(owner, name, call)


def test_no_stage_looks_through_the_graph_for_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the graph, its names are read and its nodes are walked as often."""
    walks = []
    for count in (4, 16):
        model = load(_write(tmp_path / "m.onnx", [], count), min_opset=19).model
        with monkeypatch.context() as patch:
            counted = [
                _Counted(patch, ir.Graph, name)
                for name in ("__iter__", "all_nodes", "subgraphs", "__getitem__")
            ]
            reads = _Counted(patch, GraphEditor, "__init__")
            _rewrite(model, tmp_path)
        walks.append((reads.calls, [item.calls for item in counted[:3]]))
    assert walks[0] == walks[1]


@pytest.mark.parametrize("narrow", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_widening_leaves_no_narrow_type(narrow: ir.DataType) -> None:
    kind = narrow.name.lower()
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": 21]>
        g ({kind}[2,2] x, bool c) => ({kind}[2,2] y) {{
            s = Shape(x)
            f = ConstantOfShape<value = float[1] {{1.5}}>(s)
            e = EyeLike<dtype = {int(narrow)}>(x)
            r = RandomUniform<dtype = {int(narrow)}, shape = [2, 2], low = 2.0, high = 2.0>()
            k = Cast<to = {int(narrow)}>(c)
            a = Add(x, f)
            b = Add(a, e)
            d = Mul(b, r)
            y = If(c) <
                then_branch = t () => ({kind}[2,2] u) {{
                    v = ConstantOfShape<value = float[1] {{-3.0}}>(s)
                    u = Add(d, v)
                }},
                else_branch = o () => ({kind}[2,2] w) {{ w = Mul(d, k) }}
            >
        }}""")
    for node in model.graph.all_nodes():
        if node.op_type == "ConstantOfShape":
            value = ir.tensor(node.attributes["value"].as_tensor().numpy().astype(narrow.numpy()))
            node.attributes["value"] = ir.AttrTensor("value", value)
    widen(model, (narrow,))
    infer_shapes(model)
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    assert narrow not in {value.dtype for value in values}
    x = np.array([[1, 2], [3, 4]], np.float32)
    (y,) = run(open_session(model, optimize=False), ["y"], {"x": x, "c": np.array(True)})
    np.testing.assert_array_equal(y, (x + 1.5 + np.eye(2)) * 2 - 3)
