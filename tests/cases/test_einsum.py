"""Layers that exporters write as Einsum or DeformConv: quantized where they are a MatMul, named where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import place

_X = np.random.default_rng(2).standard_normal((2, 3, 32)).astype(np.float32)


def _load(path: Path, equation: str, *, is_first: bool = False, shape: tuple[int, ...] = (32, 32)) -> Graph:
    operands = "w, x" if is_first else "x, w"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[2,3,32] x) => (float[a,b,c] y) {{
            [ein] e = Einsum<equation = "{equation}">({operands}) r = Relu(e) [fc] y = MatMul(r, v) }}"""
    )
    for name, dims in (("w", shape), ("v", (32, 32))):
        values = np.random.default_rng(len(name)).standard_normal(dims).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return load(path, min_opset=13)


@pytest.mark.parametrize(
    ("equation", "is_first"),
    [("bik,kn->bin", False), ("b i k, n k -> b i n", False), ("kn,bik->bin", True), ("nk,bik->bin", True)],
)
def test_a_product_with_a_matrix_is_a_matmul(tmp_path: Path, equation: str, is_first: bool) -> None:
    graph = _load(tmp_path / "m.onnx", equation, is_first=is_first)
    assert [node.op_type for node in graph.model.graph] == ["MatMul", "Relu", "MatMul"]
    assert "turned 1 Einsum nodes into MatMul" in graph.notes
    assert [node.name for node in place(graph.model).quantized] == ["ein", "fc"]
    sessions = (open_session(item, optimize=False) for item in (tmp_path / "m.onnx", graph.model))
    theirs, ours = (run(session, ["y"], {"x": _X})[0] for session in sessions)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bik,bkn->bin", (2, 32, 32)),
        ("bik,kn->ibn", (32, 32)),
        ("bik,ik->bik", (3, 32)),
        ("bik,kk->bik", (32, 32)),
    ],
)
def test_another_einsum_with_a_weight_is_named(tmp_path: Path, equation: str, shape: tuple[int, ...]) -> None:
    graph = _load(tmp_path / "m.onnx", equation, shape=shape)
    kept = {node.name: node.reason for node in place(graph.model).kept}
    assert kept["ein"] == "Einsum stays float: TensorRT has no INT8 kernel for it"


def test_an_einsum_of_activations_is_no_layer(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3,4] x) => (float[2,3,3] y) { y = Einsum<equation = "bik,bjk->bij">(x, x) }""")
    onnx.save(proto, tmp_path / "m.onnx")
    assert place(load(tmp_path / "m.onnx", min_opset=13).model).kept == ()
