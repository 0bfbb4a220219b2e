"""ONNX Runtime's own RMS normalizations become standard nodes that compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.norms import standardize_norms

_PLAIN = "[norm] y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> (x, g)"
_SKIP = "[norm] y, m, v, s = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (x, r, g, b)"
_NO_BIAS = "[norm] y = com.microsoft.SkipSimplifiedLayerNormalization (x, r, g) [sum] s = Add (x, r)"


def _write(
    path: Path, nodes: str, dtype: str = "float", opset: int = 17, scale: tuple[int, ...] = (64,)
) -> Path:
    text = f"""<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>
    g ({dtype}[N, 5, 64] x, {dtype}[N, 5, 64] r) => ({dtype}[N, 5, 64] z, {dtype}[N, 5, 64] w) {{
        {nodes} [out] z = Relu (y) [other] w = Add ({"s" if " s = " in nodes or ", s " in nodes else "y"}, r)
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    kind = np.float16 if dtype == "float16" else np.float32
    for name in ("g", "b"):
        values = np.array(rng.standard_normal(scale if name == "g" else 64), kind)
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


@pytest.mark.parametrize("axis", [-2, -1, 1, 2])
@pytest.mark.parametrize("scale", [(), (64,), (1, 64), (5, 64), (5, 1), (1, 1, 64), (2, 5, 64)])
def test_the_axis_says_what_is_reduced_and_the_scale_is_broadcast(
    tmp_path: Path, axis: int, scale: tuple[int, ...]
) -> None:
    nodes = f"[norm] y = SimplifiedLayerNormalization <axis = {axis}> (x, g)"
    path = _write(tmp_path / "m.onnx", nodes, scale=scale)
    feed = {name: np.random.default_rng(1).standard_normal((2, 5, 64), np.float32) for name in ("x", "r")}
    theirs = onnxruntime.InferenceSession(path).run(["z"], feed)
    ours = run(open_session(load(path, min_opset=13).model, optimize=False), ["z"], feed)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)


def test_an_axis_is_found_behind_another_normalization(tmp_path: Path) -> None:
    plain = "SimplifiedLayerNormalization <axis = 2>"
    graph = load(_write(tmp_path / "m.onnx", f"t = {plain} (x, g) y = {plain} (t, g)"), min_opset=13)
    means = [node for node in graph.model.graph if node.op_type == "ReduceMean"]
    assert [node.attributes.get_ints("axes") for node in means] == [(-1,), (-1,)]


@pytest.mark.parametrize(
    ("nodes", "scale", "message"),
    [
        ("SimplifiedLayerNormalization <axis = 3> (x, g)", (64,), "axis 3 and a scale of 1 dims"),
        ("SimplifiedLayerNormalization (x, g)", (1, 1, 1, 64), "axis -1 and a scale of 4 dims for an"),
        ("com.microsoft.SkipSimplifiedLayerNormalization (x, r, g)", (1, 64), "a scale of 2 dims, which no"),
    ],
)  # fmt: skip
def test_axes_and_scales_that_onnx_runtime_refuses_are_refused(
    tmp_path: Path, nodes: str, scale: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"'norm' \(\w+\) has {message}"):
        load(_write(tmp_path / "m.onnx", f"[norm] y = {nodes}", scale=scale), min_opset=13)


def test_an_axis_of_what_has_no_known_rank_is_refused() -> None:
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["": 17, "mine": 1]>
        g (float[8] x, float[8] s) => (float[8] y) {
            t = mine.Make (x) [norm] y = SimplifiedLayerNormalization <axis = 1> (t, s) }""")
    with pytest.raises(ModelError, match=r"'norm' .* has axis 1 and an input of unknown rank, which no"):
        list(standardize_norms(model))


def test_what_has_the_name_in_another_domain_stays() -> None:
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["": 17, "mine": 1]>
        g (float[8] x, float[8] s) => (float[8] y) { y = mine.SimplifiedLayerNormalization (x, s) }""")
    assert list(standardize_norms(model)) == []
    assert [node.domain for node in model.graph] == ["mine"]


def test_a_scale_that_is_computed_is_refused(tmp_path: Path) -> None:
    nodes = "t = Relu (r) [norm] y = SimplifiedLayerNormalization <axis = -1> (x, t)"
    path = _write(tmp_path / "m.onnx", nodes)
    with pytest.raises(ModelError, match=r"'norm' \(Simplified\w+\) has a scale that is computed, which no"):
        load(path, min_opset=13)


def test_the_sum_with_the_residual_may_be_an_output_of_the_graph(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.onnx", _SKIP.replace("y, m, v, s", "y, , , w").split(" [other]")[0])
    model = onnx.load(path)
    model.graph.node.remove(next(node for node in model.graph.node if node.name == "other"))
    onnx.save(model, path)
    feed = {name: np.random.default_rng(1).standard_normal((2, 5, 64), np.float32) for name in ("x", "r")}
    theirs = onnxruntime.InferenceSession(path).run(["z", "w"], feed)
    ours = run(open_session(load(path, min_opset=13).model, optimize=False), ["z", "w"], feed)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("index", [1, 2])
def test_another_output_of_the_graph_is_refused(tmp_path: Path, index: int) -> None:
    path = _write(tmp_path / "m.onnx", _SKIP)
    model = onnx.load(path)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("mv"[index - 1], onnx.TensorProto.FLOAT, None)
    )
    onnx.save(model, path)
    with pytest.raises(ModelError, match=rf"'norm' \(Skip\w+\) has output {index}, which no standard form"):
        load(path, min_opset=13)


def test_an_output_that_no_standard_form_has_is_refused(tmp_path: Path) -> None:
    nodes = "[norm] y, i = SimplifiedLayerNormalization <axis = -1> (x, g) [use] s = Mul (x, i)"
    with pytest.raises(ModelError, match=r"'norm' \(Simplified\w+\) has output 1, which no standard form"):
        load(_write(tmp_path / "m.onnx", nodes), min_opset=13)
