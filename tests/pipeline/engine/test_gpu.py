"""Tests of what is asked of the GPU's driver, over one that answers as it is told."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from trtq.pipeline.engine.gpu import count_gpus, find_compute_capability


class Driver:
    """What `libcuda.so.1` answers; a call that is named in `fails` gives CUDA's error 100."""

    def __init__(self, num_devices: int, *fails: str) -> None:
        self.num_devices, self.fails = num_devices, fails

    def cuInit(self, _: int) -> int:  # noqa: N802 - CUDA's name
        return self._result("cuInit")

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - CUDA's name
        count._obj.value = self.num_devices
        return self._result("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802 - CUDA's name
        device._obj.value = 40 + index
        return self._result("cuDeviceGet")

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802 - CUDA's name
        assert device.value == 40
        value._obj.value = {75: 12, 76: 1}[attribute]
        return self._result("cuDeviceGetAttribute")

    def _result(self, name: str) -> int:
        return 100 if name in self.fails else 0


def _has(driver: Driver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("no such file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize(
    ("driver", "count", "capability"),
    [
        (Driver(2), 2, "12.1"),
        (Driver(0), 0, ""),
        (None, None, ""),
        (Driver(1, "cuInit"), 0, ""),
        (Driver(1, "cuDeviceGetCount"), 0, ""),
        (Driver(1, "cuDeviceGet"), 1, ""),
        (Driver(1, "cuDeviceGetAttribute"), 1, ""),
    ],
)
def test_the_driver_is_asked(
    driver: Driver | None, count: int | None, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _has(driver, monkeypatch)
    assert count_gpus() == count
    assert find_compute_capability() == capability
