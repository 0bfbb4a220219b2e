"""Tests of the choice of a backend."""

from __future__ import annotations

import importlib.util

import pytest

from trtq.errors import MissingDependency, UsageError
from trtq.pipeline.engine import BACKENDS, choose


def _is_installed(monkeypatch: pytest.MonkeyPatch, *, rtx: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if rtx else None)


def test_every_backend_is_listed_under_its_own_name() -> None:
    assert list(BACKENDS) == [backend.name for backend in BACKENDS.values()]


def test_auto_is_the_engine_builder_that_works_here(monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=True)
    assert choose("auto").name == "tensorrt-rtx"
    assert choose("auto").runs_fp16


def test_auto_is_never_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=False)
    with pytest.raises(
        MissingDependency,
        match=r"^no engine builder works here: tensorrt-rtx: tensorrt_rtx is not installed; "
        r"pip install 'trtq\[rtx\]' \(builds without a GPU\); or take --backend onnxruntime, which needs "
        r"none$",
    ):
        choose("auto")


def test_a_named_backend_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=False)
    with pytest.raises(MissingDependency, match=r"^backend tensorrt-rtx: tensorrt_rtx is not installed"):
        choose("tensorrt-rtx")


@pytest.mark.parametrize("name", ["tensorrt-rtx", "onnxruntime"])
def test_a_named_backend_that_works_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _is_installed(monkeypatch, rtx=True)
    assert choose(name).name == name


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"^there is no backend 'openvino'; take auto, tensorrt-rtx, onnxruntime$"
    ):
        choose("openvino")
