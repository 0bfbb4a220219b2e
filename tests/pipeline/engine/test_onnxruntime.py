"""Tests of the backend that runs the Q/DQ model in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from trtq.errors import BuildError
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.coverage import list_precisions, measure_coverage
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.graph.quantized import find_quantized_layers

_WEIGHTS = {
    "s": np.asarray(0.05, np.float32),
    "z": np.asarray(0, np.int8),
    "w": np.random.default_rng(0).integers(-127, 128, (8, 8)).astype(np.int8),
}
_BEFORE = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) dw = DequantizeLinear (w, s, z)"
_AFTER = "qr = QuantizeLinear (r, s, z) y = DequantizeLinear (qr, s, z)"


def test_it_is_always_there() -> None:
    assert OnnxRuntime().why_not() == ""
    assert OnnxRuntime().version() == onnxruntime.__version__


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (f"[layer] r = Gemm (d, dw) {_AFTER}", "QGemm"),
        (f"[layer] r = MatMul (d, dw) {_AFTER}", "QLinearMatMul"),
        (f"[layer] m = MatMul (d, dw) r = Add (m, b) {_AFTER}", "QGemm"),  # which has another name then
        ("[layer] y = MatMul (d, dw)", "MatMulIntegerToFloat"),
    ],
)
def test_a_layer_that_becomes_an_integer_kernel_runs_in_int8(
    body: str, kind: str, path_of: Callable[..., Path]
) -> None:
    text = f"g (float[2, 8] x) => (float[2, 8] y) {{ {_BEFORE} {body} }}"
    path = path_of(text, b=np.ones(8, np.float32), **_WEIGHTS)
    built = OnnxRuntime().build(BuildRequest(path))
    assert built.plan is None
    assert [kernel.kind for kernel in built.kernels if "layer" in kernel.nodes] == [kind]
    assert measure_coverage(find_quantized_layers(ir.load(path)), built).num_realized == 1
    assert list_precisions(["layer"], built) == {"layer": "Int8"}


def test_a_layer_with_a_float_output_runs_in_float_and_the_reason_is_told(
    path_of: Callable[..., Path],
) -> None:
    path = path_of(
        f"g (float[2, 8] x) => (float[2, 8] y) {{ {_BEFORE} [layer] y = Gemm (d, dw, b) }}",
        b=np.ones(8, np.float32),
        **_WEIGHTS,
    )
    built = OnnxRuntime().build(BuildRequest(path))
    result = measure_coverage(find_quantized_layers(ir.load(path)), built)
    assert (result.layers_quantized, result.num_realized) == (1, 0)
    (fallback,) = result.fallbacks
    assert (fallback.node, fallback.runs_as) == ("layer", "Float")
    assert "only if the output of the layer is quantized too" in fallback.reason


def test_the_model_stays_as_it_is_and_nothing_is_left_beside_it(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    before = path.read_bytes()
    OnnxRuntime().build(BuildRequest(path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_model_that_it_cannot_load_is_told_in_its_own_words(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[2] x) => (float[2] y) { y = Foo (x) }")
    with pytest.raises(BuildError, match=rf"^ONNX Runtime cannot load {path.name}: .*Foo"):
        OnnxRuntime().build(BuildRequest(path))


def test_whether_kernels_overflow_is_measured_on_this_processor(path_of: Callable[..., Path]) -> None:
    path = path_of(
        "g (float[1, 64] x) => (float[1, 64] y) { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
        " dw = DequantizeLinear (w, s, z) y = MatMul (d, dw) }",
        s=np.float32(1), z=np.int8(0), w=np.full((64, 64), 127, np.int8),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, 64), 127, np.float32)})
    assert OnnxRuntime().overflows() == bool((found != 64 * 127 * 127).any())
