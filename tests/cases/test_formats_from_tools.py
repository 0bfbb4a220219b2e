"""What other tools write in FP8 and INT4: linted, repaired where that is exact, built, and as before."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.errors import ArtifactError, ModelError
from trtq.models.session import open_session, run
from trtq.models.spec import CalibrationSpec, EvaluationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.repair import repair
from trtq.pipeline.lint import lint
from trtq.pipeline.package import PackageSpec, package

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
PathOf = Callable[..., Path]
_RNG = np.random.default_rng(5)
_FLOAT = """g (float[N,4,8,8] x) => (float[N,16] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w0)
    r = Relu (c)
    f = Flatten (r)
    [fc] y = Gemm (f, w1, b)
}"""


def _random(*shape: int) -> NDArray[np.float32]:
    return (_RNG.standard_normal(shape) / 6).astype(np.float32)


class _Reader:
    """Random samples, as ONNX Runtime's calibration asks for them."""

    def __init__(self, path: Path) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{"x": part} for part in np.load(path)["x"][:, None]])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


@needs_rtx
@pytest.mark.parametrize("per_channel", [False, True])
def test_fp8_of_onnx_runtime_runs_in_fp8(per_channel: bool, path_of: PathOf, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = path_of(_FLOAT, w0=_random(8, 4, 3, 3), w1=_random(512, 16), b=_random(16))
    data, given = tmp_path / "x.npz", tmp_path / "fp8.onnx"
    np.savez(data, x=_RNG.standard_normal((16, 4, 8, 8)).astype(np.float32))
    quantization.quantize_static(
        path,
        given,
        _Reader(data),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QFLOAT8E4M3FN,
        weight_type=quantization.QuantType.QFLOAT8E4M3FN,
        per_channel=per_channel,
        calibrate_method=quantization.CalibrationMethod.Distribution,
    )
    assert lint(given).items == ()
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(data)), evaluation=EvaluationSpec(reference=str(path))
    )
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    report = build(given, spec=spec, target=target, output=tmp_path / "out")
    assert (report.engine.layers_realized, report.engine.fallbacks) == ({"fp8": 2}, ())
    assert report.precision == "fp8"
    assert {(item.candidate, item.reference) for item in report.comparison} == {("fp8", "fp32")}


_BLOCKS = """g (float16[N, 64] x) => (float16[N, 32] y) {{
    d = DequantizeLinear <axis = 0, block_size = 32> ({inputs})
    {cast}
    [fc] y = MatMul (x, {weight})
}}"""


def _outputs(model: Any, **feed: Any) -> NDArray[Any]:
    return run(open_session(model, optimize=False), ["y"], feed)[0]


def _int4_with_cast(path_of: PathOf, scale: float) -> Path:
    text = _BLOCKS.format(inputs="c, s", cast="w = Cast <to = 10> (d)", weight="w")
    codes = _RNG.integers(-8, 8, (64, 32)).astype(ml_dtypes.int4)
    return path_of(text, opset=21, ir_version=10, c=codes, s=np.full((2, 32), scale, np.float32))


@pytest.mark.parametrize(("scale", "is_exact"), [(0.0625, True), (0.1, False)])
def test_scales_of_int4_are_cast_instead_of_the_weight(scale: float, is_exact: bool, path_of: PathOf) -> None:
    path = _int4_with_cast(path_of, scale)
    (item,) = lint(path).items
    assert (item.finding.rule, item.repair) == ("scale-type", "exact" if is_exact else "rounds")
    before = load(path, min_opset=21).model
    after = repair(before).model
    assert "Cast" not in {node.op_type for node in after.graph}
    x = _RNG.standard_normal((4, 64)).astype(np.float16)
    ours, theirs = _outputs(after, x=x), _outputs(before, x=x)
    assert np.array_equal(ours, theirs) if is_exact else np.allclose(ours, theirs, rtol=1e-2, atol=1e-2)


def test_scales_that_the_type_does_not_hold_stay_as_they_are(path_of: PathOf) -> None:
    (item,) = lint(_int4_with_cast(path_of, 1e-9)).items
    assert (item.finding.rule, item.repair) == ("scale-type", "none")


@needs_rtx
def test_int4_with_a_cast_is_read_inside_the_product_once_repaired(path_of: PathOf, tmp_path: Path) -> None:
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    data = tmp_path / "x.npz"
    np.savez(data, x=_RNG.standard_normal((4, 64)).astype(np.float16))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    report = build(_int4_with_cast(path_of, 0.0625), spec=spec, target=target, output=tmp_path / "out")
    assert report.engine.layers_realized == {"int4-weights": 1}
    assert report.precision == "int4-weights"


def test_uint4_around_8_becomes_int4(path_of: PathOf) -> None:
    codes = _RNG.integers(0, 16, (64, 32))
    text = _BLOCKS.format(inputs="c, s, z", cast="", weight="d")
    arrays = {
        "c": codes.astype(ml_dtypes.uint4),
        "s": np.full((2, 32), 0.0625, np.float16),
        "z": np.full((2, 32), 8, ml_dtypes.uint4),
    }
    path = path_of(text, opset=21, ir_version=10, **arrays)
    linted = lint(path)
    assert [(item.finding.rule, item.repair) for item in linted.items] == [("codes-type", "exact")]
    after = repair(load(path, min_opset=21).model).model
    (dequantize,) = (node for node in after.graph if node.op_type == "DequantizeLinear")
    assert dequantize.inputs[0] is not None
    assert str(dequantize.inputs[0].dtype) == "INT4"
    x = _RNG.standard_normal((4, 64)).astype(np.float16)
    assert np.array_equal(_outputs(after, x=x), _outputs(path, x=x))


_FP8_ZERO = np.zeros(1, ml_dtypes.float8_e4m3fn)


def test_an_fp8_scale_of_one_dim_becomes_0_d(path_of: PathOf) -> None:
    path = path_of(
        """g (float[1, 4, 8, 8] x) => (float[1, 8, 6, 6] y) {
            [q] q = QuantizeLinear (x, s, z)
            [d] d = DequantizeLinear (q, s, z)
            w = DequantizeLinear (c, s, z)
            [conv] y = Conv (d, w)
        }""",
        c=_random(8, 4, 3, 3).astype(ml_dtypes.float8_e4m3fn),
        s=np.full(1, 0.5, np.float32),
        z=_FP8_ZERO,
    )
    linted = lint(path)
    assert [(item.finding.rule, item.finding.effect, item.repair) for item in linted.items] == [
        ("activation-scale", "float", "exact")
    ]
    before = load(path, min_opset=19).model
    after = repair(before).model
    x = _random(1, 4, 8, 8)
    assert np.array_equal(_outputs(after, x=x), _outputs(before, x=x))


def test_an_fp8_weight_along_k_is_rounded_along_its_outputs(path_of: PathOf) -> None:
    path = path_of(
        """g (float[2, 32] x) => (float[2, 8] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            w = DequantizeLinear <axis = 0> (c, t, u)
            [fc] y = MatMul (d, w)
        }""",
        c=(_random(32, 8) * 100).astype(ml_dtypes.float8_e4m3fn),
        s=np.float32(0.02),
        z=_FP8_ZERO.reshape(()),
        t=np.linspace(0.1, 0.2, 32, dtype=np.float32),
        u=np.zeros(32, ml_dtypes.float8_e4m3fn),
    )
    (item,) = lint(path).items
    assert (item.finding.rule, item.repair) == ("weight-axis", "rounds")
    before = load(path, min_opset=19).model
    after = repair(before).model
    x = _random(2, 32)
    assert np.allclose(_outputs(after, x=x), _outputs(before, x=x), rtol=0.1, atol=0.5)
    assert {node.outputs[0].name for node in after.graph} >= {"y"}


def _save_as_modelopt(path: Path, body: str, **arrays: Any) -> Path:
    """Writes a graph in the form of modelopt's exporters: their weights are listed as inputs too."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 11, opset_import: ["": 23, "trt": 1]>
        g (float16[N, 64] x) => (float16[N, 32] y) {{ {body} }}""")
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(np.asarray(array), name)
        proto.graph.initializer.append(tensor)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    path.write_bytes(proto.SerializeToString())
    return path


_NVFP4 = """
    xf = Cast <to = 1> (x)
    x4, xs8 = trt.TRT_FP4DynamicQuantize <axis = -1, block_size = 16, scale_type = 17> (xf, xg)
    xs = DequantizeLinear (xs8, xg)
    xd = DequantizeLinear <axis = -1, block_size = 16> (x4, xs)
    xh = Cast <to = 10> (xd)
    ws = DequantizeLinear (ws8, wg)
    wd = DequantizeLinear <axis = -1, block_size = 16> (w4, ws)
    wh = Cast <to = 10> (wd)
    wt = Transpose <perm = [1, 0]> (wh)
    [fc] y = MatMul (xh, wt)
"""


def _nvfp4(path: Path) -> Path:
    return _save_as_modelopt(
        path,
        _NVFP4,
        xg=np.float32(0.01),
        ws8=np.full((32, 4), 2, ml_dtypes.float8_e4m3fn),
        wg=np.float32(0.01),
        w4=_RNG.integers(-4, 5, (32, 64)).astype(ml_dtypes.float4_e2m1fn),
    )


@needs_rtx
def test_nvfp4_of_modelopt_runs_in_nvfp4_and_is_compared_but_not_packaged(tmp_path: Path) -> None:
    path = _nvfp4(tmp_path / "m.onnx")
    linted = lint(path, compute_capabilities=("12.0",))
    assert (linted.items, linted.layers_realized) == ((), {"nvfp4": 1})
    data = tmp_path / "x.npz"
    np.savez(data, x=_RNG.standard_normal((4, 64)).astype(np.float16))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    target = Target(backend="tensorrt-rtx", compute_capabilities=("12.0",))
    report = build(path, spec=spec, target=target, output=tmp_path / "out")
    assert (report.engine.layers_realized, report.precision) == ({"nvfp4": 1}, "nvfp4")
    assert (report.verdict, report.quantized_macs) == ("unverified", 1.0)  # for want of a float model
    assert {(item.candidate, item.cosine > 0.9999) for item in report.comparison} == {("nvfp4", True)}
    (reason,) = report.reasons
    assert "was compared with itself" in reason
    with pytest.raises(ArtifactError, match=r"which ONNX Runtime cannot run; leave --fallback and --ab out"):
        package(tmp_path / "out", tmp_path / "repository", PackageSpec(fallback="onnxruntime"))


@pytest.mark.parametrize(
    ("backend", "targets", "words"),
    [
        (
            "tensorrt-rtx",
            ("8.9",),
            "its quantized values are float4e2m1, which compute capability 8.9 does not have",
        ),
        ("onnxruntime", (), "which ONNX Runtime cannot run; build .* with --backend tensorrt-rtx"),
    ],
)
def test_nvfp4_is_refused_where_nothing_runs_it(
    backend: str, targets: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    target = Target(backend=backend, compute_capabilities=targets)
    with pytest.raises(ModelError, match=words):
        build(_nvfp4(tmp_path / "m.onnx"), spec=ModelSpec(), target=target, output=tmp_path / "out")


def test_mxfp8_of_modelopt_is_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    body = """x8, xs = trt.TRT_MXFP8DynamicQuantize <axis = -1, block_size = 32> (x)
        xd = trt.TRT_MXFP8DequantizeLinear <axis = -1, block_size = 32> (x8, xs)
        xh = Cast <to = 10> (xd)
        wd = trt.TRT_MXFP8DequantizeLinear <axis = 0, block_size = 32> (w8, ws)
        wh = Cast <to = 10> (wd)
        y = MatMul (xh, wh)"""
    path = _save_as_modelopt(
        tmp_path / "m.onnx",
        body,
        w8=_random(64, 32).astype(ml_dtypes.float8_e4m3fn),
        ws=np.full((2, 32), 127, np.uint8),
    )
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    with pytest.raises(ModelError, match=r"no kernel that multiplies MXFP8.*; quantize to float8 e4m3"):
        build(path, spec=ModelSpec(), target=target, output=tmp_path / "out")


def test_mxfp8_in_standard_operators_is_refused_with_what_to_take_instead(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    """ONNX has the scales of OCP's MX formats: powers of two in a byte."""
    text = "net (float[2, 64] x) => (float[2, 32] y) { d = Identity (w) y = MatMul (x, d) }"
    model = onnx.load(path_of(text, w=_random(64, 32)))
    made = {"w8": _random(64, 32).astype(ml_dtypes.float8_e4m3fn), "ws": np.full((2, 32), 127, np.uint8)}
    for name, kind in (("w8", onnx.TensorProto.FLOAT8E4M3FN), ("ws", onnx.TensorProto.FLOAT8E8M0)):
        content = made[name].tobytes()
        model.graph.initializer.add(name=name, data_type=kind, dims=made[name].shape, raw_data=content)
    blocks: dict[str, Any] = {"axis": 0, "block_size": 32, "output_dtype": onnx.TensorProto.FLOAT}
    model.graph.node[0].CopyFrom(onnx.helper.make_node("DequantizeLinear", ["w8", "ws"], ["d"], **blocks))
    model.opset_import[0].version = 24
    onnx.save(model, tmp_path / "mx.onnx")
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    with pytest.raises(ModelError, match=r"no kernel that multiplies MXFP8; quantize to float8 e4m3, with"):
        build(tmp_path / "mx.onnx", spec=ModelSpec(), target=target, output=tmp_path / "out")


@needs_rtx
def test_fp8_of_modelopt_s_torch_export_runs_in_fp8(tmp_path: Path) -> None:
    body = """xq = trt.TRT_FP8QuantizeLinear (x, s)
        xd = trt.TRT_FP8DequantizeLinear (xq, s)
        wd = DequantizeLinear (w8, t)
        wt = Transpose <perm = [1, 0]> (wd)
        [fc] y = MatMul (xd, wt)"""
    path = _save_as_modelopt(
        tmp_path / "m.onnx",
        body,
        s=np.float16(0.02),
        w8=(_random(32, 64) * 100).astype(ml_dtypes.float8_e4m3fn),
        t=np.float16(0.01),
    )
    data = tmp_path / "x.npz"
    np.savez(data, x=_RNG.standard_normal((4, 64)).astype(np.float16))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    report = build(path, spec=spec, target=target, output=tmp_path / "out")
    assert (report.engine.layers_realized, report.precision) == ({"fp8": 1}, "fp8")
    assert {(item.candidate, item.reference) for item in report.comparison} == {("fp8", "given")}
