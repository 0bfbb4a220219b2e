"""Nodes that ONNX Runtime has no FP16 kernel for stay FP32, and are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load
from trtq.pipeline.rewrite.precision import to_fp16

_GRAPHS = {
    "ScatterElements": """g (float[2,4] x) => (float[2,4] y) <int64[2,4] i = {0,0,1,1,0,1,0,1}> {
        a = Neg(x) [odd] s = ScatterElements<axis = 0, reduction = "add">(a, i, a) y = Neg(s) }""",
    "ScatterND": """g (float[2,4] x) => (float[2,4] y) <int64[2,1] i = {1,1}> {
        a = Neg(x) [odd] s = ScatterND<reduction = "max">(a, i, a) y = Neg(s) }""",
    "Celu": "g (float[2,4] x) => (float[2,4] y) { a = Neg(x) [odd] s = Celu(a) y = Neg(s) }",
}


@pytest.mark.parametrize("op_type", _GRAPHS)
def test_a_node_without_a_half_kernel_stays_float(tmp_path: Path, op_type: str) -> None:
    text = f'<ir_version: 9, opset_import: ["": 18]> {_GRAPHS[op_type]}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    model, kept = to_fp16(load(tmp_path / "m.onnx", min_opset=19).model)
    reasons = {node.name: node.reason for node in kept}
    assert reasons == {"odd": f"ONNX Runtime has no FP16 kernel for this {op_type}"}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    theirs, ours = (
        run(open_session(item, optimize=False), ["y"], {"x": x})[0] for item in (tmp_path / "m.onnx", model)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_a_scatter_that_only_moves_is_half(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[2,4] x) => (float[2,4] y)
        <int64[1,1] i = {1}> { a = Neg(x) b = Slice(a, z, o) s = ScatterND(a, i, b) y = Neg(s) }"""
    proto = onnx.parser.parse_model(text)
    for name, value in (("z", 0), ("o", 1)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    onnx.save(proto, tmp_path / "m.onnx")
    assert to_fp16(load(tmp_path / "m.onnx", min_opset=19).model)[1] == ()
