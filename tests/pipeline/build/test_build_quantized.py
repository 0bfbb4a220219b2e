"""Models that were quantized elsewhere: built as they are, repaired, or refused with the node named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

import trtq
from trtq.models.spec import AccuracySpec, CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.engine.target import Target

WITHOUT_ENGINE = Target(backend="onnxruntime")


def spec_of(small: Path) -> ModelSpec:
    return ModelSpec(calibration=CalibrationSpec(data=str(small.parent / "data.npz")))


def quantize_elsewhere(small: Path, **options: Any) -> Path:
    """Returns the small model as ONNX Runtime's own tool quantizes it."""
    from onnxruntime import quantization as tool

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Any] = iter(np.load(small.parent / "data.npz")["x"])

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.feeds, None)
            return None if sample is None else {"x": sample[None]}

    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    extra.update(options.pop("extra", {}))
    settings = {
        "quant_format": tool.QuantFormat.QDQ,
        "activation_type": tool.QuantType.QInt8,
        "weight_type": tool.QuantType.QInt8,
        "per_channel": True,
    }
    settings.update({key: getattr(getattr(tool, kind), name) for key, (kind, name) in options.items()})
    tool.quantize_static(small, small.parent / "q.onnx", Reader(), **settings, extra_options=extra)
    return small.parent / "q.onnx"


def test_a_quantized_model_is_built_as_it_is(small: Path) -> None:
    model = quantize_elsewhere(small)
    report = build(model, spec=spec_of(small))
    assert "the model is quantized already: it is built as it is, without calibration" in report.notes
    assert (report.calibration, report.high_precision) == (None, "as it is")
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    assert report.verdict == "unverified"
    ours, theirs = (onnx.load(path) for path in (model.parent / "q.trtq" / "model.int8.onnx", model))
    pairs = [node.op_type for node in theirs.graph.node].count("DequantizeLinear")
    assert [node.op_type for node in ours.graph.node].count("DequantizeLinear") == pairs
    names = {path.name for path in (model.parent / "q.trtq").iterdir()}
    assert names == {"model.engine", "model.int8.onnx", "report.html", "report.json", "manifest.json"}


def test_a_quantized_model_takes_its_profile_from_the_data(small: Path) -> None:
    report = build(quantize_elsewhere(small), spec=spec_of(small), target=WITHOUT_ENGINE)
    assert report.engine.profiles["x"].max == (8, 3, 8, 8)
    assert any("profile from the data" in note for note in report.notes)


def test_a_quantized_model_stays_int8_when_fp16_is_asked(small: Path) -> None:
    target = Target(precision="fp16", backend="onnxruntime")
    assert build(quantize_elsewhere(small), spec=spec_of(small), target=target).precision == "int8"


def test_a_quantized_model_with_labels_has_accuracy_and_no_verdict(
    demo_onnxruntime: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_onnxruntime, tmp_path, dirs_exist_ok=True)
    built = read_report(tmp_path / "model.trtq" / "report.json")
    model = shutil.copy(tmp_path / "model.trtq" / "model.int8.onnx", tmp_path / "quantized.onnx")
    report = build(model, target=WITHOUT_ENGINE)
    assert report.accuracy == dict.fromkeys(("given", "int8", "engine"), built.accuracy["int8"])
    assert report.verdict == "unverified"
    assert "was compared with itself" in report.reasons[0]


def test_a_second_run_of_a_quantized_model_says_only_what_was_there_to_use(small: Path) -> None:
    model = quantize_elsewhere(small)
    build(model, spec=spec_of(small), target=WITHOUT_ENGINE)
    spec = replace(spec_of(small), accuracy=AccuracySpec(min_cosine=0.5))
    assert build(model, spec=spec, target=WITHOUT_ENGINE).reused == ("engine",)


REFUSED = [
    pytest.param(
        {"activation_type": ("QuantType", "QUInt8"), "extra": {"ActivationSymmetric": False}},
        r"node '\w+_QuantizeLinear' \(QuantizeLinear\): it has the zero point \d+; TensorRT takes symmetric",
        id="asymmetric uint8",
    ),
    pytest.param(
        {"extra": {"ActivationSymmetric": False}},
        r"node '\w+_QuantizeLinear' \(QuantizeLinear\): it has the zero point -?\d+; TensorRT takes symm",
        id="asymmetric",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_a_quantized_model_without_an_exact_repair_is_refused_with_the_node_named(
    small: Path, options: dict[str, Any], message: str
) -> None:
    model = quantize_elsewhere(small, **options)
    with pytest.raises(trtq.TrtqError, match=message) as caught:
        build(model, spec=spec_of(small))
    assert caught.value.exit_code == 2
    assert not (model.parent / "q.trtq").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        pytest.param({"activation_type": ("QuantType", "QUInt8")}, "zero-point", id="uint8"),
        pytest.param({"extra": {"QuantizeBias": True}}, "int32", id="int32 bias"),
        pytest.param({"quant_format": ("QuantFormat", "QOperator")}, "operator", id="QOperator"),
    ],
)
def test_what_onnx_runtime_writes_otherwise_is_repaired_and_computes_the_same(
    small: Path, options: dict[str, Any], rule: str, outputs_of: Callable[..., list[Any]]
) -> None:
    model = quantize_elsewhere(small, **options)
    report = build(model, spec=spec_of(small))
    assert any(note.startswith(f"repaired ({rule})") for note in report.notes)
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    before, after = outputs_of(model), outputs_of(Path(report.output) / "model.int8.onnx")
    step = np.ptp(before[0]) / 255
    assert np.abs(before[0] - after[0]).max() <= 1.01 * step  # a tie may be rounded to the other side


@pytest.mark.slow
@pytest.mark.parametrize("options", [case.values[0] for case in REFUSED])
def test_requantize_makes_the_rest_symmetric_and_says_so(
    small: Path, options: dict[str, Any], outputs_of: Callable[..., list[Any]]
) -> None:
    model = quantize_elsewhere(small, **options)
    report = build(model, spec=spec_of(small), target=Target(requantize=True))
    assert any("quantized again" in warning for warning in report.warnings)
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    before, after = outputs_of(model), outputs_of(Path(report.output) / "model.int8.onnx")
    assert np.corrcoef(before[0].ravel(), after[0].ravel())[0, 1] > 0.999


def test_dynamic_quantization_has_no_repair(small: Path) -> None:
    from onnxruntime import quantization as tool

    model = small.parent / "dynamic.onnx"
    tool.quantize_dynamic(small, model)
    with pytest.raises(trtq.TrtqError, match=r"is not an operator of TensorRT"):
        build(model, spec=spec_of(small), target=Target(requantize=True))
