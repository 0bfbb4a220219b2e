"""A model that is written with other tensors in place of its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.models.packed import pack
from trtq.models.skeleton import write_skeleton
from trtq.pipeline.graph.opset import infer_shapes

HEAD = """<ir_version: 9, opset_import: ["": 19]> net (float[N,64] x, bool is_on) => (float[N,64] y)"""
TEXT = """<float w = {0}, float b = {0}> {
    h = MatMul (x, w)
    y = If (is_on) <
        then_branch = yes () => (float[N,64] one) { one = Add (h, b) },
        else_branch = no () => (float[N,64] two) { two = Relu (h) }
    >
}"""


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(HEAD + TEXT)
    del proto.graph.initializer[:]
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def read_weight(model: ir.Model) -> Any:
    held = model.graph.initializers["w"].const_value
    assert held is not None
    return held.numpy()


def test_only_the_weights_are_others(model: ir.Model) -> None:
    before = ir.to_proto(model)
    zeros = ir.tensor(np.zeros((64, 64), np.float32))
    found = write_skeleton(model, {"w": zeros, "b": ir.tensor(np.arange(64, dtype=np.float32))})
    assert not read_weight(ir.from_proto(found)).any()
    del found.graph.initializer[:], before.graph.initializer[:]
    assert found == before
    assert read_weight(model).any()


def test_neither_packing_nor_the_shapes_need_a_clone(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model is cloned")

    monkeypatch.setattr(ir.Model, "clone", refuse)
    packed = pack(model)
    assert list(packed.weights) == ["w"]
    np.testing.assert_array_equal(read_weight(packed.unpack()), read_weight(model))
    infer_shapes(model)
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    assert [(value.name, str(value.shape)) for value in values] == [
        ("h", "[N,64]"), ("y", "[N,64]"), ("one", "[N,64]"), ("two", "[N,64]"),
    ]  # fmt: skip
