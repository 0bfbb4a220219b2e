"""Memory of this process in the place of a GPU's, for calibrators."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self


class HostMemory:
    """Buffers of numpy; their addresses are those of the host."""

    def __init__(self) -> None:
        self._buffers: dict[int, NDArray[np.uint8]] = {}

    def allocate(self, num_bytes: int) -> int:
        """Returns the host address of a new buffer."""
        buffer = np.empty(num_bytes, np.uint8)
        self._buffers[buffer.ctypes.data] = buffer
        return buffer.ctypes.data

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Copies an array, in C order, to the start of a buffer."""
        buffer = self._buffers[pointer]
        assert array.nbytes <= buffer.nbytes, "a buffer must not be written past its end"
        np.copyto(buffer[: array.nbytes].view(array.dtype).reshape(array.shape), array)

    def close(self) -> None:
        """Frees the buffers."""
        self._buffers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
