"""Tests of the memory that calibrators feed from; pycuda is played by a driver that counts what it holds."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory
from numpy.typing import NDArray

from trtq.calibrators.device import CudaMemory, DeviceMemory
from trtq.errors import BuildError, MissingDependency


class CudaError(Exception):
    pass


class CudaMemoryError(CudaError):
    pass


class Held:
    """Something of the driver that must be given back, in a context."""

    def __init__(self, driver: Driver, name: str, address: int = 0) -> None:
        self.driver, self.name, self.address = driver, name, address
        driver.enter(name)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.driver.leave(self.name)

    detach = free

    def push(self) -> None:
        self.driver.enter("current")

    def synchronize(self) -> None:
        self.driver.call("synchronize")


class Driver(ModuleType):
    """pycuda.driver on host memory; the calls in `broken` raise."""

    Error, MemoryError = CudaError, CudaMemoryError

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.calls: list[str] = []
        self.held: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.host = HostMemory()
        self.Context = self
        self.pending: list[tuple[int, NDArray[Any]]] = []

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]
        if name == "synchronize":
            while self.pending:
                self.host.upload(*self.pending.pop())

    def enter(self, name: str) -> None:
        self.call(name)
        self.held.append(name)

    def leave(self, name: str) -> None:
        assert name in ("context", "current") or "current" in self.held, "freed without a context"
        self.held.remove(name)
        self.call(f"-{name}")

    def init(self) -> None:
        self.call("init")

    def Device(self, number: int) -> Driver:  # noqa: N802 - pycuda's name
        self.call(f"gpu {number}")
        return self

    def retain_primary_context(self) -> Held:
        return Held(self, "context")

    def pop(self) -> None:
        self.leave("current")

    def Stream(self) -> Held:  # noqa: N802 - pycuda's name
        self.call("stream")
        stream = Held.__new__(Held)  # nothing to free: pycuda destroys it with the object
        stream.driver, stream.name = self, "stream"
        return stream

    def mem_alloc(self, num_bytes: int) -> Held:
        return Held(self, f"buffer {num_bytes}", self.host.allocate(num_bytes))

    def pagelocked_empty(self, num_bytes: int, dtype: Any) -> NDArray[Any]:
        pinned = type("Pinned", (np.ndarray,), {"base": Held(self, f"pinned {num_bytes}")})
        array: NDArray[Any] = np.zeros(num_bytes, dtype).view(pinned)
        return array

    def memcpy_htod_async(self, pointer: int, array: NDArray[Any], stream: Held) -> None:
        assert stream.name == "stream"
        self.call("copy")
        self.pending.append((pointer, array))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", found)
    return found


def _floats_at(pointer: int, count: int) -> list[float]:
    return list(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))[:count])


@pytest.mark.parametrize("make", [HostMemory, CudaMemory])
def test_an_array_arrives_in_c_order(make: Callable[[], DeviceMemory], driver: Driver) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with make() as memory:
        first, second = memory.allocate(24), memory.allocate(48)
        memory.upload(first, np.asfortranarray(values))
        memory.upload(second, values[:, ::-1])
        assert _floats_at(first, 6) == [0, 1, 2, 3, 4, 5]
        assert _floats_at(second, 6) == [2, 1, 0, 5, 4, 3]
        memory.upload(first, np.array(9, np.float32))
        assert _floats_at(first, 2) == [9, 1]


@pytest.mark.parametrize("make", [HostMemory, CudaMemory])
def test_a_buffer_is_not_written_past_its_end(make: Callable[[], DeviceMemory], driver: Driver) -> None:
    with make() as memory:
        small, _ = memory.allocate(4), memory.allocate(400)
        with pytest.raises(AssertionError, match="must not be written past its end"):
            memory.upload(small, np.zeros(2, np.float32))


def test_the_gpu_gets_everything_back(driver: Driver) -> None:
    with CudaMemory(1) as memory:
        memory.allocate(8)
        memory.allocate(16)
        memory.allocate(4)
        assert driver.held == ["context", "current", "buffer 8", "buffer 16", "pinned 16", "buffer 4"]
    assert driver.held == []
    assert driver.calls[:5] == ["init", "gpu 1", "context", "current", "stream"]
    assert driver.calls[-2:] == ["-current", "-context"]
    memory.close()
    assert driver.calls[-2:] == ["-current", "-context"]


def test_the_page_locked_buffer_is_used_again(driver: Driver) -> None:
    with CudaMemory() as memory:
        pointer = memory.allocate(8)
        for value in (1.0, 2.0):
            memory.upload(pointer, np.full(2, value, np.float32))
            assert _floats_at(pointer, 2) == [value, value]
    assert [call for call in driver.calls if call in ("copy", "synchronize") or "pinned" in call] == [
        "pinned 8",
        *["copy", "synchronize"] * 2,
        "-pinned 8",
    ]


def test_pycuda_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(
        MissingDependency,
        match=r"^calibrating in TensorRT needs pycuda, .*pip install 'trtq\[tensorrt\]'$",
    ):
        CudaMemory()


def test_a_missing_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(
        MissingDependency,
        match=r"needs an NVIDIA driver, and pycuda cannot be loaded here \(libcuda.so.1: .*\); install the "
        r"driver and a pycuda built for it, or calibrate without a GPU: --quantization explicit$",
    ):
        CudaMemory()


@pytest.mark.parametrize("call", ["init", "gpu 3"])
def test_a_missing_gpu_is_said(driver: Driver, call: str) -> None:
    driver.broken[call] = CudaError("no CUDA-capable device is detected")
    with pytest.raises(
        MissingDependency,
        match=r"^calibrating in TensorRT needs GPU 3 and its driver, and CUDA says: no CUDA-capable device "
        r"is detected; see nvidia-smi, or calibrate without a GPU: --quantization explicit$",
    ):
        CudaMemory(3)


@pytest.mark.parametrize("call", ["context", "current", "stream"])
def test_a_gpu_without_context_is_said_and_let_go(driver: Driver, call: str) -> None:
    driver.broken[call] = CudaError("exclusive")
    with pytest.raises(BuildError, match=r"^opening GPU 0 failed, CUDA says: exclusive; see nvidia-smi$"):
        CudaMemory()
    assert driver.held == []


@pytest.mark.parametrize("call", ["buffer 8", "pinned 8"])
def test_too_little_memory_is_said(driver: Driver, call: str) -> None:
    driver.broken[call] = CudaMemoryError("out of memory")
    with (
        pytest.raises(
            BuildError,
            match=r"^taking 8 bytes of GPU memory for calibration batches failed, CUDA says: out of memory; "
            r"give smaller calibration batches \(--opt-shapes\) or free the GPU$",
        ),
        CudaMemory() as memory,
    ):
        memory.allocate(8)
    assert driver.held == []


@pytest.mark.parametrize("call", ["copy", "synchronize"])
def test_a_failed_copy_is_said(driver: Driver, call: str) -> None:
    with CudaMemory() as memory:
        pointer = memory.allocate(8)
        driver.broken[call] = CudaError("illegal address")
        with pytest.raises(
            BuildError,
            match=r"^copying 8 bytes to the GPU failed, CUDA says: illegal address; see nvidia-smi$",
        ):
            memory.upload(pointer, np.zeros(2, np.float32))


def test_a_failed_release_is_said(driver: Driver) -> None:
    memory = CudaMemory()
    memory.allocate(8)
    driver.broken["-buffer 8"] = CudaError("illegal address")
    with pytest.raises(BuildError, match=r"^releasing the GPU failed, CUDA says: illegal address"):
        memory.close()
    assert driver.held == []


def test_a_failed_release_does_not_hide_the_first_error(driver: Driver) -> None:
    driver.broken["-context"] = CudaError("illegal address")
    with pytest.raises(ZeroDivisionError, match="the first"), CudaMemory():
        raise ZeroDivisionError("the first")
