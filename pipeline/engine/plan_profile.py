"""An engine at work whose layers are timed by TensorRT's own profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.kernel_times import KernelTime, find_midmean
from trtq.pipeline.engine.kernels import parse_inspector, split_names
from trtq.pipeline.engine.plan_run import PlanRun

_REFORMAT = re.compile(r"Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (.*)", re.DOTALL)
"""How TensorRT calls a kernel that only converts what a layer reads or gives."""


class ProfiledPlan:
    """A plan on the GPU that is run layer by layer, to time each: that takes longer than a plain run.

    Attributes:
        shapes: Of the inputs.
        graph: Why it is no CUDA graph.
        gpu_bytes: What loading it and its buffers took of the GPU's memory.
    """

    def __init__(
        self, trt: ModuleType, plan: bytes, feed: Mapping[str, NDArray[Any]] | None, cuda: Cuda
    ) -> None:
        """Loads the plan with the bindings `trt` of its version, and runs it once.

        Raises:
            ArtifactError: The library does not load the plan, or it does not take these inputs.
        """
        self._run = PlanRun(trt, plan, feed, cuda, graph=False)
        self._times = defaultdict[str, list[float]](list)
        self._run.attach_profiler(_create_profiler(trt, self._times))
        self._kernels = {kernel.name: kernel for kernel in parse_inspector(self._run.inspect(trt))}
        self.shapes, self.gpu_bytes = self._run.shapes, self._run.gpu_bytes
        self.graph = "no: its layers are timed one by one"

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Returns the milliseconds of runs for about so many seconds, and how many seconds went by."""
        return self._run.measure(seconds)

    def list_kernels(self) -> list[KernelTime]:
        """Returns the layers in the order of their first run."""
        return [self._describe(name, find_midmean(times)) for name, times in self._times.items()]

    def _describe(self, name: str, ms: float) -> KernelTime:
        reformat, kernel = _REFORMAT.match(name), self._kernels.get(name)
        if reformat:
            return KernelTime(name, "Reformat", split_names(reformat[1]), ms, converts=True)
        if kernel is None:  # of an engine that was built without detailed profiling verbosity
            return KernelTime(name, "", split_names(name), ms)
        return KernelTime(name, kernel.kind, kernel.nodes, ms, converts=kernel.kind == "Reformat")


def _create_profiler(trt: ModuleType, times: dict[str, list[float]]) -> Any:
    """Returns a profiler that adds the time of each layer to the others of its name."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name].append(ms)

    return Profiler()
