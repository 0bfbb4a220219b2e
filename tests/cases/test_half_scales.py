"""Scales in half precision: of QLinear operators of opset 21, and of models in FP16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

import trtq
from trtq.models.session import open_session, run
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.repair import repair
from trtq.progress import Silent

_TEXT = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (int8[2,4] a, int8[4,3] b) => (int8[2,3] y)
    <int8 z = {0}> {
      [fc] y = QLinearMatMul (a, s, z, b, s, z, t, z) }"""


def test_a_qlinear_operator_with_half_scales_becomes_pairs_in_half(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = onnx.parser.parse_model(_TEXT)
    scales = [onnx.numpy_helper.from_array(np.array(v, np.float16), n) for n, v in (("s", 0.5), ("t", 2.0))]
    proto.graph.initializer.extend(scales)
    path.write_bytes(proto.SerializeToString())
    assert trtq.lint(path).is_quantized
    model = repair(load(path, min_opset=13).model).model
    [product] = [node for node in model.graph if node.op_type == "MatMul"]
    assert [str(value.dtype) for value in (*product.inputs, *product.outputs) if value] == ["FLOAT16"] * 3
    rng = np.random.default_rng(0)
    feed = {
        "a": rng.integers(-9, 9, (2, 4)).astype(np.int8),
        "b": rng.integers(-9, 9, (4, 3)).astype(np.int8),
    }
    [found] = run(open_session(model, optimize=False), ["y"], feed)
    wanted = np.rint((feed["a"].astype(float) @ feed["b"].astype(float)) * 0.25 / 2)
    np.testing.assert_array_equal(found, np.clip(wanted, -128, 127).astype(np.int8))


def test_a_model_in_half_precision_of_an_old_opset_is_raised_to_one_with_half_scales(tmp_path: Path) -> None:
    text = "g (float16[N,8] x) => (float16[N,4] y) { [fc] y = MatMul (x, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 4), np.float16), "w"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    target = Target(backend="onnxruntime")
    assert prepare(path, None, target, tmp_path / "out", True, Silent()).graph.opset == 19
