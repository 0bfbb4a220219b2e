"""An engine at work, through the bindings of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.engine.cuda import MOST_RUNS, Cuda
from trtq.pipeline.engine.plan import OpenedPlan

MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""By backend: the Python module that runs its plans."""


class PlanRun:
    """A plan on the GPU with its inputs and outputs in place; a run is what the GPU does, without copies.

    Attributes:
        shapes: Of the inputs.
        graph: "yes" where runs are launched as one CUDA graph, else why not.
        gpu_bytes: What loading it and its buffers took of the GPU's memory.
    """

    def __init__(
        self,
        trt: ModuleType,
        plan: bytes,
        feed: Mapping[str, NDArray[Any]] | None,
        cuda: Cuda,
        *,
        graph: bool,
    ) -> None:
        """Loads the plan with the bindings `trt` of its version, and runs it once.

        Without a feed the inputs are ones, in the usual shapes of the first profile. With `graph`, runs are
        captured as a CUDA graph, where that is possible.

        Raises:
            ArtifactError: The library does not load the plan, or it does not take these inputs.
        """
        used = cuda.used_bytes()
        self._cuda = cuda
        self._plan = OpenedPlan(trt, plan)
        self._kept = list[NDArray[Any]]()  # what lies on the host is read while the engine runs
        inputs = feed if feed is not None else _ones(trt, self._plan)
        self.shapes = {name: array.shape for name, array in inputs.items()}
        self._bind(trt, inputs)
        self._enqueue = self._run
        self._run()  # kernels are chosen, compiled and loaded
        cuda.synchronize()
        self.graph = self._capture() if graph else "not asked for"
        self.gpu_bytes = max(0, cuda.used_bytes() - used)

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Returns the milliseconds of runs for about so many seconds, and how many seconds went by.

        The first ones, on an idle GPU, are not counted.
        """
        self._cuda.times_ms(self._enqueue, 2)
        times, count = list[float](), 1
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds or not times:
            times += self._cuda.times_ms(self._enqueue, count)
            each = (time.perf_counter() - start) / len(times)
            count = min(MOST_RUNS, max(1, int((seconds - passed) / each / 2)))
        return times, passed

    def attach_profiler(self, profiler: Any) -> None:
        """Has a `tensorrt.IProfiler` told the time of each layer of each run; then no run is a CUDA graph."""
        self._plan.context.profiler = profiler

    def inspect(self, trt: ModuleType) -> str:
        """Returns what the engine says of its layers, as JSON."""
        inspector = self._plan.engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _bind(self, trt: ModuleType, inputs: Mapping[str, NDArray[Any]]) -> None:
        plan = self._plan
        plan.take_shapes(inputs)
        for name, array in inputs.items():
            self._place(name, _typed(trt, plan.engine.get_tensor_dtype(name), array))
        plan.require_shapes()
        for name in plan.outputs:
            self._place(name, np.zeros(max(1, plan.context.get_max_output_size(name)), np.uint8))

    def _place(self, name: str, array: NDArray[Any]) -> None:
        """Puts an input, or room for an output, where the engine looks for it."""
        if self._plan.is_on_host(name):
            self._kept.append(np.ascontiguousarray(array))
            pointer = self._kept[-1].ctypes.data
        else:
            pointer = self._cuda.allocate(array.nbytes)
            self._cuda.upload(pointer, array)
        self._plan.context.set_tensor_address(name, pointer)

    def _run(self) -> None:
        self._plan.enqueue(self._cuda.stream)

    def _capture(self) -> str:
        """Has runs launched as one CUDA graph; returns "yes", or why they are not."""
        try:
            self._enqueue = self._cuda.capture(self._run)
        except ArtifactError as error:
            return f"no: {error}"
        return "yes"


def _typed(trt: ModuleType, dtype: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Returns an input in the engine's type: TensorRT 8 makes INT32 of INT64."""
    try:
        return array.astype(trt.nptype(dtype), copy=False)
    except TypeError:  # numpy has no such type, so it is not converted
        return array


def _ones(trt: ModuleType, plan: OpenedPlan) -> dict[str, NDArray[Any]]:
    feed, engine = {}, plan.engine
    for name in plan.inputs:
        shape = tuple(engine.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            shape = tuple(engine.get_tensor_profile_shape(name, 0)[1])
        try:
            feed[name] = np.ones(shape, trt.nptype(engine.get_tensor_dtype(name)))
        except TypeError as error:  # numpy has no such type
            raise ArtifactError(
                f"input {name} of the engine cannot be generated: {error}; give its model too"
            ) from error
    return feed
