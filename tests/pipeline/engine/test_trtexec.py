"""Tests of the command lines that build the same with NVIDIA's own tool."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtq.models.spec import InputSpec
from trtq.pipeline.engine.backend import BuilderOptions, BuildRequest, ImplicitQuantization
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.tensorrt import TensorRt
from trtq.pipeline.engine.trtexec import format_trtexec

MODEL = Path("/somewhere/model.int8.onnx")
FLOAT = Path("/somewhere/model.float.onnx")
START = "trtexec --onnx=model.int8.onnx --saveEngine=model.engine"
FLOAT_START = "trtexec --onnx=model.float.onnx --saveEngine=model.engine"
END = "--profilingVerbosity=detailed --skipInference"


@pytest.mark.parametrize(
    ("version", "types"),
    [("8.6.1", ""), ("10.16.1.11", "--stronglyTyped "), ("11.4.0.106", "")],
)
def test_a_quantized_model_has_its_types_in_the_graph(
    version: str, types: str, tensorrt_module: Callable[[str], str]
) -> None:
    command = TensorRt(tensorrt_module(version)).command(BuildRequest(MODEL))
    assert command == f"{START} {types}{END}"


def test_an_old_version_is_allowed_the_precisions() -> None:
    command = format_trtexec(BuildRequest(MODEL, precisions=("int8", "fp16")), has_typed_flag=False)
    assert command == f"{START} --int8 --fp16 {END}"


@pytest.mark.parametrize("has_typed_flag", [True, False])
def test_implicit_entropy_takes_the_cache_as_it_is(has_typed_flag: bool) -> None:
    request = BuildRequest(FLOAT, precisions=("int8",), implicit=ImplicitQuantization())
    assert format_trtexec(request, has_typed_flag=has_typed_flag) == (
        f"{FLOAT_START} --int8 --calib=calibration.cache {END}"
    )


def test_a_cache_of_another_calibrator_is_converted_first() -> None:
    request = BuildRequest(
        FLOAT, precisions=("int8", "fp16"), implicit=ImplicitQuantization(algorithm="minmax")
    )
    assert format_trtexec(request, has_typed_flag=True) == (
        "trtq cache convert calibration.cache --to entropy2 -o calibration.entropy2.cache && "
        f"{FLOAT_START} --int8 --fp16 --calib=calibration.entropy2.cache {END}"
    )


def test_layers_are_bound_by_name_with_colons_quoted() -> None:
    kept: Any = {"head/Gemm": "fp16", "model:0/Conv": "fp32"}
    command = format_trtexec(BuildRequest(FLOAT, precisions=("fp16",), kept=kept), has_typed_flag=True)
    assert shlex.split(command)[4:7] == [
        "--precisionConstraints=obey",
        "--layerPrecisions=head/Gemm:fp16,'model:0/Conv':fp32",
        "--layerOutputTypes=head/Gemm:fp16,'model:0/Conv':fp32",
    ]


def test_profiles_name_every_input_and_quote_those_with_a_colon() -> None:
    profiles = {
        "x": InputSpec((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)),
        "ids:0": InputSpec((1,), (2,), (3,)),
    }
    command = format_trtexec(BuildRequest(MODEL, profiles), has_typed_flag=False)
    assert shlex.split(command)[3:6] == [
        "--minShapes=x:1x3x8x8,'ids:0':1",
        "--optShapes=x:4x3x8x8,'ids:0':2",
        "--maxShapes=x:8x3x8x8,'ids:0':3",
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"), [("ampere+", "ampere+"), ("same-compute-capability", "sameComputeCapability")]
)
def test_all_options_are_told(ours: Any, theirs: str, tmp_path: Path) -> None:
    options = BuilderOptions(tmp_path / "my timings", 5, ours, version_compatible=True)
    command = format_trtexec(
        BuildRequest(MODEL, workspace_bytes=1 << 30, options=options), has_typed_flag=False
    )
    assert shlex.split(command)[3:-2] == [
        "--memPoolSize=workspace:1073741824B",
        "--builderOptimizationLevel=5",
        f"--hardwareCompatibilityLevel={theirs}",
        "--versionCompatible",
        f"--timingCacheFile={tmp_path / 'my timings'}",
    ]


@pytest.mark.parametrize("backend", [TensorRtRtx(), OnnxRuntime()])
def test_other_backends_have_no_such_tool_and_run_nothing(backend: TensorRtRtx | OnnxRuntime) -> None:
    assert backend.command(BuildRequest(MODEL)) == ""
    assert backend.runner(b"plan", "engine") is None
    assert backend.takes_types()
