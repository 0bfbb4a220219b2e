"""Memory that TensorRT's calibrators read batches from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType, TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtq import lazy
from trtq.errors import BuildError, MissingDependency


class DeviceMemory(Protocol):
    """Buffers that live until `close`, or until the end of a `with`."""

    def allocate(self, num_bytes: int) -> int:
        """Returns the address of a new buffer."""
        ...

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies an array, in C order, to the start of a buffer; it has arrived when this returns."""
        ...

    def close(self) -> None:
        """Releases everything; calling it again does nothing."""
        ...

    def __enter__(self) -> DeviceMemory: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CudaMemory:
    """Memory of one GPU through pycuda; batches pass through one page-locked buffer of the host.

    It makes the GPU's primary context current in this thread until `close`. TensorRT works in that context
    too: make, use and drop the builder in the same thread, before `close`.
    """

    def __init__(self, device: int = 0) -> None:
        """Opens the GPU of this number.

        Raises:
            MissingDependency: There is no pycuda, no driver or no such GPU.
            BuildError: The GPU gives no context.
        """
        self._cuda = _pycuda()
        self._sizes: dict[int, int] = {}
        self._staging: NDArray[np.uint8] | None = None
        try:
            self._cuda.init()
            gpu = self._cuda.Device(device)
        except self._cuda.Error as error:
            raise MissingDependency(
                f"calibrating in TensorRT needs GPU {device} and its driver, and CUDA says: {error}; see "
                f"nvidia-smi, or calibrate without a GPU: --quantization explicit"
            ) from error
        with ExitStack() as stack, self._driver(f"opening GPU {device}"):
            context = gpu.retain_primary_context()
            stack.callback(context.detach)
            context.push()
            stack.callback(self._cuda.Context.pop)
            self._stream: Any = self._cuda.Stream()
            stack.callback(self._drop_stream)
            stack.callback(self._free_staging)
            self._held = stack.pop_all()

    def allocate(self, num_bytes: int) -> int:
        """Returns the device address of a new buffer; BuildError if GPU or host have too little memory."""
        with self._driver(f"taking {num_bytes} bytes of GPU memory for calibration batches"):
            buffer = self._cuda.mem_alloc(num_bytes)
            self._held.callback(buffer.free)
            if self._staging is None or self._staging.nbytes < num_bytes:
                self._free_staging()
                self._staging = self._cuda.pagelocked_empty(num_bytes, np.uint8)
        self._sizes[int(buffer)] = num_bytes
        return int(buffer)

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies an array to the start of a buffer; it has arrived when this returns."""
        assert self._staging is not None
        assert array.nbytes <= self._sizes[pointer], "a device buffer must not be written past its end"
        staged = self._staging[: array.nbytes]
        np.copyto(staged.view(array.dtype).reshape(array.shape), array)
        with self._driver(f"copying {array.nbytes} bytes to the GPU"):
            self._cuda.memcpy_htod_async(pointer, staged, self._stream)
            self._stream.synchronize()

    def close(self) -> None:
        """Frees the buffers and lets the context go; calling it again does nothing."""
        self._sizes.clear()
        with self._driver("releasing the GPU"):
            self._held.close()

    def __enter__(self) -> CudaMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # a fault of the GPU makes releasing fail too, and must not hide what went before
            with suppress(BuildError):
                self.close()

    def _drop_stream(self) -> None:
        self._stream = None  # pycuda destroys it now, while there is a context to destroy it in

    def _free_staging(self) -> None:
        if self._staging is not None:
            allocation: Any = self._staging.base
            self._staging = None
            allocation.free()

    @contextmanager
    def _driver(self, work: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            advice = (
                "give smaller calibration batches (--opt-shapes) or free the GPU"
                if isinstance(error, self._cuda.MemoryError)
                else "see nvidia-smi"
            )
            raise BuildError(f"{work} failed, CUDA says: {error}; {advice}") from error


def _pycuda() -> ModuleType:
    try:
        return lazy.require("pycuda.driver", "tensorrt", "calibrating in TensorRT")
    except MissingDependency as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise MissingDependency(
            f"calibrating in TensorRT needs an NVIDIA driver, and pycuda cannot be loaded here "
            f"({error.__cause__}); install the driver and a pycuda built for it, or calibrate without a GPU: "
            f"--quantization explicit"
        ) from error
