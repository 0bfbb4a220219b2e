"""TensorRT-RTX: builds engines without a GPU, takes precision from the graph only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

from trtq.errors import MissingDependency
from trtq.pipeline.engine.backend import Backend, BuildRequest, BuiltEngine
from trtq.pipeline.engine.kernels import parse_log
from trtq.pipeline.engine.process import Flavour, run, run_in_child

_FLAVOUR = Flavour("tensorrt_rtx", "TensorRT-RTX", inspects=False)


class TensorRtRtx(Backend):
    """NVIDIA TensorRT-RTX, from the wheel `tensorrt-rtx-cu12`; it builds in a child process."""

    name = "tensorrt-rtx"
    takes_scales_by_matrix = True
    lacks: Mapping[str, str] = {
        "implicit": "it takes Q/DQ models only; for implicit quantization take TensorRT 8.6 to 10",
        "timing_cache": "it times nothing: kernels are chosen where the engine is loaded",
        "hardware_compatibility": "name the GPUs with --compute-capability",
        "version_compatible": "it has no lean runtime",
    }

    def version(self) -> str:
        """Returns the version of the wheel; empty if it is not installed."""
        for package in ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"):
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""

    def why_not(self) -> str:
        """Returns why it cannot build here; empty if it can."""
        if importlib.util.find_spec("tensorrt_rtx") is None:
            return "tensorrt_rtx is not installed; pip install 'trtq[rtx]' (builds without a GPU)"
        return ""

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Returns the engine; see `Backend.build`."""
        if reason := self.why_not():
            raise MissingDependency(f"backend {self.name}: {reason}")
        outcome = run(_FLAVOUR, request, run_in_child(_FLAVOUR))
        return BuiltEngine(outcome.plan, tuple(parse_log(outcome.answer["layers"])), outcome.warnings)
