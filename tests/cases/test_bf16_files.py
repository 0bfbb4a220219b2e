"""A model stored in bfloat16 is loaded in float32, with the same weights: nothing runs it here otherwise."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load


@pytest.mark.parametrize("is_outside", [False, True])
def test_a_bf16_model_is_loaded_in_float32(tmp_path: Path, is_outside: bool) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 18]>
        g (bfloat16[N,8] x) => (bfloat16[N,8] y) { a = MatMul(x, w) f = Cast<to = 16>(a) y = Relu(f) }""")
    weight = np.random.default_rng(5).standard_normal((8, 8)).astype(ml_dtypes.bfloat16)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=is_outside, size_threshold=0)
    graph = load(tmp_path / "m.onnx", min_opset=19)
    assert [str(item) for item in (*graph.inputs, *graph.outputs)] == ["x float32 (N, 8)", "y float32 (N, 8)"]
    assert any(note.startswith("computes in float32 what the file has in bfloat16") for note in graph.notes)
    x = np.random.default_rng(6).standard_normal((2, 8)).astype(np.float32)
    y = run(open_session(graph.model, optimize=False), ["y"], {"x": x})[0]
    np.testing.assert_allclose(y, np.maximum(x @ weight.astype(np.float32), 0), rtol=1e-5, atol=1e-6)
