"""The whole job with implicit quantization: by TensorRT's own calibrators, and by ranges of ours."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from small_builds import files_of, plan_of, spec_of

from trtq.calibrators.cache import parse_cache, read_cache
from trtq.calibrators.ranges import read_ranges
from trtq.cli import main
from trtq.errors import UsageError
from trtq.models.session import open_session
from trtq.models.spec import QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.engine.target import Target
from trtq.pipeline.engine.tensorrt import TensorRt

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
EXPLICIT = Target(backend="tensorrt")
IMPLICIT = Target(backend="tensorrt", quantization="implicit")
END = "--minShapes=x:1x3x8x8 --optShapes=x:8x3x8x8 --maxShapes=x:8x3x8x8 --profilingVerbosity=detailed"
Install = Callable[[str], None]


# Implicit, by TensorRT's own calibrators


@pytest.mark.parametrize("version", [OLD, TEN])
def test_an_implicit_build_is_calibrated_by_tensorrt(version: str, small: Path, install: Install) -> None:
    install(version)
    report = build(small, spec=spec_of(small), target=IMPLICIT)
    assert report.engine.quantization == "implicit"
    assert report.engine.quantization_reason == "as asked; TensorRT 11 no longer has it"
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    assert "TensorRT's own EntropyCalibration2 runs over the data" in report.notes
    assert report.calibration is not None
    assert report.calibration.method == "TensorRT's own EntropyCalibration2"
    assert report.calibration.data == str(small.parent / "data.npz")
    assert (report.calibration.samples, report.calibration.seconds) == (16, None)
    assert files_of(report) == {
        "calibration.cache", "manifest.json", "model.engine", "model.float.onnx", "model.fp16.onnx",
        "report.html", "report.json", "tensors.json",
    }  # fmt: skip
    cache = read_cache(Path(report.output) / "calibration.cache")
    assert (cache.algorithm, list(cache.scales)) == ("EntropyCalibration2", ["x", "h", "r", "y"])
    plan = plan_of(report)
    assert plan["flags"] == ["INT8", "FP16"]
    assert len(plan["calibration"]["firsts"]) == 2
    assert plan["calibration_profile"] == {"x": [[8, 3, 8, 8]] * 3}
    assert read_manifest(Path(report.output)).commands["engine"] == (
        "trtexec --onnx=model.float.onnx --saveEngine=model.engine --int8 --fp16 "
        f"--calib=calibration.cache {END} --skipInference"
    )


def test_the_verdict_on_an_implicit_build_is_on_the_engine(
    small: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TEN)
    report = build(small, spec=spec_of(small), target=IMPLICIT)
    assert (report.verdict, report.reasons) == ("pass", ())
    assert {item.candidate for item in report.comparison} == {"engine", "fp16"}

    def wrong(backend: TensorRt, plan: bytes, name: str) -> Any:
        model = ir.load(json.loads(plan)["model"])
        tensor = model.graph.initializers["w2"].const_value
        assert tensor is not None
        model.graph.initializers["w2"].const_value = ir.tensor(-tensor.numpy(), name="w2")
        from polygraphy.backend import onnxrt as polygraphy

        return polygraphy.OnnxrtRunner(open_session(model, optimize=False), name=name)

    monkeypatch.setattr(TensorRt, "runner", wrong)
    report = build(small, spec=spec_of(small), target=IMPLICIT, output=small.parent / "wrong")
    assert report.verdict == "fail"
    assert report.reasons[0].startswith("output 'y' has cosine -1.0000 to fp32, the gate requires 0.99")


def test_an_implicit_engine_that_is_not_run_is_not_judged(
    small: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TEN)
    monkeypatch.setattr(TensorRt, "runner", lambda *_: None)
    report = build(small, spec=spec_of(small), target=IMPLICIT)
    assert report.verdict == "unverified"
    assert report.reasons == ("int8 was not run, so its accuracy is unknown",)


def test_repairs_by_name_need_q_dq(small: Path, install: Install) -> None:
    install(TEN)
    spec = replace(spec_of(small), quantization=QuantizationSpec(("bias", "smooth")))
    with pytest.raises(UsageError, match="--repair bias,smooth is for Q/DQ: quantized implicitly, TensorRT"):
        build(small, spec=spec, target=IMPLICIT)


def test_one_scale_for_a_weight_needs_q_dq(small: Path, install: Install) -> None:
    install(TEN)
    spec = replace(spec_of(small), quantization=QuantizationSpec(weight_granularity="per-tensor"))
    with pytest.raises(UsageError, match="--weight-granularity per-tensor is for INT8 by Q/DQ: quantizing"):
        build(small, spec=spec, target=IMPLICIT)


def test_random_data_calibrates_and_is_unverified(small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, target=IMPLICIT, random_data=True)
    assert report.verdict == "unverified"
    assert report.calibration is not None
    assert report.calibration.random


def test_samples_that_fill_no_batch_are_not_counted(small: Path, install: Install) -> None:
    install(TEN)
    data = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    np.savez(small.parent / "data.npz", x=data)
    report = build(small, spec=spec_of(small), target=IMPLICIT)
    assert report.calibration is not None
    assert report.calibration.samples == 16


def test_a_minmax_cache_is_made_trtexecs_by_the_command_that_is_told(
    small: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TEN)
    report = build(small, spec=spec_of(small, "minmax"), target=IMPLICIT)
    assert plan_of(report)["calibration"]["algorithm"] == "IInt8MinMaxCalibrator"
    folder = Path(report.output)
    convert, trtexec = read_manifest(folder).commands["engine"].split(" && ")
    assert "--calib=calibration.entropy2.cache" in trtexec
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, shlex.split(convert)[1:], catch_exceptions=False)
    assert result.exit_code == 0
    ours, theirs = (read_cache(folder / name) for name in ("calibration.cache", "calibration.entropy2.cache"))
    assert (ours.algorithm, theirs.algorithm) == ("MinMaxCalibration", "EntropyCalibration2")
    assert ours.scales == theirs.scales


# Implicit, by ranges of ours


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_our_ranges_go_as_a_cache_with_every_float_tensor(method: str, small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, spec=spec_of(small, method), target=IMPLICIT)
    assert "TensorRT gets our ranges, as a calibration cache" in report.notes
    assert report.calibration is not None
    assert report.calibration.method.startswith(f"{method}(")
    assert report.calibration.samples == 16
    assert report.calibration.seconds is not None
    ranges = read_ranges(Path(report.output) / "ranges.json")
    cache = (Path(report.output) / "calibration.cache").read_bytes()
    assert cache.startswith(b"TRT-101601-EntropyCalibration2\n")
    scales = parse_cache(cache).scales
    assert list(scales) == list(ranges.tensors) == ["x", "h", "r", "y"]
    plan = plan_of(report)
    assert plan["calibration"]["scales"] == pytest.approx(scales)
    assert plan["calibration"]["firsts"] == []
    assert "ranges.json" in files_of(report)


def test_what_a_softmax_gets_has_a_range_by_cross_entropy(small: Path, install: Install) -> None:
    install(TEN)
    model = onnx.load(small)
    model.graph.node.append(onnx.helper.make_node("Softmax", ["y"], ["p"], axis=1))
    model.graph.output[0].name = "p"
    onnx.save(model, small)
    spec = spec_of(small, "cross-entropy")
    spec = replace(spec, calibration=replace(spec.calibration, batch_size=4))
    report = build(small, spec=spec, target=IMPLICIT)
    assert "TensorRT gets our ranges, as a calibration cache" in report.notes
    assert report.calibration is not None
    assert report.calibration.method.endswith(" + cross-entropy")
    ranges = read_ranges(Path(report.output) / "ranges.json").tensors
    scales = parse_cache((Path(report.output) / "calibration.cache").read_bytes()).scales
    assert scales["y"] == pytest.approx(ranges["y"].amax / 127)
    other = build(small, spec=spec_of(small, "mse"), target=IMPLICIT, output=small.parent / "other").output
    others = read_ranges(Path(other) / "ranges.json").tensors
    assert ranges["y"].amax != others["y"].amax


def test_a_parameter_of_its_own_makes_entropy_our_method(small: Path, install: Install) -> None:
    install(TEN)
    spec = spec_of(small)
    spec = replace(spec, calibration=replace(spec.calibration, parameters={"num_bins": 1024}))
    report = build(small, spec=spec, target=IMPLICIT)
    assert "TensorRT gets our ranges, as a calibration cache" in report.notes


# Layers that are kept


def test_skipped_layers_become_constraints(small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, spec=spec_of(small, skip=("second",), keep_fp32=("act",)), target=IMPLICIT)
    plan = plan_of(report)
    assert plan["kept"] == {"act": ["FLOAT", ["FLOAT"]], "second": ["HALF", []]}
    assert plan["flags"] == ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert (report.engine.num_realized, report.engine.layers_quantized) == (1, 1)
    assert [item.name for item in report.kept_float] == ["second"]
    assert read_manifest(Path(report.output)).layers == {"first": "Int8", "second": "Half"}


def test_an_fp32_rest_allows_int8_alone(small: Path, install: Install) -> None:
    install(TEN)
    target = replace(IMPLICIT, high_precision="fp32")
    report = build(small, spec=spec_of(small, skip=("second",)), target=target)
    assert plan_of(report)["flags"] == ["INT8", "OBEY_PRECISION_CONSTRAINTS"]
    assert plan_of(report)["kept"] == {"second": ["FLOAT", []]}
    assert report.high_precision == "fp32"
    assert report.kept_fp32 == ()


def test_what_fp16_would_ruin_is_bound_to_fp32(small: Path, install: Install) -> None:
    install(TEN)
    data = np.load(small.parent / "data.npz")["x"]
    np.savez(small.parent / "data.npz", x=data * 1e5)
    report = build(small, spec=spec_of(small, "percentile"), target=IMPLICIT)
    assert {item.name for item in report.kept_fp32} == {"first", "act", "second"}
    assert plan_of(report)["kept"].keys() == {"first", "act", "second"}


def test_scales_found_in_each_run_need_q_dq(small: Path, install: Install) -> None:
    install(TEN)
    spec = replace(spec_of(small), quantization=QuantizationSpec(activations="per-token"))
    with pytest.raises(UsageError, match="--activations per-token is for Q/DQ: quantizing implicitly"):
        build(small, spec=spec, target=IMPLICIT)
