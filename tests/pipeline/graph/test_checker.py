"""ONNX's checker sees all of a model but its large weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trtq.pipeline.graph.checker import copy_for_checker

_LARGE, _SMALL = np.ones((100, 100), np.float32), np.ones((100, 1), np.float32)


def _model() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1], producer_name: "me">
        g (float[N,100] x, bool c) => (float[N,100] y) {
            a = MatMul (x, w) b = Add (a, k)
            y = If (c) <then_branch = t () => (float[N,100] d) { d = MatMul (b, v) },
                        else_branch = e () => (float[N,100] f) { f = own.twice (b) }>
        }
        <domain: "own", opset_import: ["": 17]> twice (p) => (q) { q = Add (p, p) }""")
    body = model.graph.node[2].attribute[0].g
    for graph, name, value in ((model.graph, "w", _LARGE), (model.graph, "s", _SMALL), (body, "v", _LARGE)):
        graph.initializer.append(numpy_helper.from_array(value, name))
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(_LARGE, "k"))
    model.graph.node.insert(0, constant)
    return model


def test_large_weights_are_left_out_wherever_they_are() -> None:
    model = _model()
    onnx.checker.check_model(model)
    copy = copy_for_checker(model)
    onnx.checker.check_model(copy)
    assert model.ByteSize() > 3 * _LARGE.nbytes
    assert copy.ByteSize() < 2 * _SMALL.nbytes + 1000
    for graph in (model.graph, copy.graph):
        assert [item.name for item in graph.initializer] == ["w", "s"]
        assert [node.op_type for node in graph.node] == ["Constant", "MatMul", "Add", "If"]
    np.testing.assert_array_equal(numpy_helper.to_array(copy.graph.initializer[1]), _SMALL)


def test_all_else_is_as_it_is() -> None:
    model = _model()
    for graph in (model.graph, model.graph.node[3].attribute[0].g):
        del graph.initializer[:]
    model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(_SMALL, "k"))
    copy = copy_for_checker(model)
    assert copy.opset_import.pop().domain == "unchecked"
    assert copy == model


def test_a_large_weight_in_two_forms_is_still_refused() -> None:
    model = _model()
    model.graph.initializer[0].float_data.append(1.0)
    with pytest.raises(onnx.checker.ValidationError, match="one and only one value field"):
        onnx.checker.check_model(copy_for_checker(model))
