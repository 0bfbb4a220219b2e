"""Tests of the backend `tensorrt`, over a double that records what it is asked, and over TensorRT-RTX."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory

from trtq import lazy
from trtq.errors import MissingDependency, ModelError, UsageError
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.backend import BuilderOptions, BuildRequest
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.engine.tensorrt import TensorRt
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.quantized import find_quantized_layers

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
Module = Callable[[str], str]
QDQ = """
    g (float[{batch}, 4, 8, 8] x) => (float[{batch}, 8, 8, 8] y) {{
        [q] q = QuantizeLinear (x, s, z)
        [d] d = DequantizeLinear (q, s, z)
        [dw] dw = DequantizeLinear <axis = 0> (w, sw, zw)
        [conv] y = Conv <pads = [1, 1, 1, 1]> (d, dw)
    }}"""
NO_GPU = "it builds on the GPU that the engine is for, and {} here; tensorrt-rtx needs none"


@pytest.fixture
def backend(tensorrt_module: Module, one_gpu: None) -> Callable[[str], TensorRt]:
    return lambda version: TensorRt(tensorrt_module(version), HostMemory)


@pytest.fixture
def quantized(path_of: Callable[..., Path]) -> Path:
    return path_of(
        QDQ.format(batch="N"),
        s=np.asarray(0.05, np.float32),
        z=np.asarray(0, np.int8),
        w=np.random.default_rng(0).integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        sw=np.full(8, 0.01, np.float32),
        zw=np.zeros(8, np.int8),
    )


PROFILE = {"x": InputSpec((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))}


# Whether it works here


def test_it_works_where_there_is_a_gpu(backend: Callable[[str], TensorRt]) -> None:
    for version in (OLD, TEN, ELEVEN):
        assert backend(version).why_not() == ""
        assert backend(version).version() == version
    assert (backend(TEN).name, backend(TEN).runs_fp16) == ("tensorrt", True)


@pytest.mark.parametrize(
    ("num_gpus", "missing"),
    [(None, "there is no NVIDIA driver"), (0, "the NVIDIA driver shows no usable GPU")],
)
def test_without_a_gpu_it_says_so(
    num_gpus: int | None, missing: str, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtq.pipeline.engine.gpu.count_gpus", lambda: num_gpus)
    assert TensorRt(tensorrt_module(TEN)).why_not() == NO_GPU.format(missing)


def test_where_it_is_not_installed_it_says_what_to_do(one_gpu: None, tmp_path: Path) -> None:
    reason = "tensorrt_absent is not installed; install TensorRT 8.6 to 11, or use NVIDIA's container"
    absent = TensorRt("tensorrt_absent")
    assert absent.why_not() == reason
    assert (absent.version(), absent.takes_types(), set(absent.lacks)) == (
        "",
        False,
        {"compute_capabilities"},
    )
    with pytest.raises(MissingDependency, match=f"^backend tensorrt: {reason}$"):
        absent.build(BuildRequest(tmp_path / "model.onnx"))


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_libraries_that_do_not_load_are_told(
    error: str, one_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"tensorrt_broken_{error.lower()}"
    (tmp_path / f"{name}.py").write_text(f"raise {error}('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = TensorRt(name)
    assert broken.why_not() == (
        f"{name} cannot be imported here: libnvinfer.so.10: cannot open shared object file"
    )
    assert (broken.version(), broken.takes_types()) == ("", False)


def test_an_empty_package_is_told_and_has_no_version(
    one_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_empty").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    empty = TensorRt("tensorrt_empty")
    assert empty.why_not() == (
        "tensorrt_empty is an empty package here, without its libraries; install it again"
    )
    assert (empty.version(), empty.takes_types(), set(empty.lacks)) == ("", False, {"compute_capabilities"})


@pytest.mark.parametrize("version", ["8.5.3", "7.2.3.4"])
def test_a_version_that_is_too_old_is_told(version: str, tensorrt_module: Module, one_gpu: None) -> None:
    reason = f"TensorRT {version} is installed; 8.6 to 11 are supported"
    assert TensorRt(tensorrt_module(version)).why_not() == reason


# What the versions can do


@pytest.mark.parametrize(
    ("version", "takes_types", "lacks"),
    [
        (OLD, False, {"compute_capabilities", "fp8", "nvfp4"}),
        (TEN, True, {"compute_capabilities"}),
        (ELEVEN, True, {"compute_capabilities", "implicit"}),
    ],
)
def test_what_a_version_can_do_is_asked_of_its_names(
    version: str, takes_types: bool, lacks: set[str], backend: Callable[[str], TensorRt]
) -> None:
    found = backend(version)
    assert (found.takes_types(), set(found.lacks)) == (takes_types, lacks)
    told = "it builds for the GPU of this machine; see --hardware-compatibility"
    assert found.lacks["compute_capabilities"] == told


def test_without_calibrators_it_says_what_to_take(backend: Callable[[str], TensorRt]) -> None:
    assert backend(ELEVEN).lacks["implicit"] == (
        "TensorRT 11.4.0.106 has no INT8 calibrators, they ended with TensorRT 10; use --quantization "
        "explicit"
    )


# Explicit builds, in a process of their own


@pytest.mark.parametrize(("version", "flags"), [(TEN, 0b11), (ELEVEN, 0)])
def test_a_quantized_model_is_built_strongly_typed(
    version: str, flags: int, quantized: Path, backend: Callable[[str], TensorRt]
) -> None:
    built = backend(version).build(BuildRequest(quantized, PROFILE))
    assert built.plan is not None
    record = json.loads(built.plan)
    assert (record["network_flags"], record["flags"], record["calibration"]) == (flags, [], None)
    assert record["model"] == str(quantized)
    covered = measure_coverage(find_quantized_layers(load(quantized, min_opset=13).model), built)
    assert (covered.layers_quantized, covered.num_realized) == (1, 1)
    assert built.warnings == ("WARNING: a recorded build",)
    assert (built.targets, built.calibration_cache, built.calibration_samples) == (("8.9",), None, 0)


def test_an_old_version_is_allowed_the_precisions(
    quantized: Path, backend: Callable[[str], TensorRt]
) -> None:
    request = BuildRequest(quantized, PROFILE, precisions=("int8", "fp16"), kept={"conv": "fp32"})
    record = json.loads(backend(OLD).build(request).plan or b"")
    assert (record["network_flags"], record["flags"]) == (1, ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"])
    assert record["kept"] == {"conv": ["FLOAT", []]}


def test_a_timing_cache_is_shared_by_builds(
    quantized: Path, backend: Callable[[str], TensorRt], tmp_path: Path
) -> None:
    options = BuilderOptions(timing_cache=tmp_path / "timing.cache")
    backend(TEN).build(BuildRequest(quantized, PROFILE, options=options))
    first = (tmp_path / "timing.cache").read_bytes()
    assert first == b"timings|conv,d,dw,q"
    backend(TEN).build(BuildRequest(quantized, PROFILE, options=options))
    assert (tmp_path / "timing.cache").read_bytes() == first


def test_a_foreign_timing_cache_is_refused(
    quantized: Path, backend: Callable[[str], TensorRt], tmp_path: Path
) -> None:
    (tmp_path / "timing.cache").write_bytes(b"something else")
    options = BuilderOptions(timing_cache=tmp_path / "timing.cache")
    with pytest.raises(UsageError, match=r"timing\.cache is not a timing cache of TensorRT 10\.16\.1\.11 on"):
        backend(TEN).build(BuildRequest(quantized, PROFILE, options=options))


def test_what_the_parser_refuses_is_named(
    path_of: Callable[..., Path], backend: Callable[[str], TensorRt]
) -> None:
    path = path_of("g (float[8] x) => (float[N] y) { [distinct] y = Unique (x) }")
    with pytest.raises(
        ModelError,
        match=r"^TensorRT 11\.4\.0\.106 does not take this model: node 'distinct' \(Unique\): this operator",
    ):
        backend(ELEVEN).build(BuildRequest(path))


# Running an engine


def test_a_runner_is_polygraphys_with_our_runtime(
    backend: Callable[[str], TensorRt], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Polygraphy:
        def get_trt_logger(self) -> Any:
            return importlib.import_module("recorded_network").ILogger()

        def EngineFromBytes(self, plan: bytes, runtime: Any) -> tuple[bytes, Any]:  # noqa: N802 - its name
            return plan, runtime

        def TrtRunner(self, engine: Any, name: str) -> tuple[Any, str]:  # noqa: N802 - its name
            return engine, name

    monkeypatch.setattr(lazy, "require", lambda *_: Polygraphy())
    (plan, runtime), name = backend(TEN).runner(b"plan", "engine")
    assert (plan, name) == (b"plan", "engine")
    assert runtime.engine_host_code_allowed


# The real parser and builder of the same family


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
def test_the_same_requests_are_understood_by_a_real_builder(quantized: Path, one_gpu: None) -> None:
    backend = TensorRt("tensorrt_rtx", HostMemory, oldest=(1, 0))
    assert (backend.why_not(), backend.takes_types()) == ("", True)
    assert "implicit" in backend.lacks
    options = BuilderOptions(optimization_level=2)
    built = backend.build(BuildRequest(quantized, PROFILE, workspace_bytes=1 << 28, options=options))
    assert built.plan is not None
    assert built.plan.startswith(b"vtrt")
    text = quantized.parent / "text.onnx"
    text.write_bytes(b"hello world")
    with pytest.raises(ModelError, match="does not take this model: the network has no outputs"):
        backend.build(BuildRequest(text))
