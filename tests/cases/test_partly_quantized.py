"""A model that comes with Q/DQ in some layers: the others are quantized with the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from numpy.typing import NDArray
from recording_watcher import RecordingWatcher

from trtq.errors import DataError, ModelError, UsageError
from trtq.models.spec import CalibrationSpec, EvaluationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.calibrate import calibrate
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.quantize import quantize
from trtq.pipeline.sensitivity import sensitivity

CHEAP = Target(backend="onnxruntime")
_RNG = np.random.default_rng(5)
_SCALE, _WEIGHT_SCALE = np.float32(0.03), np.float32(0.004)


def weight(*shape: int) -> NDArray[np.float32]:
    fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return np.asarray(_RNG.standard_normal(shape) * fan**-0.5, np.float32)


def codes(array: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    return np.asarray(np.clip(np.rint(array / scale), -127, 127), np.int8)


FLOAT = weight(16, 16, 3, 3)
GIVEN: dict[str, NDArray[Any]] = {
    "s": np.asarray(_SCALE),
    "z": np.asarray(0, np.int8),
    "ws": np.asarray(_WEIGHT_SCALE),
    "codes": codes(FLOAT, float(_WEIGHT_SCALE)),
}
PAIR = "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)"
CONV0 = "wd = DequantizeLinear (codes, ws, z) [conv0] a = Conv <pads = [1,1,1,1]> (xd, wd)"
REST = """b = Relu (a) [conv1] c = Conv <pads = [1,1,1,1]> (b, w1) e = Relu (c)
    [conv2] y = Conv <pads = [1,1,1,1]> (e, w2)"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a convolution network with 32 samples beside it; returns its path."""

    def write_model(body: str, name: str = "m", opset: int = 17, **weights: NDArray[Any]) -> Path:
        proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": {opset}]>
            g (float[N,16,16,16] x) => (float[N,16,16,16] y) {{ {body} }}""")
        known = {**GIVEN, "w0": FLOAT, "w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3), **weights}
        read = {value for node in proto.graph.node for value in node.input}
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, key) for key, array in known.items() if key in read
        )
        onnx.save(proto, tmp_path / f"{name}.onnx")
        samples = np.random.default_rng(0).standard_normal((32, 16, 16, 16))
        np.savez(tmp_path / "x.npz", x=samples.astype(np.float32))
        return tmp_path / f"{name}.onnx"

    return write_model


def spec_of(model: Path, **evaluation: Any) -> ModelSpec:
    return ModelSpec(
        calibration=CalibrationSpec(data=str(model.parent / "x.npz"), method="mse"),
        quantization=QuantizationSpec(repair=("none",)),
        evaluation=EvaluationSpec(**evaluation),
    )


def pairs_of(report: Report) -> set[tuple[str, str]]:
    """Returns which models were compared, beside the engine."""
    pairs = {(item.candidate, item.reference) for item in report.comparison}
    return {pair for pair in pairs if pair[0] != "engine"}


def built_nodes(report: Report) -> dict[str, onnx.NodeProto]:
    """Returns the nodes of the built model by what they make."""
    proto = onnx.load(Path(report.output) / "model.int8.onnx")
    return {node.output[0]: node for node in proto.graph.node}


def quantizers(report: Report) -> list[str]:
    """Returns the tensors that the built model quantizes, and of the others how many codes it holds."""
    return sorted(node.input[0] for node in built_nodes(report).values() if node.op_type == "QuantizeLinear")


def test_float_layers_are_quantized_and_the_model_as_given_is_the_reference(write: Write) -> None:
    model, watcher = write(f"{PAIR} {CONV0} {REST}"), RecordingWatcher()
    report = build(model, spec=spec_of(model), target=CHEAP, watcher=watcher)
    assert (report.verdict, report.engine.layers_quantized) == ("pass", 3)
    assert [(item.name, item.reason) for item in report.given] == [("conv0", "it comes quantized")]
    assert pairs_of(report) == {("int8", "given"), ("int8", "fp16"), ("fp16", "given")}
    assert quantizers(report) == ["b", "e", "x"]
    assert watcher.notes[0] == (
        "the model comes with Q/DQ ('conv0'), which keeps its scales; quantized beside it: 'conv1', 'conv2'"
    )
    kept = {item.name: item for item in onnx.load(Path(report.output) / "model.int8.onnx").graph.initializer}
    for name, array in GIVEN.items():
        assert np.array_equal(onnx.numpy_helper.to_array(kept[name]), array)


def test_what_is_fp16_beside_given_layers_is_raised_to_an_opset_that_has_it(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}", opset=13)
    report = build(model, spec=spec_of(model), target=replace(CHEAP, high_precision="fp16"))
    assert (report.verdict, report.high_precision, report.kept_fp32) == ("pass", "fp16", ())


@pytest.mark.slow
def test_given_and_new_layers_run_in_int8_in_one_engine(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    report = build(model, spec=spec_of(model), target=Target(compute_capabilities=("8.9",)))
    assert (report.verdict, report.engine.num_realized, report.engine.layers_quantized) == ("pass", 3, 3)


def test_an_embedding_in_int8_leaves_the_products_behind_it_to_the_data(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (int64[N,8] ids) => (float[N,8,32] y) { t = DequantizeLinear (table, s, z)
        [emb] e = Gather (t, ids) [fc0] a = MatMul (e, w0) r = Relu (a) [fc1] y = MatMul (r, w1) }""")
    arrays: dict[str, NDArray[Any]] = {
        "table": codes(weight(50, 32), 0.01),
        "s": np.asarray(0.01, np.float32),
        "z": np.asarray(0, np.int8),
        "w0": weight(32, 64),
        "w1": weight(64, 32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(item, key) for key, item in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", ids=_RNG.integers(0, 50, (32, 8)))
    report = build(tmp_path / "m.onnx", spec=spec_of(tmp_path / "m.onnx"), target=CHEAP)
    assert (report.verdict, report.engine.layers_quantized) == ("pass", 2)
    assert [(item.name, item.reason) for item in report.given] == [("emb", "its table is already quantized")]
    assert quantizers(report) == ["r"]  # fc0 reads what the table's own scale makes


CASES = [
    pytest.param(
        f"wd = DequantizeLinear (codes, ws, z) [conv0] a = Conv <pads = [1,1,1,1]> (x, wd) {REST}",
        {"conv0": "its weight is already quantized"},
        ["b", "e"],
        id="weights alone",
    ),
    pytest.param(
        "[conv0] k = Conv <pads = [1,1,1,1]> (x, w0) q = QuantizeLinear (k, s, z) "
        f"a = DequantizeLinear (q, s, z) {REST}",
        {},
        ["b", "e", "k", "x"],
        id="the output of a layer",
    ),
    pytest.param(
        f"[new] k = Conv <pads = [1,1,1,1]> (x, w0) {PAIR} {CONV0.replace(' a =', ' f =')} "
        f"h = Sigmoid (k) a = Mul (f, h) {REST}",
        {"conv0": "it comes quantized"},
        ["b", "e", "x"],
        id="a tensor that a new layer reads before its pair",
    ),
    pytest.param(
        f"{PAIR} p = MaxPool <kernel_shape = [1,1]> (xd) [new] k = Conv <pads = [1,1,1,1]> (p, w0) "
        f"{CONV0.replace(' a =', ' f =')} h = Sigmoid (k) a = Mul (f, h) {REST}",
        {"conv0": "it comes quantized"},
        ["b", "e", "x"],
        id="a tensor that a new layer reads behind its pair",
    ),
    pytest.param(
        f"{PAIR} {CONV0.replace(' a =', ' f =')} [new] k = Conv <pads = [1,1,1,1]> (x, w0) a = Add (k, xd) "
        f"h = Sigmoid (f) j = Mul (h, a) {REST.replace('(a)', '(j)')}",
        {"conv0": "it comes quantized"},
        ["b", "e", "x"],
        id="a shortcut that is quantized already",
    ),
]


@pytest.mark.parametrize(("body", "given", "tensors"), CASES)
@pytest.mark.parametrize("repair", ["none", "auto"])
def test_every_tensor_has_one_pair(
    body: str, given: dict[str, str], tensors: list[str], repair: str, write: Write
) -> None:
    model = write(body)
    spec = replace(spec_of(model), quantization=QuantizationSpec(repair=(repair,)))
    report = build(model, spec=spec, target=CHEAP)
    assert report.verdict == "pass"
    assert {item.name: item.reason for item in report.given} == given
    assert [name.removesuffix("_rescaled") for name in quantizers(report)] == tensors
    made = built_nodes(report)
    for node in made.values():
        if node.op_type == "QuantizeLinear" and node.input[0] in made:
            assert made[node.input[0]].op_type != "DequantizeLinear"


def test_zero_points_of_the_given_part_are_for_onnx_runtime(write: Write) -> None:
    zero = {"z": np.asarray(120, np.uint8), "wz": np.asarray(0, np.int8)}
    model = write(f"{PAIR} {CONV0.replace('ws, z', 'ws, wz')} {REST}", **zero)
    report = build(model, spec=spec_of(model), target=CHEAP)
    assert (report.verdict, quantizers(report)) == ("pass", ["b", "e", "x"])
    with pytest.raises(ModelError, match="has the zero point 120; TensorRT takes symmetric"):
        build(model, spec=spec_of(model), target=Target(backend="tensorrt-rtx"))


def test_without_data_the_model_is_built_as_it_is_and_its_float_layers_are_named(write: Write) -> None:
    model, watcher = write(f"{PAIR} {CONV0} {REST}"), RecordingWatcher()
    shapes = GivenShapes(opt={"x": (1, 16, 16, 16)})
    report = build(model, spec=ModelSpec(), target=replace(CHEAP, shapes=shapes), watcher=watcher)
    assert (report.verdict, report.engine.layers_quantized, report.high_precision) == (
        "unverified", 1, "as it is",
    )  # fmt: skip
    assert {item.name for item in report.kept_float} == {"conv1", "conv2"}
    assert watcher.warnings == [
        "the model already has Q/DQ, and 2 more layers could be quantized, such as 'conv1'; no data "
        "is there to do it with, so it is built as it is; give --calib-data"
    ]


def test_layers_that_are_skipped_stay_float_beside_given_ones(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    spec = replace(spec_of(model), layers=LayerSpec(skip=("conv1",)))
    report = build(model, spec=spec, target=CHEAP)
    assert report.engine.layers_quantized == 2
    assert [item.name for item in report.kept_float] == ["conv1"]


def test_fp16_keeps_what_comes_quantized(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    report = build(model, spec=spec_of(model), target=replace(CHEAP, precision="fp16"))
    assert (report.precision, report.verdict, pairs_of(report)) == ("fp16", "pass", {("fp16", "given")})
    assert report.engine.layers_quantized == 1


def test_a_float_reference_is_what_the_verdict_compares_with(write: Write) -> None:
    first = {"w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3)}
    model = write(f"{PAIR} {CONV0} {REST}", **first)
    reference = write(f"[conv0] a = Conv <pads = [1,1,1,1]> (x, w0) {REST}", "float", **first)
    other = write(f"[conv0] a = Conv <pads = [1,1,1,1]> (x, w0) {REST}", "other")
    report = build(model, spec=spec_of(model, reference=str(reference)), target=CHEAP)
    assert (report.verdict, pairs_of(report)) == ("pass", {("int8", "fp32")})
    assert build(model, spec=spec_of(model, reference=str(reference)), target=CHEAP).reused == ("everything",)
    assert build(model, spec=spec_of(model, reference=str(other)), target=CHEAP).verdict == "fail"


def test_a_fully_quantized_model_passes_by_a_reference_alone(write: Write) -> None:
    arrays = {"w1": weight(16, 16, 3, 3), "w2": weight(16, 16, 3, 3)}
    model = write(f"{PAIR} {CONV0} {REST}", **arrays)
    reference = write(f"[conv0] a = Conv <pads = [1,1,1,1]> (x, w0) {REST}", "float", **arrays)
    whole = quantize(model, calibrate(model, spec=spec_of(model)), model.parent / "q.onnx", spec=ModelSpec())
    alone = build(whole, spec=spec_of(model), target=CHEAP)
    assert (alone.verdict, pairs_of(alone), alone.calibration) == ("unverified", {("int8", "given")}, None)
    assert alone.reasons == (
        "the model was already quantized and was compared with itself, which does not show what "
        "quantization cost; give the float model with --reference",
    )
    judged = build(whole, spec=spec_of(model, reference=str(reference)), target=CHEAP)
    assert (judged.verdict, pairs_of(judged)) == ("pass", {("int8", "fp32")})


def test_a_reference_that_says_nothing_is_refused(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    reference = write(f"[conv0] a = Conv <pads = [1,1,1,1]> (x, w0) {REST}", "float")
    with pytest.raises(UsageError, match=r"the reference .*m\.onnx has Q/DQ itself; give the float model"):
        build(model, spec=spec_of(model, reference=str(model)), target=CHEAP)
    spec = ModelSpec(evaluation=EvaluationSpec(reference=str(reference)))
    with pytest.raises(DataError, match=r"cannot be compared with .*float\.onnx without data"):
        build(model, spec=spec, target=CHEAP)
    proto = onnx.load(reference)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "z"
    onnx.save(proto, reference)
    with pytest.raises(ModelError, match="give models with the same inputs"):
        build(model, spec=spec_of(model, reference=str(reference)), target=CHEAP)


def test_calibrate_quantize_and_sensitivity_take_such_a_model(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    ranges = calibrate(model, spec=spec_of(model))
    assert list(ranges.tensors) == ["b", "e"]
    path = quantize(model, ranges, model.parent / "q.onnx", spec=ModelSpec(), target=CHEAP)
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (3, 6)
    found = sensitivity(model, spec=spec_of(model), target=CHEAP, output=model.parent / "s.json")
    assert [layer.name for layer in found.layers] == ["conv1", "conv2"]
    with pytest.raises(ModelError, match=r"q\.onnx is quantized already; give the float model"):
        calibrate(path, spec=spec_of(model))


def test_auto_keeps_new_layers_and_never_given_ones(write: Write) -> None:
    model = write(f"{PAIR} {CONV0} {REST}")
    spec = spec_of(model)
    spec = replace(spec, accuracy=replace(spec.accuracy, min_cosine=0.999999))
    report = build(model, spec=spec, target=replace(CHEAP, auto=True))
    assert report.auto is not None
    assert {item.name for item in report.auto.kept} == {"conv1", "conv2"}
    assert report.auto.quantized_macs == pytest.approx(1 / 3)
    assert report.auto.quantized_macs_before == pytest.approx(1)
    assert [item.name for item in report.given] == ["conv0"]


def test_data_that_is_added_is_used(tmp_path: Path) -> None:
    """Also where the new layer reads a tensor that has its range already."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 17]>
        g (float[N,64] x) => (float[N,64] y) {
            q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) w = DequantizeLinear (codes, ws, z)
            [first] a = MatMul (d, w) [second] b = MatMul (d, v) y = Add (a, b)
        }""")
    arrays = {**GIVEN, "codes": codes(weight(64, 64), 0.004), "v": weight(64, 64)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(item, name) for name, item in arrays.items())
    onnx.save(proto, tmp_path / "m.onnx")
    data = str(tmp_path / "x.npz")
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32))
    spec = ModelSpec(evaluation=EvaluationSpec(data=data), quantization=QuantizationSpec(repair=("none",)))
    spec = replace(spec, calibration=CalibrationSpec(method="minmax"), layers=LayerSpec(force=(".",)))
    first = build(tmp_path / "m.onnx", spec=spec, target=CHEAP)
    assert [item.name for item in first.kept_float] == ["second"]
    spec = replace(spec, calibration=CalibrationSpec(data=data, method="minmax"))
    second = build(tmp_path / "m.onnx", spec=spec, target=CHEAP)
    assert second.kept_float == ()
    assert "everything" not in second.reused
