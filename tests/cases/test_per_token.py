"""`--activations per-token`: each row by its own largest magnitude, so that an outlier row hurts no other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from recording_watcher import RecordingWatcher

from trtq.cli import main
from trtq.errors import DataError
from trtq.models.session import open_session, run
from trtq.models.spec import CalibrationSpec, EvaluationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import HighPrecision, Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
PER_TOKEN = QuantizationSpec(activations="per-token")
FP16: HighPrecision = "fp16"
FP32: HighPrecision = "fp32"
CHEAP = Target(backend="onnxruntime", shapes=GivenShapes(opt={"x": (8, 64)}))
MLP = """g (float[N,64] x) => (float[N,64] y) {
    [fc] h = MatMul (x, w1) [act] r = Relu (h) [out] y = Gemm (r, w2, b) }"""
WITH_CONV = """g (float[N,8,8,64] x) => (float[N,8,8,64] y) {
    [conv] c = Conv <pads = [1,1,1,1]> (x, w) [fc] y = MatMul (c, w1) }"""


@pytest.fixture
def mlp(path_of: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(3)
    w1, w2 = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    return path_of(MLP, w1=w1, w2=w2, b=rng.standard_normal(64).astype(np.float32))


@pytest.fixture
def outliers(tmp_path: Path) -> Path:
    x = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
    x[::7] *= 1000
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "x.npz"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_outlier_row_hurts_no_other(
    mlp: Path, outliers: Path, tmp_path: Path, precision: Precision
) -> None:
    spec = ModelSpec(calibration=CalibrationSpec(str(outliers)), quantization=PER_TOKEN)
    target = Target(precision=precision, backend="onnxruntime")
    report = build(mlp, spec=spec, target=target, output=tmp_path / "o")
    assert report.verdict == "pass"
    assert report.calibration is None
    x = np.load(outliers)["x"]
    (ours,) = run(open_session(tmp_path / f"o/model.{precision}.onnx", optimize=False), ["y"], {"x": x})
    (theirs,) = run(open_session(mlp, optimize=False), ["y"], {"x": x})
    noise = np.square(ours - theirs).sum(axis=1) / np.square(theirs).sum(axis=1)
    assert noise.max() < (1e-3 if precision == "int8" else 1e-2)


def test_a_loud_channel_is_smoothed_where_there_is_data(mlp: Path, tmp_path: Path) -> None:
    """All rows reach as far as their loudest channel, so that scales of their own help none of them."""
    x = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
    x[:, 5] *= 100
    np.savez(tmp_path / "x.npz", x=x)
    calibration = CalibrationSpec(str(tmp_path / "x.npz"), batch_size=1)
    found = {}
    for repair in ("none", "smooth"):
        quantization = QuantizationSpec(activations="per-token", repair=(repair,))
        spec = ModelSpec(calibration=calibration, quantization=quantization)
        found[repair] = build(mlp, spec=spec, target=CHEAP, output=tmp_path / repair)
    assert found["smooth"].repairs is not None
    assert found["smooth"].repairs.applied[0].startswith("smooth")
    assert find_sqnr_db(found["smooth"]) > find_sqnr_db(found["none"]) + 6
    assert found["smooth"].calibration is None  # no tensor has a range


def find_sqnr_db(report: Report) -> float:
    """Returns how far the quantized output is above its noise."""
    output = next(item for item in report.comparison if item.candidate == "int8" and not item.part)
    return output.sqnr_db


def test_no_data_is_needed_and_nothing_is_claimed_then(mlp: Path, tmp_path: Path) -> None:
    report = build(mlp, spec=ModelSpec(quantization=PER_TOKEN), target=CHEAP, output=tmp_path / "o")
    assert (report.verdict, report.engine.layers_quantized) == ("unverified", 2)
    again = build(mlp, spec=ModelSpec(quantization=PER_TOKEN), target=CHEAP, output=tmp_path / "o")
    assert again.reused == ("everything",)


def test_data_to_compare_on_is_enough_for_a_verdict(mlp: Path, outliers: Path, tmp_path: Path) -> None:
    spec = ModelSpec(quantization=PER_TOKEN, evaluation=EvaluationSpec(data=str(outliers)))
    report = build(mlp, spec=spec, target=CHEAP, output=tmp_path / "o")
    assert (report.verdict, report.calibration, report.repairs) == ("pass", None, None)


def test_other_layers_need_data_and_are_named(path_of: Callable[..., Path], tmp_path: Path) -> None:
    model = path_of(WITH_CONV, w=np.ones((8, 8, 3, 3), np.float32), w1=np.ones((64, 64), np.float32))
    watcher, spec = RecordingWatcher(), ModelSpec(quantization=PER_TOKEN)
    with pytest.raises(DataError, match=r"cannot be calibrated without data; give --calib-data"):
        build(model, spec=spec, target=Target(backend="onnxruntime"), watcher=watcher)
    assert watcher.notes == [
        "one scale for the whole activation, from calibration: 'conv' (only MatMul and Gemm with constant "
        "weights have rows)"
    ]


def test_quantize_needs_no_ranges(mlp: Path, path_of: Callable[..., Path], tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["quantize", str(mlp), "--activations", "per-token", "--output", str(tmp_path / "q.onnx")]
    result = runner.invoke(main, words)
    assert result.exit_code == 0, result.output
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("ReduceMax") == 2
    model = path_of(WITH_CONV, w=np.ones((8, 8, 3, 3), np.float32), w1=np.ones((64, 64), np.float32))
    result = runner.invoke(main, ["quantize", str(model), "--activations", "per-token"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        2,
        "error: there is nothing to quantize with: give ranges, or a weight format; 'x' needs one",
    )


@needs_rtx
@pytest.mark.parametrize("rest", [FP16, FP32])
def test_the_real_builder_runs_rows_in_int8(mlp: Path, tmp_path: Path, rest: HighPrecision) -> None:
    shapes = GivenShapes(min={"x": (1, 64)}, opt={"x": (8, 64)}, max={"x": (8, 64)})
    target = Target(backend="tensorrt-rtx", compute_capabilities=("8.9",), high_precision=rest, shapes=shapes)
    report = build(mlp, spec=ModelSpec(quantization=PER_TOKEN), target=target, output=tmp_path / "o")
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    assert report.kept_fp32 == ()
