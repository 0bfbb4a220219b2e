"""Tests of naming the nodes of PyTorch's exporter for their modules."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from trtq.models.modules import name_after_modules


def _node(op_type: str, *inputs: ir.Value, name: str, **told: str) -> ir.Node:
    keys = {"scopes": "pkg.torch.onnx.name_scopes", "namespace": "namespace"}
    metadata = {keys[key]: value for key, value in told.items()}
    return ir.node(op_type, inputs, name=name, metadata_props=metadata)


def _named(*nodes: ir.Node, weights: tuple[ir.Value, ...] = ()) -> list[Any]:
    x = ir.val("x", ir.DataType.FLOAT, [1])
    graph = ir.Graph([x], [], nodes=nodes, initializers=weights)
    name_after_modules(graph)
    return [node.name for node in nodes]


def _weight(name: str) -> ir.Value:
    return ir.val(name, const_value=ir.tensor([0.0], name=name))


def test_a_node_is_named_for_the_module_that_called_it() -> None:
    scopes = "['', 'layers.0', 'layers.0.fc', 'linear_3']"
    node = _node("MatMul", name="node_linear_3", scopes=scopes)
    assert _named(node) == ["layers.0.fc/MatMul"]
    assert not node.metadata_props  # so that the name stays when the file is written and read again


def test_the_namespace_tells_it_where_there_are_no_scopes() -> None:
    space = ": __main__.Net/lm_head: torch.nn.modules.linear.Linear/linear_28: aten.linear.default"
    assert _named(_node("MatMul", name="node_linear_28", namespace=space)) == ["lm_head/MatMul"]


def test_what_no_module_called_is_named_for_its_type_and_names_stay_unique() -> None:
    nodes = [_node("Add", name=f"node_add_{number}", scopes="['', 'add']") for number in range(3)]
    other = ir.node("Mul", [], name="Add_1")
    assert _named(*nodes, other) == ["Add", "Add_2", "Add_3", "Add_1"]


def test_a_folded_batch_norm_leaves_the_name_of_the_convolution() -> None:
    weight = _weight("conv.0.weight")
    scopes = "['', 'conv', 'conv.1', '_native_batch_norm_legit_no_training']"
    assert _named(_node("Conv", weight, name="n", scopes=scopes), weights=(weight,)) == ["conv.0/Conv"]
    alone = _node("BatchNormalization", _weight("elsewhere.weight"), name="n", scopes=scopes)
    assert _named(alone) == ["conv.1/BatchNormalization"]


@pytest.mark.parametrize(
    ("scopes", "weight", "name"),
    [
        ("['', 'attn', 'linear']", "attn.out_proj.weight", "attn.out_proj/MatMul"),  # called by its parent
        ("['', 'linear']", "head.weight", "head/MatMul"),
        ("['', 'emb', 'linear']", "lm_head.weight", "emb/MatMul"),  # a tied weight has another's name
        ("['', 'emb', 'linear']", "embedding.0.weight", "emb/MatMul"),
    ],
)
def test_a_weight_inside_the_module_tells_it_more_exactly(scopes: str, weight: str, name: str) -> None:
    value = _weight(weight)
    assert _named(_node("MatMul", value, name="n", scopes=scopes), weights=(value,)) == [name]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"scopes": "__import__('os').getcwd()"},
        {"scopes": "["},
        {"scopes": "[" * 9999},
        {"scopes": "{'a': 1}"},
        {"scopes": "[1, 2]"},
        {"scopes": "[]"},
        {"namespace": "some words"},
    ],
)
def test_what_is_no_list_of_modules_changes_nothing(told: dict[str, str]) -> None:
    assert _named(_node("MatMul", name="theirs", **told)) == ["theirs"]
