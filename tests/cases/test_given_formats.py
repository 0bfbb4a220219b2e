"""Models that come in FP8, INT4 or FP4: counted, built and named as what they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.lint import lint

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
PathOf = Callable[..., Path]
_FP8_ZERO = np.asarray(0, ml_dtypes.float8_e4m3fn)
_PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
_BLOCKS = "w = DequantizeLinear <axis = 0, block_size = 32> (c, b)"


def _codes(dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(3).integers(-7, 8, (64, 64)).astype(dtype)


_WEIGHTS: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {
    "fp8": (
        f"{_PAIR} w = DequantizeLinear (c, s, z) [fc] y = MatMul (d, w)",
        {"c": _codes(ml_dtypes.float8_e4m3fn), "s": np.asarray(0.02, np.float32), "z": _FP8_ZERO},
    ),
    "int4-weights": (
        f"{_BLOCKS} [fc] y = MatMul (x, w)",
        {"c": _codes(ml_dtypes.int4), "b": np.full((2, 64), 0.02, np.float32)},
    ),
    "fp8 x int4": (
        f"{_PAIR} {_BLOCKS} again = QuantizeLinear (w, s, z) v = DequantizeLinear (again, s, z) "
        "[fc] y = MatMul (d, v)",
        {
            "c": _codes(ml_dtypes.int4),
            "b": np.full((2, 64), 0.02, np.float32),
            "s": np.asarray(0.02, np.float32),
            "z": _FP8_ZERO,
        },
    ),
}


def _build(path_of: PathOf, asked: str, tmp_path: Path, *targets: str) -> Report:
    body, weights = _WEIGHTS[asked]
    path = path_of(f"g (float[N, 64] x) => (float[N, 64] y) {{ {body} }}", opset=21, ir_version=10, **weights)
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    target = Target(backend="tensorrt-rtx", compute_capabilities=targets)
    return build(path, spec=spec, target=target, output=tmp_path / "out")


@needs_rtx
@pytest.mark.parametrize(
    ("asked", "name"), [("fp8", "fp8"), ("int4-weights", "int4-weights"), ("fp8 x int4", "quantized")]
)
def test_a_model_from_elsewhere_is_named_for_its_format_and_runs_in_it(
    asked: str, name: str, path_of: PathOf, tmp_path: Path
) -> None:
    report = _build(path_of, asked, tmp_path, "8.9")
    assert (report.engine.layers_realized, report.engine.fallbacks) == ({asked: 1}, ())
    assert (report.precision, report.verdict) == (name, "unverified")
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {f"model.{name}.onnx"}
    assert {item.candidate for item in report.comparison} == {name}


_ATTENTION = """g (float16[1,4,128,64] q, float16[1,4,128,64] k, float16[1,4,128,64] v)
        => (float16[1,4,128,64] y) {{
    q0 = QuantizeLinear (q, s, z)
    q1 = DequantizeLinear (q0, s, z)
    k0 = QuantizeLinear (k, s, z)
    k1 = DequantizeLinear (k0, s, z)
    kt = Transpose <perm = [0, 1, 3, 2]> (k1)
    v0 = QuantizeLinear (v, s, z)
    v1 = DequantizeLinear (v0, s, z)
    [qk] a = MatMul (q1, kt)
    p = Softmax <axis = -1> (a)
    p0 = QuantizeLinear (p, {softmax}, z)
    p1 = DequantizeLinear (p0, {softmax}, z)
    [pv] y = MatMul (p1, v1)
}}"""


@needs_rtx
@pytest.mark.parametrize(
    ("zero", "softmax", "asked", "is_fused"),
    [(_FP8_ZERO, 1 / 448, "fp8", True), (np.asarray(0, np.int8), 1 / 127, "int8", False)],
)
def test_both_products_of_attention_run_as_asked_fused_or_not(
    zero: NDArray[Any], softmax: float, asked: str, is_fused: bool, path_of: PathOf
) -> None:
    path = path_of(
        _ATTENTION.format(softmax="t"),
        opset=21,
        ir_version=10,
        s=np.asarray(0.02, np.float16),
        t=np.asarray(softmax, np.float16),
        z=zero,
    )
    assert lint(path).layers_realized == {asked: 2}
    built = TensorRtRtx().build(BuildRequest(path, compute_capabilities=("8.9",)))
    covered = measure_coverage(find_quantized_layers(ir.load(path)), built)
    assert (covered.layers_realized, covered.fallbacks) == ({asked: 2}, ())
    assert any("_gemm_mha" in kernel.name for kernel in built.kernels) is is_fused


def test_onnx_runtime_reads_a_weight_in_blocks_as_it_is_stored(path_of: PathOf) -> None:
    body, weights = _WEIGHTS["int4-weights"]
    text = f"g (float[N, 64] x) => (float[N, 64] y) {{ {body} }}"
    path = path_of(text, opset=21, ir_version=10, **weights)
    covered = measure_coverage(find_quantized_layers(ir.load(path)), OnnxRuntime().build(BuildRequest(path)))
    assert covered.layers_realized == {"int4-weights": 1}
