"""The few calls of CUDA's driver that running and timing an engine needs: memory, a stream, events, graphs.

The driver is on every machine that has a GPU, whatever Python packages are there. Names and signatures are
those of CUDA's driver API reference; `_v2` marks its current version of a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import ArtifactError, MissingDependency
from trtq.pipeline.engine.gpu import DRIVER

_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: other threads may call the driver meanwhile."""
MOST_RUNS = 64
"""That are timed without waiting between them."""


class Cuda:
    """The first GPU: its primary context in this thread, and one stream of its own."""

    def __init__(self, library: str = DRIVER) -> None:
        """Takes hold of the GPU.

        Raises:
            MissingDependency: There is no driver or no GPU.
        """
        try:
            self._driver = ctypes.CDLL(library)
        except OSError as error:
            raise MissingDependency(f"an engine needs an NVIDIA GPU, there is no driver: {error}") from error
        device, context, stream = c_int(), c_void_p(), c_void_p()
        try:
            self._call("cuInit", c_uint(0))
            self._call("cuDeviceGet", byref(device), c_int(0))
            self._call("cuDevicePrimaryCtxRetain", byref(context), device)
            self._context = context
            self.enter()
            self._call("cuStreamCreate", byref(stream), c_uint(1))  # one that waits for no other
        except ArtifactError as error:
            raise MissingDependency(
                f"an engine needs an NVIDIA GPU that works; see nvidia-smi: {error}"
            ) from error
        self.stream = int(stream.value or 0)
        self._events = [self._event() for _ in range(2 * MOST_RUNS)]

    def enter(self) -> None:
        """Has the calls of this thread go to the GPU; those of the thread that took hold of it do already."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, num_bytes: int) -> int:
        """Returns the address of memory on the GPU, which lives until it is freed or this process ends."""
        pointer = c_void_p()
        self._call("cuMemAlloc_v2", byref(pointer), c_size_t(max(1, num_bytes)))
        return int(pointer.value or 0)

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies an array, in C order, to memory on the GPU; it has arrived when this returns."""
        flat = np.ascontiguousarray(array)
        source, size = c_void_p(flat.ctypes.data), c_size_t(flat.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", c_void_p(pointer), source, size, c_void_p(self.stream))
        self.synchronize()

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        """Fills an array, which lies in C order, from memory on the GPU; it is filled when this returns."""
        target, size = c_void_p(array.ctypes.data), c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, c_void_p(pointer), size, c_void_p(self.stream))
        self.synchronize()

    def free(self, pointer: int) -> None:
        """Gives memory on the GPU back."""
        self._call("cuMemFree_v2", c_void_p(pointer))

    def used_bytes(self) -> int:
        """Returns how much memory of the GPU is in use, by all processes."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return total.value - free.value

    def synchronize(self) -> None:
        """Waits until the stream is done."""
        self._call("cuStreamSynchronize", c_void_p(self.stream))

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Returns what enqueues the same work, which has run before, as one CUDA graph.

        Raises:
            ArtifactError: The work cannot be captured.
        """
        graph, executable, stream = c_void_p(), c_void_p(), c_void_p(self.stream)
        self._call("cuStreamBeginCapture_v2", stream, c_int(_RELAXED))
        try:
            enqueue()
        finally:
            self._call("cuStreamEndCapture", stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(executable), graph, c_ulonglong(0))
        return lambda: self._call("cuGraphLaunch", executable, stream)

    def times_ms(self, enqueue: Callable[[], None], count: int) -> list[float]:
        """Returns the time of each run on the GPU, in milliseconds, by events in the stream.

        Runs are enqueued one after another, without waiting between them, `MOST_RUNS` at most.
        """
        stream, pairs = c_void_p(self.stream), list(zip(*[iter(self._events)] * 2, strict=True))[:count]
        for start, stop in pairs:
            self._call("cuEventRecord", start, stream)
            enqueue()
            self._call("cuEventRecord", stop, stream)
        self.synchronize()
        times = [c_float() for _ in pairs]
        for elapsed, (start, stop) in zip(times, pairs, strict=True):
            self._call("cuEventElapsedTime", byref(elapsed), start, stop)
        return [float(elapsed.value) for elapsed in times]

    def _event(self) -> c_void_p:
        event = c_void_p()
        self._call("cuEventCreate", byref(event), c_uint(0))
        return event

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorName(c_int(status), byref(text))
            word = text.value.decode() if text.value else "an unknown error"
            raise ArtifactError(f"CUDA says {word} ({status}) in {name}")
