"""ONNX Runtime's own RMS normalizations become standard nodes that compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load

_PLAIN = "[norm] y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> (x, g)"
_SKIP = "[norm] y, m, v, s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, r, g, b)"
_NO_BIAS = "[norm] y = com.microsoft.SkipSimplifiedLayerNormalization (x, r, g) [sum] s = Add (x, r)"


def _write(path: Path, nodes: str, dtype: str = "float", opset: int = 17) -> Path:
    text = f"""<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>
    g ({dtype}[N, 5, 64] x, {dtype}[N, 5, 64] r) => ({dtype}[N, 5, 64] z, {dtype}[N, 5, 64] w) {{
        {nodes} [out] z = Relu (y) [other] w = Add ({"s" if " s = " in nodes or ", s " in nodes else "y"}, r)
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    kind = np.float16 if dtype == "float16" else np.float32
    for name in ("g", "b"):
        values = rng.standard_normal(64).astype(kind)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("nodes", [_PLAIN, _SKIP, _NO_BIAS])
@pytest.mark.parametrize(("dtype", "opset"), [("float", 17), ("float16", 21)])
def test_the_standard_nodes_compute_the_same(tmp_path: Path, nodes: str, dtype: str, opset: int) -> None:
    path = _write(tmp_path / "m.onnx", nodes, dtype, opset)
    graph = load(path, min_opset=13)
    assert "wrote 1 RMS normalization of ONNX Runtime as standard nodes" in graph.notes
    assert {node.domain for node in graph.model.graph} == {""}
    assert graph.model.graph.node("norm").op_type == "Mul"
    assert graph.is_rewritten
    kind = np.float16 if dtype == "float16" else np.float32
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal((2, 5, 64)).astype(kind) for name in ("x", "r")}
    theirs = onnxruntime.InferenceSession(path).run(None, feed)
    ours = run(open_session(graph.model, optimize=False), ["z", "w"], feed)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-2 if dtype == "float16" else 1e-5)


def test_a_scale_that_is_computed_is_refused(tmp_path: Path) -> None:
    nodes = "t = Relu (r) [norm] y = SimplifiedLayerNormalization <axis = -1> (x, t)"
    path = _write(tmp_path / "m.onnx", nodes)
    with pytest.raises(ModelError, match=r"'norm' \(Simplified\w+\) has a scale that is computed, which no"):
        load(path, min_opset=13)


def test_an_output_that_no_standard_form_has_is_refused(tmp_path: Path) -> None:
    nodes = "[norm] y, i = SimplifiedLayerNormalization <axis = -1> (x, g) [use] s = Mul (x, i)"
    with pytest.raises(ModelError, match=r"'norm' \(Simplified\w+\) has output 1, which no standard form"):
        load(_write(tmp_path / "m.onnx", nodes), min_opset=13)
