"""Operators of ONNX Runtime and of TensorRT's own are typed, and taken in the form that both know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge.compare import compare_models

_RNG = np.random.default_rng(8)
_X = _RNG.standard_normal((5, 32)).astype(np.float32)


def _random(*shape: int) -> NDArray[np.float32]:
    return (_RNG.standard_normal(shape) / 6).astype(np.float32)


def _save(path: Path, body: str, opset: int = 17, **weights: NDArray[Any]) -> Path:
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1, "trt": 1, "mine": 1]>
        g (float[N,32] x) => (float[N,16] y) {{ {body} }}""")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(proto, path)
    return path


def test_what_stands_behind_an_operator_of_onnx_runtime_is_quantized(tmp_path: Path) -> None:
    body = """[gelu] t = com.microsoft.BiasGelu(x, b) [other] a = com.microsoft.BiasGelu(t, b)
        [fc] h = MatMul(a, w)
        [fused] y = com.microsoft.FusedMatMul <alpha = 0.5>(h, v)"""
    path = _save(tmp_path / "m.onnx", body, b=_random(32), w=_random(32, 32), v=_random(32, 16))
    for model in (load(path, min_opset=19).model, load_as_it_is(path)):
        gelu = next(node for node in model.graph if node.name == "gelu").outputs[0]
        assert (gelu.dtype, str(gelu.shape)) == (ir.DataType.FLOAT, "[N,32]")
    placement = place(load(path, min_opset=19).model)
    assert [node.name for node in placement.quantized] == ["fc"]
    assert [(node.name, node.reason) for node in placement.kept] == [
        ("fused", "FusedMatMul stays float: TensorRT has no INT8 kernel for it")
    ]


@pytest.mark.parametrize("op_type", ["MatMul", "Identity"])
def test_an_operator_of_the_users_own_has_no_name_of_onnx(
    tmp_path: Path, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTQ_ORT_CUSTOM_OPS", "ops.so")
    path = _save(tmp_path / "m.onnx", f"[own] a = mine.{op_type}(x, w) y = Relu(a)", w=_random(32, 16))
    with pytest.raises(ModelError, match=f"^node 'own' is mine::{op_type}, which TensorRT takes for ONNX's"):
        load(path, min_opset=19)


def test_an_operator_that_nothing_knows_stays_untyped(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", "a = com.microsoft.Nothing(x) y = MatMul(a, w)", w=_random(32, 16))
    assert load(path, min_opset=19).model.graph[0].outputs[0].dtype is None


_FP8 = """[q] q = trt.TRT_FP8QuantizeLinear(x, s) [d] a = trt.TRT_FP8DequantizeLinear(q, s)
    [wq] wq = trt.TRT_FP8QuantizeLinear<axis = 1>(w, t) [wd] wd = trt.TRT_FP8DequantizeLinear<axis = 1>(wq, t)
    [fc] y = MatMul(a, wd)"""


@pytest.mark.parametrize("opset", [17, 19])
def test_fp8_of_tensorrt_is_that_of_onnx(tmp_path: Path, opset: int) -> None:
    weight = _random(32, 16)
    scale, scales = np.float32(4 / 448), (np.abs(weight).max(axis=0) / 448).astype(np.float32)
    path = _save(tmp_path / "m.onnx", _FP8, opset, s=np.array(scale), w=weight, t=scales)
    graph = load(path, min_opset=13)
    assert not any(node.domain for node in graph.model.graph)
    (y,) = run(open_session(graph.model, optimize=False), ["y"], {"x": _X})

    def rounded(values: NDArray[np.float32], by: Any) -> Any:
        return (values / by).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * by

    np.testing.assert_allclose(y, rounded(_X, scale) @ rounded(weight, scales), rtol=1e-5, atol=1e-5)
    batches = Batches(lambda: iter([Feed({"x": _X}, "x", len(_X))]), "x", len(_X))
    (item,) = compare_models({"a": path, "b": path}, [("a", "b")], batches).outputs
    assert item.max_abs == 0


def test_int4_of_tensorrt_is_that_of_onnx(tmp_path: Path) -> None:
    body = """[q] q = trt.TRT_INT4QuantizeLinear<axis = 0, block_size = 16>(w, s)
        [d] d = trt.TRT_INT4DequantizeLinear<axis = 0, block_size = 16>(q, s) [fc] y = MatMul(x, d)"""
    scales = np.full((2, 16), 0.125, np.float32)
    codes = _RNG.integers(-8, 8, (32, 16)).astype(np.float32)
    graph = load(_save(tmp_path / "m.onnx", body, s=scales, w=codes / 8), min_opset=13)
    assert graph.opset == 21
    (y,) = run(open_session(graph.model, optimize=False), ["y"], {"x": _X})
    np.testing.assert_allclose(y, _X @ (codes / 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (
            "trt.TRT_FP4QDQ",
            "a placeholder of modelopt for an NVFP4 weight; export the model by NVFP4QuantExporter",
        ),
        ("trt.TRT_Mine", "not a standard ONNX operator; TensorRT has it only as a plugin"),
        ("ai.onnx.ml.Normalizer", "ONNX's, but of classical machine learning, which TensorRT has not"),
        ("trt.Mine", "not a standard ONNX operator; TensorRT has it only as a plugin"),
        ("mine.Relu", "not a standard ONNX operator; TensorRT has it only as a plugin"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, operator: str, words: str) -> None:
    path = _save(tmp_path / "m.onnx", f"[op] a = {operator}(x) y = MatMul(a, w)", w=_random(32, 16))
    name = "::".join(operator.rsplit(".", 1))
    with pytest.raises(ModelError, match=rf"^node 'op' is {name}, which is {words}"):
        load(path, min_opset=19)


def test_q_of_16_bits_stays_that_of_onnx_runtime(tmp_path: Path) -> None:
    body = """q = com.microsoft.QuantizeLinear(x, s, z) d = com.microsoft.DequantizeLinear(q, s, z)
        y = MatMul(d, w)"""
    for zero, domain in ((np.array(0, np.int16), "com.microsoft"), (np.array(0, np.int8), "")):
        path = _save(tmp_path / "m.onnx", body, s=np.array(0.1, np.float32), z=zero, w=_random(32, 16))
        assert {node.domain for node in list(load(path, min_opset=13).model.graph)[:2]} == {domain}


def test_the_domain_of_onnx_may_have_its_long_name(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["ai.onnx": 17]>
        g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }""")
    proto.graph.node[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=13)
    assert (graph.opset, [node.domain for node in graph.model.graph]) == (17, [""])


def test_a_table_of_angles_is_no_weight(tmp_path: Path) -> None:
    body = """r = Reshape(x, four) [turn] t = com.microsoft.RotaryEmbedding(r, zero, cos, cos)
        f = Reshape(t, two) [fc] y = MatMul(f, w)"""
    numbers = {"four": [0, 1, 1, 32], "two": [0, 32], "zero": [0]}
    weights: dict[str, Any] = {name: np.array(value, np.int64) for name, value in numbers.items()}
    path = _save(tmp_path / "m.onnx", body, cos=_random(8, 16), w=_random(32, 16), **weights)
    placement = place(load(path, min_opset=19).model)
    assert [node.name for node in placement.quantized] == ["fc"]
    assert placement.kept == ()
