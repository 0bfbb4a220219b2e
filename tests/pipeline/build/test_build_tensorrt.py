"""The whole job with the backend `tensorrt`, over a double that records; it runs engines in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_builds import files_of, plan_of, spec_of

from trtq.errors import UsageError
from trtq.models.spec import (
    AccuracySpec,
    EvaluationSpec,
    ModelSpec,
)
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.target import Target

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
EXPLICIT = Target(backend="tensorrt")
IMPLICIT = Target(backend="tensorrt", quantization="implicit")
END = "--minShapes=x:1x3x8x8 --optShapes=x:8x3x8x8 --maxShapes=x:8x3x8x8 --profilingVerbosity=detailed"
Install = Callable[[str], None]


# Explicit


@pytest.mark.parametrize(("version", "typed"), [(TEN, " --stronglyTyped"), (ELEVEN, "")])
def test_an_explicit_build_is_typed_and_its_engine_is_judged(
    version: str, typed: str, small: Path, install: Install
) -> None:
    install(version)
    report = build(small, spec=spec_of(small), target=EXPLICIT)
    assert report.backend == f"tensorrt {version}"
    assert report.engine.quantization == "explicit"
    assert report.engine.quantization_reason == (
        "tensorrt takes Q/DQ models, as every version since TensorRT 8 does"
    )
    assert (report.engine.num_realized, report.engine.layers_quantized) == (2, 2)
    assert (report.high_precision, report.engine.targets) == ("fp16", ("8.9",))
    assert [(item.candidate, item.reference) for item in report.comparison] == [
        ("engine", "fp32"), ("engine", "fp16"), ("int8", "fp32"), ("int8", "fp16"), ("fp16", "fp32"),
    ]  # fmt: skip
    assert plan_of(report)["flags"] == []
    assert "ranges.json" in files_of(report)
    assert "model.float.onnx" not in files_of(report)
    commands = read_manifest(Path(report.output)).commands
    start = "trtexec --onnx=model.int8.onnx --saveEngine=model.engine"
    assert commands["engine"] == f"{start}{typed} {END} --skipInference"


def test_asked_for_explicit_is_told_as_asked(small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, spec=spec_of(small), target=replace(EXPLICIT, quantization="explicit"))
    assert report.engine.quantization_reason == "as asked"


def test_tensorrt_8_is_allowed_fp16_and_gets_an_fp32_qdq_model(small: Path, install: Install) -> None:
    install(OLD)
    report = build(small, spec=spec_of(small, keep_fp32=("act",)), target=EXPLICIT)
    plan = plan_of(report)
    assert plan["flags"] == ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert plan["kept"] == {"act": ["FLOAT", ["FLOAT"]]}
    assert [(item.name, item.reason) for item in report.kept_fp32] == [("act", "kept by 'act'")]
    graph = onnx.load(Path(report.output) / "model.int8.onnx").graph
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}
    command = read_manifest(Path(report.output)).commands["engine"]
    assert "--int8 --fp16 --precisionConstraints=obey --layerPrecisions=act:fp32" in command


@pytest.mark.parametrize(
    ("version", "flags", "source"), [(OLD, ["FP16"], "model.float.onnx"), (TEN, [], "model.fp16.onnx")]
)
def test_fp16_is_a_flag_or_stands_in_the_graph(
    version: str, flags: list[str], source: str, small: Path, install: Install
) -> None:
    install(version)
    report = build(small, spec=spec_of(small), target=replace(EXPLICIT, precision="fp16"))
    assert plan_of(report)["flags"] == flags
    assert Path(plan_of(report)["model"]).name == source
    assert report.verdict == "pass"
    assert {(item.candidate, item.reference) for item in report.comparison} == {
        ("engine", "fp32"), ("engine", "fp16"), ("fp16", "fp32"),
    }  # fmt: skip


# What does not fit the engine


def _evaluated(small: Path, *sizes: int) -> ModelSpec:
    """Returns settings with a feed of each of these sizes to compare on."""
    folder = small.parent / "evaluation"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number, size in enumerate(sizes):
        np.savez(folder / f"{number}.npz", x=rng.standard_normal((size, 3, 8, 8)).astype(np.float32))
    return replace(spec_of(small), evaluation=EvaluationSpec(data=str(folder)))


def test_samples_outside_of_the_profiles_are_left_out_and_counted(small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, spec=_evaluated(small, 9, 8, 1, 12), target=EXPLICIT)
    assert report.evaluated_samples == 9
    (warning,) = report.warnings
    assert warning == (
        f"21 samples of {small.parent / 'evaluation'} (4 feeds) do not fit the engine's profiles and were "
        "not compared; see --min-shapes and --max-shapes"
    )
    assert report.comparison[0].candidate == "engine"


def test_where_nothing_fits_the_engine_is_not_run(small: Path, install: Install) -> None:
    install(TEN)
    report = build(small, spec=_evaluated(small, 9, 12), target=EXPLICIT)
    assert report.evaluated_samples == 21
    assert report.warnings == (
        "no sample of the evaluation data fits the engine's profiles, so the engine was not run",
    )
    assert "engine" not in {item.candidate for item in report.comparison}
    assert report.verdict == "pass"


# Building again


def test_nothing_changed_is_used_again_and_an_engine_keeps_its_cache(small: Path, install: Install) -> None:
    install(TEN)
    first = build(small, spec=spec_of(small), target=IMPLICIT)
    cache = (Path(first.output) / "calibration.cache").read_bytes()
    assert build(small, spec=spec_of(small), target=IMPLICIT).reused == ("everything",)
    looser = replace(spec_of(small), accuracy=AccuracySpec(min_cosine=0.5))
    second = build(small, spec=looser, target=IMPLICIT)
    assert second.reused == ("engine",)
    assert (second.calibration, second.engine) == (first.calibration, first.engine)
    assert files_of(second) == files_of(first)
    assert (Path(second.output) / "calibration.cache").read_bytes() == cache
    assert "--calib=calibration.cache" in read_manifest(Path(second.output)).commands["engine"]


def test_another_gpu_builds_again(small: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(TEN)
    build(small, spec=spec_of(small), target=EXPLICIT)
    for name in ("trtq.pipeline.build.keys", "trtq.pipeline.engine.tensorrt"):
        monkeypatch.setattr(f"{name}.find_compute_capability", lambda: "9.0")
    report = build(small, spec=spec_of(small), target=EXPLICIT)
    assert report.reused == ("ranges",)
    assert report.engine.targets == ("9.0",)


def test_explicit_and_implicit_do_not_take_each_others_engines(small: Path, install: Install) -> None:
    install(TEN)
    build(small, spec=spec_of(small, "percentile"), target=EXPLICIT)
    report = build(small, spec=spec_of(small, "percentile"), target=IMPLICIT)
    assert report.reused == ()


# What is refused


def test_a_timing_cache_in_the_output_folder_is_refused(small: Path, install: Install) -> None:
    install(TEN)
    out = small.parent / "out"
    out.mkdir()
    target = replace(EXPLICIT, options=BuilderOptions(timing_cache=out / "timing.cache"))
    with pytest.raises(UsageError, match=r"timing\.cache is inside the output folder .*/out, which is repl"):
        build(small, spec=spec_of(small), target=target, output=out)


def test_a_quantized_model_is_not_quantized_implicitly(small: Path, install: Install) -> None:
    install(TEN)
    build(small, spec=spec_of(small), target=EXPLICIT)
    quantized = small.parent / "small.trtq" / "model.int8.onnx"
    with pytest.raises(
        UsageError,
        match=r"model\.int8\.onnx is quantized already, so TensorRT cannot quantize it implicitly; give the "
        r"float model, or leave --quantization implicit out$",
    ):
        build(quantized, spec=spec_of(small), target=IMPLICIT, output=small.parent / "out")


def test_the_engine_of_a_quantized_model_is_compared_with_it(small: Path, install: Install) -> None:
    install(TEN)
    build(small, spec=spec_of(small), target=EXPLICIT)
    quantized = small.parent / "small.trtq" / "model.int8.onnx"
    report = build(quantized, spec=spec_of(small), target=EXPLICIT, output=small.parent / "out")
    pairs = [(item.candidate, item.reference) for item in report.comparison]
    assert pairs == [("engine", "given"), ("int8", "given")]
    assert report.comparison[0].cosine > 0.999
    assert report.verdict == "unverified"
    assert "was compared with itself" in report.reasons[0]
