"""An engine as a session: arrays in, arrays out, through the bindings of TensorRT-RTX or TensorRT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.plan import OpenedPlan

_WORDS: Mapping[str, str] = {"float32": "float", "float64": "double"}
"""Of ONNX Runtime, for types that it calls otherwise than NumPy."""


@dataclass(frozen=True, slots=True)
class PlanPort:
    """An input or output of an engine; `type` in ONNX Runtime's words, a dim that is open as None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class PlanSession:
    """A plan on the GPU that is fed from the host, and answers there; one call at a time.

    It takes and gives FP32 where the type of the engine is none of NumPy's.
    """

    def __init__(self, trt: ModuleType, plan: bytes, cuda: Cuda) -> None:
        """Loads the plan with the bindings `trt` of its version.

        Raises:
            ArtifactError: The library does not load it, or an input or output has a type that is not run.
        """
        self._cuda = cuda
        self._plan = OpenedPlan(trt, plan)
        names = (*self._plan.inputs, *self._plan.outputs)
        self._dtypes = {name: _find_dtype(trt, self._plan, name) for name in names}
        self._memory = dict[str, tuple[int, int]]()  # address and size on the GPU, by tensor

    def get_inputs(self) -> list[PlanPort]:
        """Returns the inputs in the engine's order."""
        return [self._describe(name) for name in self._plan.inputs]

    def get_outputs(self) -> list[PlanPort]:
        """Returns the outputs in the engine's order."""
        return [self._describe(name) for name in self._plan.outputs]

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns all outputs for one feed, as new arrays.

        Raises:
            ArtifactError: The engine has no profile for these shapes, does not run, or gives an output whose
                size depends on the values.
        """
        self._cuda.enter()
        plan, host = self._plan, dict[str, NDArray[Any]]()
        plan.take_shapes(feed)
        for name, array in feed.items():
            given = np.ascontiguousarray(array.astype(self._dtypes[name], copy=False))
            if not plan.is_on_host(name):
                self._cuda.upload(self._reserve(name, given.nbytes), given)
            self._point(name, host, given)
        plan.require_shapes()
        for name in plan.outputs:
            size = max(1, plan.context.get_max_output_size(name))
            if not plan.is_on_host(name):
                self._reserve(name, size)
            self._point(name, host, np.zeros(-(-size // self._dtypes[name].itemsize), self._dtypes[name]))
        plan.enqueue(self._cuda.stream)
        self._cuda.synchronize()
        return [self._fetch(name, host[name]) for name in plan.outputs]

    def _describe(self, name: str) -> PlanPort:
        word = _plain(self._dtypes[name]).name
        dims = tuple(self._plan.engine.get_tensor_shape(name))
        return PlanPort(name, f"tensor({_WORDS.get(word, word)})", tuple(d if d >= 0 else None for d in dims))

    def _reserve(self, name: str, num_bytes: int) -> int:
        """Returns where a tensor of this size has room on the GPU; the room stays for the next run."""
        pointer, size = self._memory.get(name, (0, 0))
        if size < max(1, num_bytes):
            if pointer:
                del self._memory[name]
                self._cuda.free(pointer)
            pointer = self._cuda.allocate(num_bytes)
            self._memory[name] = (pointer, max(1, num_bytes))
        return pointer

    def _point(self, name: str, host: dict[str, NDArray[Any]], array: NDArray[Any]) -> None:
        """Tells the engine where a tensor lies; its array on the host is kept as long as the run."""
        host[name] = array
        on_host = self._plan.is_on_host(name)
        self._plan.context.set_tensor_address(name, array.ctypes.data if on_host else self._memory[name][0])

    def _fetch(self, name: str, room: NDArray[Any]) -> NDArray[Any]:
        """Returns an output, which has been written to the GPU or to its room on the host."""
        shape = tuple(self._plan.context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise ArtifactError(
                f"the size of output {name!r} depends on the values of the inputs, which trtq does not fetch "
                f"from such an engine; run its ONNX model, with backend onnxruntime"
            )
        found = room.reshape(-1)[: math.prod(shape)]
        if not self._plan.is_on_host(name):
            self._cuda.download(self._memory[name][0], found)
        return found.reshape(shape).astype(_plain(found.dtype), copy=False)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the type that a caller sees: FP32 for what is none of NumPy's."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(np.float32)


def _find_dtype(trt: ModuleType, plan: OpenedPlan, name: str) -> np.dtype[Any]:
    """Returns the type of a tensor of the engine."""
    dtype = plan.engine.get_tensor_dtype(name)
    try:
        found: np.dtype[Any] = np.dtype(
            ml_dtypes.bfloat16 if dtype == trt.DataType.BF16 else trt.nptype(dtype)
        )
        return found
    except TypeError as error:
        raise ArtifactError(
            f"{name!r} of the engine is {dtype.name}, which trtq does not exchange with an engine; give the "
            f"model inputs and outputs of FP32, FP16, BF16 or integers"
        ) from error
