"""`--fp8`: activations and weights in E4M3, by the same ranges, repairs and gate as INT8."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from trtq.calibrators.ranges import read_ranges
from trtq.cli import main
from trtq.errors import UsageError
from trtq.models.spec import CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.sensitivity import read_sensitivity

_NET = """<ir_version: 9, opset_import: ["": 17]>
    net (float[N,16,8,8] x) => (float[N,8] y) {
        [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c)
        p = GlobalAveragePool(r) f = Flatten(p) [fc] y = Gemm<transB = 1>(f, v) }"""
_FP8 = TensorProto.FLOAT8E4M3FN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(_NET)
    for name, shape in (("w", (32, 16, 3, 3)), ("v", (8, 32))):
        values = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 16, 8, 8)).astype(np.float32))
    return tmp_path


def _spec(folder: Path, repair: str = "none") -> ModelSpec:
    return ModelSpec(
        calibration=CalibrationSpec(data=str(folder / "x.npz"), method="minmax"),
        quantization=QuantizationSpec(repair=(repair,)),
    )


def _trtq(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def _run(path: Path, **feeds: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _round(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    codes = np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return np.asarray(codes.astype(np.float32) * scale)


def _amax(folder: Path, tensor: str) -> float:
    return read_ranges(folder / "o" / "ranges.json").amax(tensor)


def test_a_build_holds_codes_and_scales_of_fp8(folder: Path) -> None:
    target = Target(precision="fp8", compute_capabilities=("8.9",), high_precision="fp32")
    report = build(folder / "m.onnx", spec=_spec(folder), target=target, output=folder / "o")
    assert (report.verdict, report.precision) == ("pass", "fp8")
    names = {path.name for path in (folder / "o").iterdir()}
    assert {"model.fp8.onnx", "ranges.json", "model.engine"} <= names
    assert not {"model.int8.onnx", "calibration.cache"} & names
    graph = onnx.load(folder / "o" / "model.fp8.onnx").graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    kinds = {item.name: item.data_type for item in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) == 2
    assert all(constants[node.input[1]].shape == () and kinds[node.input[2]] == _FP8 for node in pairs)
    assert constants["x_scale"] == pytest.approx(_amax(folder, "x") / 448)
    assert constants["w_scale"].shape == (32,)
    assert kinds["w_quantized"] == _FP8


def test_the_quantized_model_computes_what_fp8_numbers_give(folder: Path) -> None:
    for arguments in (
        ("calibrate", folder / "m.onnx", "--fp8", "--calib-data", folder / "x.npz", "--repair", "none",
         "--calib-method", "minmax", "--output", folder / "r.json"),
        ("quantize", folder / "m.onnx", "--ranges", folder / "r.json", "--high-precision", "fp32",
         "--output", folder / "q.onnx"),
    ):  # fmt: skip
        assert _trtq(*arguments)[0] == 0
    x = np.load(folder / "x.npz")["x"]
    found = _run(folder / "q.onnx", x=x)
    constants = {
        item.name: numpy_helper.to_array(item) for item in onnx.load(folder / "q.onnx").graph.initializer
    }
    floats = onnx.load(folder / "m.onnx")
    for item in list(floats.graph.initializer):
        values, scale = numpy_helper.to_array(item), constants[f"{item.name}_scale"]
        spread = scale.reshape(-1, *(1,) * (values.ndim - 1))
        item.CopyFrom(numpy_helper.from_array(_round(values, spread), item.name))
    onnx.save(floats, folder / "f.onnx")
    floats = onnx.shape_inference.infer_shapes(floats)
    hidden = onnx.utils.Extractor(floats).extract_model(["x"], ["f"])
    onnx.save(hidden, folder / "h.onnx")
    rest = onnx.utils.Extractor(floats).extract_model(["f"], ["y"])
    onnx.save(rest, folder / "t.onnx")
    pooled = _run(folder / "h.onnx", x=_round(x, constants["x_scale"]))
    wanted = _run(folder / "t.onnx", f=_round(pooled, constants["f_scale"]))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_ranges_know_the_format_that_they_are_for(folder: Path) -> None:
    model, data = folder / "m.onnx", ("--calib-data", folder / "x.npz", "--repair", "none")
    for name, option in (("8", ()), ("f", ("--fp8",))):
        assert _trtq("calibrate", model, *option, *data, "--output", folder / f"{name}.json")[0] == 0
    assert read_ranges(folder / "8.json").formats == {}
    assert set(read_ranges(folder / "f.json").formats.values()) == {"fp8"}
    code, said = _trtq("quantize", model, "--ranges", folder / "f.json")
    assert code == 0
    assert (folder / "m.fp8.onnx").exists()
    assert "calibrated for" not in said
    code, said = _trtq("quantize", model, "--ranges", folder / "8.json", "--fp8")
    assert code == 0
    assert "was calibrated for INT8, and it is quantized to FP8; calibrate with --fp8 to lose less" in said


def test_statistics_give_ranges_for_either_format(folder: Path) -> None:
    model, data = folder / "m.onnx", ("--calib-data", folder / "x.npz", "--repair", "none")
    assert (
        _trtq(
            "calibrate", model, *data, "--save-statistics", folder / "s.npz", "--output", folder / "r.json"
        )[0]
        == 0
    )
    method = ("--calib-method", "mse", "--output", folder / "f.json")
    assert _trtq("calibrate", model, "--fp8", "--statistics", folder / "s.npz", *method)[0] == 0
    assert set(read_ranges(folder / "f.json").formats.values()) == {"fp8"}


def test_the_cost_of_layers_is_measured_in_fp8(folder: Path) -> None:
    code, _ = _trtq(
        "sensitivity", folder / "m.onnx", "--fp8", "--calib-data", folder / "x.npz", "--repair", "none",
        "--output", folder / "s.json",
    )  # fmt: skip
    assert code == 0
    layers = json.loads((folder / "s.json").read_bytes())["layers"]
    assert {layer["name"] for layer in layers} == {"conv", "fc"}


@pytest.mark.parametrize("capability", ["8.6", "8.0"])
def test_a_gpu_without_fp8_is_refused(folder: Path, capability: str) -> None:
    message = (
        f"--fp8 needs GPUs of compute capability 8.9 or newer, and the engine is for {capability}; "
        "give --compute-capability 8.9, or take --int8"
    )
    code, said = _trtq("build", folder / "m.onnx", "--fp8", "--calib-data", folder / "x.npz",
                       "--backend", "tensorrt-rtx", "--compute-capability", capability)  # fmt: skip
    assert (code, message in said) == (2, True), said


def test_what_contradicts_fp8_is_refused(folder: Path) -> None:
    build_it = ("build", folder / "m.onnx", "--fp8", "--calib-data", folder / "x.npz")
    code, said = _trtq(*build_it, "--int8")
    assert (code, "--int8 and --fp8 contradict each other; give one of them" in said) == (2, True)
    code, said = _trtq(*build_it, "--activations", "asymmetric", "--backend", "onnxruntime")
    assert code == 2
    assert "--activations asymmetric is for INT8: fp8 codes have no zero point" in said
    target = Target(precision="fp8", quantization="implicit")
    with pytest.raises(UsageError, match=r"^--quantization implicit makes INT8 engines, no fp8 one$"):
        build(folder / "m.onnx", spec=_spec(folder), target=target, output=folder / "o")


def test_a_cache_becomes_fp8_at_the_same_ranges(folder: Path) -> None:
    model, data, target = folder / "m.onnx", folder / "x.npz", ("--compute-capability", "8.9")
    build_it = ("build", model, "--int8", "--calib-data", data, "--repair", "none", *target)
    assert _trtq(*build_it, "--output", folder / "o")[0] == 0
    cache = folder / "o" / "calibration.cache"
    code, said = _trtq(
        "migrate", model, cache, "--fp8", "--eval-data", data, *target, "--output", folder / "f"
    )
    assert code == 0, said
    constants = onnx.load(folder / "f" / "model.fp8.onnx").graph.initializer
    scale = next(numpy_helper.to_array(item) for item in constants if item.name == "x_scale")
    assert scale == pytest.approx(_amax(folder, "x") / 448, rel=1e-6)


def test_weights_are_rounded_by_their_products_in_fp8_too(folder: Path) -> None:
    target = Target(precision="fp8", compute_capabilities=("8.9",), high_precision="fp32")
    plain = build(folder / "m.onnx", spec=_spec(folder), target=target, output=folder / "p")
    better = build(folder / "m.onnx", spec=_spec(folder, "adaround"), target=target, output=folder / "a")
    found = [report.comparison[0].sqnr_db for report in (plain, better)]
    assert found[1] > found[0]


def test_the_layers_of_a_build_are_measured_in_its_format(folder: Path) -> None:
    target = Target(precision="fp8", compute_capabilities=("8.9",), high_precision="fp32")
    report = build(folder / "m.onnx", spec=_spec(folder), target=target, output=folder / "o")
    assert _trtq("sensitivity", folder / "o", "--output", folder / "s.json")[0] == 0
    whole = read_sensitivity(folder / "s.json").all_quantized
    assert whole is not None
    assert whole.sqnr_db == pytest.approx(report.comparison[0].sqnr_db, abs=0.5)


def test_what_fp8_leaves_float_stays_float_when_the_model_is_built_again(folder: Path) -> None:
    """The narrow convolution has a place in INT8, which nobody asked for."""
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17]>
        net (float[N,3,8,8] x) => (float[N,32,8,8] y) {
            [stem] c = Conv(x, w) r = Relu(c) [body] y = Conv(r, v) }""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (32, 3, 1, 1)), ("v", (32, 32, 1, 1))):
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "x.npz", x=rng.standard_normal((32, 3, 8, 8)).astype(np.float32))
    target = Target(precision="fp8", compute_capabilities=("8.9",))
    first = build(folder / "m.onnx", spec=_spec(folder), target=target, output=folder / "o")
    again = build(folder / "o" / "model.fp8.onnx", spec=_spec(folder), target=target, output=folder / "p")
    for report in (first, again):
        assert report.engine.layers_realized == {"fp8": 1}
    assert [(node.name, node.reason.partition(":")[0]) for node in first.kept_float] == [("stem", "narrow")]
