"""What a build decides before it begins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from pickled_workers import Pickled
from recording_watcher import RecordingWatcher

import trtq
from trtq.errors import DataError, MissingDependency, ModelError, UsageError
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    QuantizationSpec,
)
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.progress import Silent, Watcher

CHEAP = Target(backend="onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of opset 18 with one convolution, and data beside it."""
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        small (float[N,3,4,4] x) => (float[N,3,4,4] y) {
            [only] h = Conv <kernel_shape = [1,1]> (x, w) y = Sigmoid (h)
        }
    """)
    weight = np.eye(3, dtype=np.float32)[..., None, None]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "net.onnx")
    for seed, name in enumerate(("calibration", "evaluation")):
        array = np.random.default_rng(seed).standard_normal((4, 3, 4, 4)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=array)
    return tmp_path / "net.onnx"


def spec_of(model: Path) -> ModelSpec:
    return ModelSpec(calibration=CalibrationSpec(data=str(model.parent / "calibration.npz")))


def prepared(
    model: Path,
    spec: ModelSpec | None = None,
    target: Target = CHEAP,
    *,
    output: Path | str | None = None,
    random_data: bool = False,
    watcher: Watcher | None = None,
) -> Job:
    return prepare(model, spec, target, output, random_data, watcher or Silent())


def test_settings_beside_the_model_are_read(model: Path) -> None:
    (model.parent / "model.toml").write_text(
        '[calibration]\ndata = "calibration.npz"\nmethod = "mse"\n[evaluation]\ndata = "evaluation.npz"\n'
    )
    job = prepared(model)
    assert type(job.method).__name__ == "Mse"
    assert job.calibration is not None
    assert job.calibration.origin == str(model.parent / "calibration.npz")
    assert job.evaluation is not None
    assert job.evaluation.origin == str(model.parent / "evaluation.npz")


def test_the_result_goes_beside_the_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(model, spec_of(model)).folder == model.parent / "net.trtq"
    monkeypatch.chdir(model.parent)
    assert prepared(Path("net.onnx"), spec_of(model)).folder == model.parent / "net.trtq"
    assert prepared(model, spec_of(model), output="out").folder == model.parent / "out"


def test_the_calibration_data_is_compared_on_when_there_is_no_other(model: Path) -> None:
    job = prepared(model, spec_of(model))
    assert job.evaluation is not None
    assert job.calibration is not None
    assert job.evaluation.origin == job.calibration.origin


@pytest.mark.parametrize(
    ("target", "fp16", "opset"),
    [
        (Target(backend="tensorrt-rtx"), True, 19),
        (Target(backend="onnxruntime"), False, 18),
        (Target(backend="tensorrt-rtx", high_precision="fp32"), False, 18),
        (Target(backend="onnxruntime", high_precision="fp16"), True, 19),
        (Target(backend="onnxruntime", precision="fp16"), True, 19),
    ],
)
def test_fp16_is_for_backends_that_gain_from_it_unless_asked(
    model: Path, target: Target, fp16: bool, opset: int
) -> None:
    job = prepared(model, spec_of(model), target)
    assert (job.strategy.rest is FP16) is fp16
    assert job.graph.opset == opset


def test_auto_takes_an_engine_builder(model: Path) -> None:
    assert prepared(model, spec_of(model), Target()).backend.name == "tensorrt-rtx"


def test_an_absent_builder_is_told_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtq.pipeline.engine.rtx.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"no engine builder works here: .*pip install 'trtq\[rtx\]'"):
        prepared(tmp_path / "none.onnx", target=Target())


def test_fp16_needs_no_calibration_data_and_takes_what_there_is(model: Path) -> None:
    target = replace(CHEAP, precision="fp16")
    job = prepared(model, ModelSpec(), target)
    assert (job.calibration, job.evaluation, job.placement.quantized) == (None, None, ())
    assert prepared(model, spec_of(model), target).calibration is not None


def test_int8_needs_calibration_data(model: Path) -> None:
    with pytest.raises(DataError, match="cannot be calibrated without data"):
        prepared(model, ModelSpec())


def test_random_data_is_warned_of(model: Path) -> None:
    watcher = RecordingWatcher()
    job = prepared(model, ModelSpec(), random_data=True, watcher=watcher)
    assert job.calibration is not None
    assert job.calibration.is_random
    assert watcher.warnings == ["calibrating with random numbers: the accuracy of this engine means nothing"]


def test_what_loading_changed_is_noted(model: Path) -> None:
    watcher = RecordingWatcher()
    prepared(model, spec_of(model), Target(backend="tensorrt-rtx"), watcher=watcher)
    assert "raised the opset from 18 to 19" in watcher.notes


def test_labels_without_evaluation_data_are_refused(model: Path) -> None:
    spec = replace(spec_of(model), evaluation=EvaluationSpec(labels="labels"))
    with pytest.raises(DataError, match="labels 'labels' are named without evaluation data"):
        prepared(model, spec)


def test_an_unknown_method_is_refused(model: Path) -> None:
    spec = ModelSpec(calibration=replace(spec_of(model).calibration, method="max"))
    with pytest.raises(UsageError, match="there is no calibration method 'max'"):
        prepared(model, spec)


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (ModelSpec(), GivenShapes(opt={"z": (1, 3, 4, 4)}), "given for 'z', but the model's inputs are x"),
        (
            ModelSpec(),
            GivenShapes(max={"x": (1, 2, 4, 4)}),
            r"1x2x4x4 does not fit input 'x', which is \(N, 3",
        ),
        (
            ModelSpec(inputs={"x": InputSpec((1,), (1,), (1,))}),
            GivenShapes(),
            "shape 1 does not fit input 'x'",
        ),
        (ModelSpec(), GivenShapes(min={"x": (4, 3, 4, 4)}, max={"x": (2, 3, 4, 4)}), "min <= opt <= max"),
    ],
)
def test_given_shapes_are_checked_before_any_data_is_read(
    model: Path, spec: ModelSpec, shapes: GivenShapes, message: str
) -> None:
    spec = replace(spec, calibration=CalibrationSpec(data=str(model.parent / "none.npz")))
    with pytest.raises(UsageError, match=message):
        prepared(model, spec, replace(CHEAP, shapes=shapes))


def test_shapes_that_only_the_data_knows_are_not_asked_for(model: Path) -> None:
    assert prepared(model, spec_of(model)).graph.inputs[0].is_dynamic


def test_the_output_folder_may_not_hold_what_is_read(model: Path) -> None:
    with pytest.raises(UsageError, match=r"net\.onnx is inside the output folder .* choose another"):
        prepared(model, spec_of(model), output=model.parent)
    script = f"{model.parent / 'out' / 'feeds.py'}:feeds"
    for spec in (
        ModelSpec(calibration=CalibrationSpec(data=script)),
        replace(spec_of(model), evaluation=EvaluationSpec(data=script)),
    ):
        with pytest.raises(UsageError, match=r"feeds\.py:feeds is inside the output folder"):
            prepared(model, spec, output=model.parent / "out")


def quantized(model: Path) -> Path:
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        small (float[N,4] x) => (float[N,4] y)
        <float s = {0.5}, int8 z = {0}> {
          q = QuantizeLinear (x, s, z)
          y = DequantizeLinear (q, s, z)
        }""")
    onnx.save(proto, model.parent / "q.onnx")
    return model.parent / "q.onnx"


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_quantized_model_needs_no_data_and_stays_int8(model: Path, precision: str) -> None:
    watcher = RecordingWatcher()
    target = replace(CHEAP, precision=precision)  # type: ignore[arg-type]
    job = prepared(quantized(model), ModelSpec(), target, watcher=watcher)
    assert job.is_as_given
    assert job.target.precision == "int8"
    assert (job.calibration, job.evaluation, job.shape_data) == (None, None, None)
    assert watcher.notes[-1] == "the model is quantized already: it is built as it is, without calibration"


def test_the_shapes_of_a_quantized_model_come_from_what_data_there_is(model: Path) -> None:
    np.savez(model.parent / "flat.npz", x=np.ones((3, 4), np.float32))
    spec = ModelSpec(evaluation=EvaluationSpec(data=str(model.parent / "flat.npz")))
    job = prepared(quantized(model), spec)
    assert job.shape_data is not None
    assert job.shape_data is job.evaluation


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        prepared(tmp_path / "none.onnx")


def test_one_scale_a_weight_is_for_q_dq(model: Path) -> None:
    spec = replace(spec_of(model), quantization=QuantizationSpec(weight_granularity="per-tensor"))
    target = replace(CHEAP, precision="weights", weights=WeightScheme("int8"))
    with pytest.raises(
        UsageError, match=r"^--weight-granularity per-tensor is for INT8 by Q/DQ: .* --weights"
    ):
        prepared(model, spec, target)


@pytest.mark.parametrize(("precision", "refused"), [("int8", True), ("fp16", False)])
def test_zero_points_are_for_onnx_runtime(model: Path, precision: Precision, refused: bool) -> None:
    spec = replace(spec_of(model), quantization=QuantizationSpec(activations="asymmetric"))
    assert prepared(model, spec).spec == spec
    target = Target(backend="tensorrt-rtx", precision=precision)
    message = "^--activations asymmetric is for --backend onnxruntime, not tensorrt-rtx: TensorRT takes no"
    with pytest.raises(UsageError, match=message) if refused else nullcontext():
        prepared(model, spec, target)


# What a second build may use again: the stages whose key is the same

Change = Callable[[Path, ModelSpec, Target], tuple[ModelSpec, Target]]


def _gate(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, accuracy=AccuracySpec(min_cosine=0.5)), target


def _evaluation(model: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, evaluation=EvaluationSpec(data=str(model.parent / "evaluation.npz"))), target


def _keep_fp32(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, layers=LayerSpec(keep_fp32=("only",))), target


def _one_scale(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, quantization=QuantizationSpec(weight_granularity="per-tensor")), target


def _asymmetric(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, quantization=QuantizationSpec(activations="asymmetric")), target


def _capability(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return spec, replace(target, compute_capabilities=("8.9",))


def _rest(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return spec, replace(target, high_precision="fp32")


def _profile(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    shape = (2, 3, 4, 4)
    return replace(spec, inputs={"x": InputSpec(shape, shape, shape)}), target


def _method(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, calibration=replace(spec.calibration, method="minmax")), target


def _batch_size(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, calibration=replace(spec.calibration, batch_size=2)), target


def _skip(_: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    return replace(spec, layers=LayerSpec(skip=("only",))), target


def _data(model: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    data = str(model.parent / "evaluation.npz")
    return replace(spec, calibration=replace(spec.calibration, data=data)), target


def _copied_data(model: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    copy = model.parent / "copy.npz"
    copy.write_bytes((model.parent / "calibration.npz").read_bytes())
    return replace(spec, calibration=replace(spec.calibration, data=str(copy))), target


def _model(model: Path, spec: ModelSpec, target: Target) -> tuple[ModelSpec, Target]:
    proto = onnx.load(model)
    proto.doc_string = "changed"
    onnx.save(proto, model)
    return spec, target


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda _, spec, target: (spec, target), {"ranges", "engine", "everything"}),
        (_copied_data, {"ranges", "engine", "everything"}),
        (_gate, {"ranges", "engine"}),
        (_evaluation, {"ranges", "engine"}),
        (_keep_fp32, set()),
        (_one_scale, set()),
        (_asymmetric, set()),
        (_capability, {"ranges"}),
        (_rest, {"ranges"}),
        (_profile, {"ranges"}),
        (_method, set()),
        (_batch_size, set()),
        (_skip, set()),
        (_data, set()),
        (_model, set()),
    ],
)
def test_a_change_spoils_the_stages_that_depend_on_it(model: Path, change: Change, same: set[str]) -> None:
    spec, target = spec_of(model), CHEAP
    before = prepared(model, spec, target).keys
    spec, target = change(model, spec, target)
    after = prepared(model, spec, target).keys
    assert {name for name in before if before[name] == after[name]} == same


def test_edited_evaluation_data_is_compared_again(model: Path) -> None:
    spec = replace(spec_of(model), evaluation=EvaluationSpec(data=str(model.parent / "evaluation.npz")))
    before = prepared(model, spec).keys
    np.savez(model.parent / "evaluation.npz", x=np.zeros((4, 3, 4, 4), np.float32))
    after = prepared(model, spec).keys
    assert {name for name in before if before[name] == after[name]} == {"ranges", "engine"}


def test_data_from_a_script_is_never_known_to_be_unchanged(model: Path) -> None:
    script = model.parent / "feeds.py"
    script.write_text("def feeds():\n    yield {}\n")
    spec = ModelSpec(calibration=CalibrationSpec(data=f"{script}:feeds"))
    assert not set(prepared(model, spec).keys.values()) & set(prepared(model, spec).keys.values())


def test_workers_find_the_codes_of_weights(path_of: Callable[..., Path], tmp_path: Path) -> None:
    rng, workers = np.random.default_rng(0), Pickled()
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    model = path_of("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", opset=21, w=weight)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((16, 64)).astype(np.float32))
    report = trtq.build(
        model,
        weights="int4",
        weight_method="gptq",
        calib_data=str(tmp_path / "x.npz"),
        backend="onnxruntime",
        workers=workers,
    )
    assert report.weights is not None
    assert (["x"], ["x"]) in workers.done
