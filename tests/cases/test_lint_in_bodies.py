"""What TensorRT refuses is found in the bodies of If and Loop too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from trtq.pipeline.lint import lint


def test_lint_looks_into_branches(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[4,8] x, bool c) => (float[4,8] y) {
            [if] y = If (c) <
                then_branch = t () => (float[4,8] a) {
                    [tQ] tq = QuantizeLinear(x, s, z8) [tDQ] a = DequantizeLinear(tq, s, z8) },
                else_branch = e () => (float[4,8] b) {
                    [eQ] eq = QuantizeLinear(x, s, u8) [eDQ] b = DequantizeLinear(eq, s, u8) }>
        }""")
    for name, value in (("s", np.float32(0.1)), ("z8", np.int8(0)), ("u8", np.uint8(128))):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(proto, tmp_path / "m.onnx")
    linted = lint(tmp_path / "m.onnx")
    assert linted.is_quantized
    assert [(item.finding.rule, item.finding.node) for item in linted.items] == [
        ("zero-point", "eQ"),
        ("zero-point", "eDQ"),
    ]
    assert {item.repair for item in linted.stopping} == {"none"}
