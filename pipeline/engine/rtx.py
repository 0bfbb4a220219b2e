"""TensorRT-RTX: builds engines without a GPU and runs them on one, takes precision from the graph only."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import Any

from trtq.errors import MissingDependency
from trtq.models.runner import create_runner
from trtq.pipeline.engine.backend import Backend, BuildRequest, BuiltEngine
from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.gpu import explain_missing_gpu
from trtq.pipeline.engine.kernels import parse_log
from trtq.pipeline.engine.plan_session import PlanSession
from trtq.pipeline.engine.process import Flavour, run, run_in_child

_FLAVOUR = Flavour("tensorrt_rtx", "TensorRT-RTX", inspects=False)


class TensorRtRtx(Backend):
    """NVIDIA TensorRT-RTX, from the wheel `tensorrt-rtx-cu12`; it builds in a child process."""

    name = "tensorrt-rtx"
    takes_scales_by_matrix = True
    parts_packed_products = True
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

    def why_not_run(self) -> str:
        """Returns why engines do not run here: without a GPU they are only built."""
        missing = explain_missing_gpu()
        return self.why_not() or (missing and f"its engines run on an NVIDIA GPU, and {missing} here")

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Returns the engine; see `Backend.build`."""
        if reason := self.why_not():
            raise MissingDependency(f"backend {self.name}: {reason}")
        outcome = run(_FLAVOUR, request, run_in_child(_FLAVOUR, request.started))
        return BuiltEngine(outcome.plan, tuple(parse_log(outcome.answer["layers"])), outcome.warnings)

    def engine_runner(self, plan: bytes, name: str) -> Any:
        """Returns a Polygraphy runner of an engine, over the bindings of the wheel."""
        return create_runner(PlanSession(importlib.import_module("tensorrt_rtx"), plan, Cuda()), name)
