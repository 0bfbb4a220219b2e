"""Tests of the choice of a backend, and of what is refused because it lacks it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtq.errors import MissingDependency, UsageError
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.backends import BACKENDS, choose_backend, refuse_unsupported
from trtq.pipeline.engine.tensorrt import TensorRt

NOT_INSTALLED = (
    "tensorrt: tensorrt is not installed; install TensorRT 8.6 to 11, or use NVIDIA's container; "
    "tensorrt-rtx: tensorrt_rtx is not installed; pip install 'trtq[rtx]' (builds without a GPU)"
)


def _is_installed(monkeypatch: pytest.MonkeyPatch, *, rtx: bool) -> None:
    found = {"tensorrt_rtx": object()} if rtx else {}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)


def test_every_backend_is_listed_under_its_own_name() -> None:
    assert list(BACKENDS) == [backend.name for backend in BACKENDS.values()]


def test_auto_is_tensorrt_where_it_works(
    tensorrt_module: Callable[[str], str], one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRt(tensorrt_module("10.16.1.11"))
    monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": backend})
    assert choose_backend("auto") is backend
    monkeypatch.setattr(
        "trtq.pipeline.engine.tensorrt.explain_missing_gpu", lambda: "there is no NVIDIA driver"
    )
    monkeypatch.setattr("trtq.pipeline.engine.rtx.TensorRtRtx.why_not", lambda _: "")
    assert choose_backend("auto").name == "tensorrt-rtx"


def test_auto_is_tensorrt_rtx_where_only_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=True)
    assert choose_backend("auto").name == "tensorrt-rtx"
    assert choose_backend("auto").runs_fp16


def test_auto_is_never_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=False)
    with pytest.raises(MissingDependency) as told:
        choose_backend("auto")
    assert str(told.value) == (
        f"no engine builder works here: {NOT_INSTALLED}; or take --backend onnxruntime, which needs none"
    )


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_named_backend_that_does_not_work_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=False)
    with pytest.raises(MissingDependency, match=rf"^backend {name}: tensorrt\w* is not installed"):
        choose_backend(name)


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime"])
def test_a_named_backend_that_works_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=True)
    assert choose_backend(name).name == name


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"^there is no backend 'openvino'; use auto, tensorrt, tensorrt-rtx, onnxruntime$"
    ):
        choose_backend("openvino")


@pytest.mark.parametrize(
    ("backend", "options", "told"),
    [
        ("tensorrt-rtx", {"timing_cache": Path("t")}, "--timing-cache: it times nothing: kernels are chosen"),
        (
            "tensorrt-rtx",
            {"hardware_compatibility": "ampere+"},
            "--hardware-compatibility: name the GPUs",
        ),
        ("tensorrt-rtx", {"version_compatible": True}, "--version-compatible: it has no lean runtime"),
        ("onnxruntime", {"timing_cache": Path("t")}, "--timing-cache: it builds nothing and times nothing"),
        ("onnxruntime", {"optimization_level": 0}, "--builder-optimization-level: it builds nothing"),
        ("onnxruntime", {"hardware_compatibility": "ampere+"}, "--hardware-compatibility: it runs the ONNX"),
        ("onnxruntime", {"version_compatible": True}, "--version-compatible: it runs the ONNX file in any"),
    ],
)
def test_an_option_that_a_backend_lacks_is_refused(backend: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=f"^backend {backend} has no {told}"):
        refuse_unsupported(BACKENDS[backend], BuilderOptions(**options))


def test_tensorrt_builds_for_this_machine_only() -> None:
    with pytest.raises(
        UsageError,
        match=r"^backend tensorrt has no --compute-capability: it builds for the GPU of this machine; see "
        r"--hardware-compatibility$",
    ):
        refuse_unsupported(BACKENDS["tensorrt"], BuilderOptions(), ("8.9",))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_defaults_are_refused_nowhere(backend: str) -> None:
    refuse_unsupported(BACKENDS[backend], BuilderOptions())


def test_tensorrt_takes_every_option_but_the_target(tmp_path: Path) -> None:
    options = BuilderOptions(tmp_path / "t", 5, "same-compute-capability", version_compatible=True)
    refuse_unsupported(BACKENDS["tensorrt"], options)
