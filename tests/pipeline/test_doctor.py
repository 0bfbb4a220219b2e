"""What is told of the machine."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from trtq.errors import BuildError
from trtq.pipeline import doctor as module
from trtq.pipeline.doctor import BackendHealth, doctor
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.tensorrt import TensorRt


class Driver:
    """What `libcuda.so.1` answers."""

    def __init__(self, result: int, devices: int) -> None:
        self.result, self.devices = result, devices

    def cuInit(self, _: int) -> int:  # noqa: N802 - CUDA's name
        return self.result

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - CUDA's name
        count._obj.value = self.devices
        return 0


def test_the_backends_that_need_no_gpu_build_something_here() -> None:
    health = doctor()
    _, rtx, onnxruntime = health.backends
    assert (rtx.name, rtx.reason) == ("tensorrt-rtx", "")
    assert (onnxruntime.name, onnxruntime.reason) == ("onnxruntime", "")
    assert rtx.version == health.packages["tensorrt-rtx-cu12"] != ""
    assert health.packages["trtq"] == version("trtq")
    assert health.python == platform.python_version()
    assert health.platform == platform.platform()


def test_a_package_that_is_absent_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("trtq", "no-such-package"))
    monkeypatch.setattr(module, "BACKENDS", {})
    assert doctor().packages == {"trtq": version("trtq"), "no-such-package": ""}


def test_an_absent_builder_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtq.pipeline.engine.rtx.importlib.util.find_spec", lambda _: None)
    reasons = {item.name: item.reason for item in doctor().backends}
    assert reasons["tensorrt-rtx"].startswith("tensorrt_rtx is not installed; pip install 'trtq[rtx]'")
    assert reasons["onnxruntime"] == ""


def test_a_builder_that_fails_is_told_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BuildError("out of paper")

    monkeypatch.setattr(TensorRtRtx, "build", fail)
    reasons = {item.name: item.reason for item in doctor().backends}
    assert reasons["tensorrt-rtx"] == "out of paper"


def test_tensorrt_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKENDS", {"tensorrt": TensorRt("tensorrt_absent")})
    assert doctor().backends == (
        BackendHealth(
            "tensorrt",
            "",
            "tensorrt_absent is not installed; install TensorRT 8.6 to 11, or use NVIDIA's container",
        ),
    )


@pytest.mark.parametrize("version", ["8.6.1", "10.16.1.11", "11.4.0.106"])
def test_tensorrt_that_works_has_built_something(
    version: str, tensorrt_module: Callable[[str], str], one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKENDS", {"tensorrt": TensorRt(tensorrt_module(version))})
    assert doctor().backends == (BackendHealth("tensorrt", version, ""),)


def test_an_empty_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_empty").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "BACKENDS", {"tensorrt": TensorRt("tensorrt_empty")})
    (health,) = doctor().backends
    assert health.version == ""
    assert health.reason.startswith("tensorrt_empty is an empty package here")


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (Driver(0, 2), "2 CUDA devices"),
        (Driver(100, 0), "the NVIDIA driver shows no usable GPU: engines can be built here, not run"),
        (None, "there is no NVIDIA driver: engines can be built here, not run"),
    ],
)
def test_the_gpu_is_asked_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, told: str
) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("no such file")
        return driver

    monkeypatch.setattr(module, "BACKENDS", {})
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert doctor().gpu == told


@pytest.mark.parametrize(
    ("compiled", "told"),
    [(True, "compiled"), (False, "numpy, some seven times slower: install a C compiler, then trtq again")],
)
def test_the_kernel_of_calibration_is_told(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, told: str
) -> None:
    monkeypatch.setattr(module, "BACKENDS", {})
    monkeypatch.setattr(module, "is_compiled", lambda: compiled)
    assert doctor().kernel == told
