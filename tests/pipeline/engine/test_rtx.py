"""Tests of TensorRT-RTX: the real builder, which needs no GPU, in its process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.errors import BuildError, MissingDependency, ModelError, UsageError
from trtq.kept import Fallback
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.backend import BuildRequest, BuiltEngine
from trtq.pipeline.engine.coverage import Coverage, list_precisions, measure_coverage
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.graph.quantized import find_quantized_layers

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
_CONV_GEMM = """
    g (float[{batch}, 4, 8, 8] x) => (float[{batch}, 10] y) {{
        [q] q = QuantizeLinear (x, s, z)
        [d] d = DequantizeLinear (q, s, z)
        [dw] dw = DequantizeLinear <axis = {axis}> (w, sw, zw)
        [conv] c = Conv <pads = [1, 1, 1, 1]> (d, dw)
        [relu] r = Relu (c)
        [pool] p = GlobalAveragePool (r)
        [flat] f = Flatten (p)
        [q2] q2 = QuantizeLinear (f, s2, z2)
        [d2] d2 = DequantizeLinear (q2, s2, z2)
        [dw2] dw2 = DequantizeLinear <axis = 0> (w2, sw2, zw2)
        [gemm] y = Gemm <transB = 1> (d2, dw2, b)
    }}"""
_FLOAT = """
    g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
        [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
        [relu] y = Relu (c)
    }"""
PathOf = Callable[..., Path]


def _scale(value: float) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def _codes(*shape: int) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


def _weights(**others: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {
        "s": _scale(0.05),
        "z": np.asarray(0, np.int8),
        "w": _codes(8, 4, 3, 3),
        "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8),
        "s2": _scale(0.05),
        "z2": np.asarray(0, np.int8),
        "w2": _codes(10, 8),
        "sw2": np.full(10, 0.01, np.float32),
        "zw2": np.zeros(10, np.int8),
        "b": np.zeros(10, np.float32),
        **others,
    }


def _conv_gemm(path_of: PathOf, *, batch: str = "2", axis: int = 0, **others: NDArray[Any]) -> Path:
    return path_of(_CONV_GEMM.format(batch=batch, axis=axis), **_weights(**others))


def _covered(path: Path, built: BuiltEngine, *targets: str) -> Coverage:
    return measure_coverage(find_quantized_layers(ir.load(path)), built, targets)


def _build(path: Path, **request: Any) -> BuiltEngine:
    return TensorRtRtx().build(BuildRequest(path, **request))


@needs_rtx
def test_a_quantized_model_is_built_and_all_of_it_runs_in_int8(path_of: PathOf) -> None:
    path = _conv_gemm(path_of)
    built = _build(path, compute_capabilities=("8.9", "8.0"), workspace_bytes=1 << 28)
    assert built.plan is not None
    assert built.plan.startswith(b"vtrt")
    assert _covered(path, built) == Coverage(2, {"int8": 2}, ())
    assert list_precisions(["conv", "gemm"], built) == {"conv": "Int8", "gemm": "Int8"}
    assert {kernel.kind for kernel in built.kernels} == {"correlation", "gemm", "kgen"}


@needs_rtx
def test_a_float_model_has_float_kernels_and_nothing_to_cover(path_of: PathOf) -> None:
    path = path_of(_FLOAT, w=np.ones((8, 4, 3, 3), np.float32))
    built = _build(path)
    assert _covered(path, built) == Coverage(0, {}, ())
    assert list_precisions(["conv"], built) == {"conv": "Float"}
    assert not any(kernel.multiplies_in for kernel in built.kernels)
    assert {dtype for kernel in built.kernels for dtype in kernel.inputs} == {"Float"}


@needs_rtx
def test_two_activations_are_multiplied_in_int8(path_of: PathOf) -> None:
    path = path_of(
        """g (float[8, 32] x, float[32, 16] v) => (float[8, 16] y) {
            a = QuantizeLinear (x, s, z)
            b = DequantizeLinear (a, s, z)
            c = QuantizeLinear (v, s, z)
            d = DequantizeLinear (c, s, z)
            [scores] y = MatMul (b, d)
        }""",
        s=_scale(0.05),
        z=np.asarray(0, np.int8),
    )
    assert _covered(path, _build(path)) == Coverage(1, {"int8": 1}, ())


@needs_rtx
def test_a_transposed_convolution_is_a_fallback(path_of: PathOf) -> None:
    path = path_of(
        """g (float[2, 4, 8, 8] x) => (float[2, 8, 16, 16] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            dw = DequantizeLinear <axis = 1> (w, sw, zw)
            [up] y = ConvTranspose <strides = [2, 2]> (d, dw)
        }""",
        s=_scale(0.05),
        z=np.asarray(0, np.int8),
        w=_codes(4, 8, 2, 2),
        sw=np.full(8, 0.01, np.float32),
        zw=np.zeros(8, np.int8),
    )
    reason = "TensorRT has no INT8 kernel for ConvTranspose; leave it out of --op-types"
    assert _covered(path, _build(path)) == Coverage(
        1, {}, (Fallback("up", "ConvTranspose", "Float", reason),)
    )


@needs_rtx
def test_a_scale_of_shape_1_makes_a_convolution_silently_float(path_of: PathOf) -> None:
    path = _conv_gemm(path_of, s=np.full(1, 0.05, np.float32), z=np.zeros(1, np.int8))
    reason = "its activation scale has shape (1,); INT8 kernels need a 0-d scale"
    assert _covered(path, _build(path)) == Coverage(
        2, {"int8": 1}, (Fallback("conv", "Conv", "Float", reason),)
    )


@needs_rtx
def test_a_weight_scaled_along_the_wrong_axis_makes_a_convolution_silently_float(path_of: PathOf) -> None:
    path = _conv_gemm(path_of, axis=1, sw=np.full(4, 0.01, np.float32), zw=np.zeros(4, np.int8))
    reason = "its weight is quantized along axis 1, INT8 wants axis 0"
    assert _covered(path, _build(path)) == Coverage(
        2, {"int8": 1}, (Fallback("conv", "Conv", "Float", reason),)
    )


@needs_rtx
def test_a_matmul_scaled_along_the_summed_axis_dequantizes(path_of: PathOf) -> None:
    path = path_of(
        """g (float[8, 32] x) => (float[8, 16] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            dw = DequantizeLinear <axis = 0> (w, sw, zw)
            [mm] y = MatMul (d, dw)
        }""",
        s=_scale(0.05),
        z=np.asarray(0, np.int8),
        w=_codes(32, 16),
        sw=np.full(32, 0.01, np.float32),
        zw=np.zeros(32, np.int8),
    )
    reason = "its weight is quantized along axis 0, INT8 wants axis 1"
    assert _covered(path, _build(path)) == Coverage(1, {}, (Fallback("mm", "MatMul", "Int8/Float", reason),))


@needs_rtx
def test_turing_runs_a_quantized_convolution_in_float(path_of: PathOf) -> None:
    path = path_of(
        """g (float[2, 4, 8, 8] x) => (float[2, 8, 8, 8] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            dw = DequantizeLinear <axis = 0> (w, sw, zw)
            [conv] y = Conv <pads = [1, 1, 1, 1]> (d, dw)
        }""",
        **{name: array for name, array in _weights().items() if name in ("s", "z", "w", "sw", "zw")},
    )
    reason = "compute capability 7.5 (Turing) runs Q/DQ layers in float"
    covered = _covered(path, _build(path, compute_capabilities=("7.5",)), "7.5")
    assert covered == Coverage(1, {}, (Fallback("conv", "Conv", "Float", reason),))


@needs_rtx
@pytest.mark.parametrize("target", ["9.0", "9", "Hopper"])
def test_an_unknown_target_is_refused_with_those_that_are_known(target: str, path_of: PathOf) -> None:
    with pytest.raises(
        UsageError,
        match=rf"^TensorRT-RTX cannot build for compute capability {target}; it has 7\.5, 8\.0, .*, 12\.\d$",
    ):
        _build(_conv_gemm(path_of), compute_capabilities=("8.9", target))


@needs_rtx
def test_a_profile_makes_a_dynamic_model_buildable(path_of: PathOf) -> None:
    path = _conv_gemm(path_of, batch="N")
    profile = InputSpec((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))
    assert _covered(path, _build(path, profiles={"x": profile})).num_realized == 2


@needs_rtx
@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ({}, "dynamic or shape inputs, but no optimization profile has been defined"),
        (
            {"x": InputSpec((1, 4, 8), (1, 4, 8), (1, 4, 8))},
            "Dynamic-shaped input tensor x has 4 dimensions but profile 0 has 3 dimensions",
        ),
        (
            {"other": InputSpec((1,), (1,), (1,))},
            "Dynamic input tensor x is missing dimensions in profile 0",
        ),
        (
            {"x": InputSpec((1, 4, 8, 7), (1, 4, 8, 8), (1, 4, 8, 8))},
            "Dimension mismatch for tensor x and profile 0",
        ),
    ],
)
def test_a_profile_that_does_not_fit_fails_in_tensorrts_own_words(
    profiles: dict[str, InputSpec], told: str, path_of: PathOf
) -> None:
    path = _conv_gemm(path_of, batch="N")
    with pytest.raises(BuildError, match=rf"^TensorRT-RTX could not build {path.name}:\n  ERROR: .*{told}"):
        _build(path, profiles=profiles)


@needs_rtx
def test_an_input_that_is_a_shape_takes_its_values_as_profile(path_of: PathOf) -> None:
    path = path_of("g (float[2, 6] x, int64[2] shape) => (float[A, B] y) { y = Reshape (x, shape) }")
    assert _build(path, profiles={"shape": InputSpec((1, 3), (2, 6), (4, 12))}).plan


@needs_rtx
def test_too_small_a_workspace_fails_in_tensorrts_own_words(path_of: PathOf) -> None:
    with pytest.raises(BuildError, match="no tactics to implement the operation within workspace limit"):
        _build(_conv_gemm(path_of), workspace_bytes=1024)


@needs_rtx
def test_external_data_is_found_beside_the_model(
    path_of: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    proto = onnx.load(path_of(_FLOAT, w=np.ones((8, 4, 3, 3), np.float32)))
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (folder / "m.data").stat().st_size >= 8 * 4 * 9 * 4
    monkeypatch.chdir(tmp_path)
    assert _build(Path("model/m.onnx")).plan
    (folder / "m.data").unlink()
    with pytest.raises(ModelError, match="Failed to import initializer"):
        _build(Path("model/m.onnx"))


@needs_rtx
def test_its_own_warnings_are_told_and_those_of_a_machine_without_gpu_are_not(path_of: PathOf) -> None:
    path = path_of("g (float[2, 6] x, int64[2] shape) => (float[A, B] y) { y = Reshape (x, shape) }")
    warnings = _build(path, profiles={"shape": InputSpec((1, 3), (2, 6), (4, 12))}).warnings
    assert any("Make sure input shape has Int64 binding" in line for line in warnings)
    assert len(set(warnings)) == len(warnings)
    assert not any("cuda" in line.lower() for line in warnings)


@needs_rtx
def test_files_in_the_current_folder_shadow_no_library(
    path_of: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(_FLOAT, w=np.ones((8, 4, 3, 3), np.float32))
    for name in ("json", "pathlib", "tensorrt_rtx", "trtq"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert _build(path).plan


def test_without_tensorrt_rtx_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = "tensorrt_rtx is not installed; pip install 'trtq[rtx]' (builds without a GPU)"
    assert TensorRtRtx().why_not() == reason
    with pytest.raises(MissingDependency, match=r"^backend tensorrt-rtx: tensorrt_rtx is not installed; pip"):
        _build(tmp_path / "model.onnx")


def test_with_tensorrt_rtx_nothing_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {"tensorrt_rtx": object()}.get)
    assert TensorRtRtx().why_not() == ""


@pytest.mark.parametrize("installed", ["tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"])
def test_the_version_is_that_of_the_installed_wheel(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package != installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.7.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert TensorRtRtx().version() == "1.7.1"


def test_the_version_is_empty_without_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert TensorRtRtx().version() == ""


@needs_rtx
def test_names_with_commas_and_brackets_come_back_from_the_real_builder(path_of: PathOf) -> None:
    path = path_of(_FLOAT, w=np.ones((8, 4, 3, 3), np.float32))
    proto = onnx.load(path)
    proto.graph.node[0].name, proto.graph.node[1].name = "block [0], a b/Conv: x", "größe] {形}"
    onnx.save(proto, path)
    nodes = {node for kernel in _build(path).kernels for node in kernel.nodes}
    assert nodes == {"block [0], a b/Conv: x", "größe] {形}"}
