"""TensorRT 8.6 to 11: builds on the GPU that the engine is for.

explicit    the Q/DQ model as it is; strongly typed where the version can    a process of its own
implicit    the float model, INT8 by a calibrator; up to TensorRT 10         here, where the data is
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trtq import lazy
from trtq.calibrators.device import CudaMemory, DeviceMemory
from trtq.calibrators.tensorrt import AnyCalibrator, make_batch_calibrator, make_scale_calibrator
from trtq.errors import MissingDependency, TrtqError
from trtq.models.operators import list_plugins
from trtq.pipeline.engine.backend import (
    Backend,
    BuildRequest,
    BuiltEngine,
    ImplicitQuantization,
    split_version,
)
from trtq.pipeline.engine.builder import build as build_here
from trtq.pipeline.engine.gpu import explain_missing_gpu, find_compute_capability
from trtq.pipeline.engine.kernels import parse_inspector
from trtq.pipeline.engine.plugins import load_plugins
from trtq.pipeline.engine.process import Flavour, ProcessOutcome, run, run_in_child
from trtq.pipeline.engine.trtexec import format_trtexec

if TYPE_CHECKING:
    from types import ModuleType

_FIRST_OF_FP4 = (10, 8)
_IMPLICIT_REASON = (
    "TensorRT was free to run it in INT8 and found another precision faster; explicit quantization "
    "(--quantization explicit) does exactly what the graph says"
)


@dataclass(frozen=True)
class TensorRt(Backend):
    """NVIDIA TensorRT, of the machine or its container.

    Attributes:
        module: The Python module; another builder with the same names can stand in.
        memory: Opens the GPU memory that calibration batches go to.
        oldest: The first version that works.
    """

    module: str = "tensorrt"
    memory: Callable[[], DeviceMemory] = CudaMemory
    oldest: tuple[int, ...] = (8, 6)
    name: ClassVar[str] = "tensorrt"

    @property
    def lacks(self) -> Mapping[str, str]:
        """What this version cannot do, and why."""
        lacks = {
            "compute_capabilities": "it builds for the GPU of this machine; see --hardware-compatibility"
        }
        trt = self._import()
        if trt is not None and not hasattr(trt, "IInt8EntropyCalibrator2"):
            lacks["implicit"] = (
                f"TensorRT {trt.__version__} has no INT8 calibrators, they ended with TensorRT 10; use "
                "--quantization explicit"
            )
        if trt is not None and not self.takes_types():
            lacks["fp8"] = (
                f"TensorRT {trt.__version__} does not go by the types of the graph, as 9 and later do; "
                "use --int8"
            )
        if trt is not None and split_version(str(trt.__version__))[:2] < _FIRST_OF_FP4:
            lacks["nvfp4"] = (
                f"TensorRT {trt.__version__} has no FP4, which came with 10.8; use --int8 or --fp8"
            )
        return lacks

    def version(self) -> str:
        """Returns TensorRT's version; empty if it cannot be imported."""
        trt = self._import()
        return "" if trt is None else str(trt.__version__)

    def why_not(self) -> str:
        """Returns why it cannot build here; empty if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed; install TensorRT 8.6 to 11, or use NVIDIA's container"
        try:
            trt = importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            return f"{self.module} cannot be imported here: {error}"
        if not hasattr(trt, "Builder"):
            return f"{self.module} is an empty package here, without its libraries; install it again"
        if split_version(str(trt.__version__))[:2] < self.oldest:
            return f"TensorRT {trt.__version__} is installed; 8.6 to 11 are supported"
        if missing := explain_missing_gpu():
            return f"it builds on the GPU that the engine is for, and {missing} here; tensorrt-rtx needs none"
        return ""

    def takes_types(self) -> bool:
        """Returns whether networks can be strongly typed: since TensorRT 9; always in TensorRT 11."""
        trt = self._import()
        return hasattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED")

    def build(self, request: BuildRequest) -> BuiltEngine:
        """Returns the engine, and what its layers run as; see `Backend.build`."""
        if reason := self.why_not():
            raise MissingDependency(f"backend {self.name}: {reason}")
        trt = importlib.import_module(self.module)
        flavour = Flavour(self.module, f"TensorRT {trt.__version__}", inspects=True)
        if request.implicit is None:
            return _built(run(flavour, request, run_in_child(flavour, request.started)))
        with ExitStack() as stack:
            calibrator = self._calibrator(trt, request.implicit, stack)
            shapes = request.implicit.shapes.items()
            dynamic = {name: list(shape) for name, shape in shapes if name in request.profiles}

            def work(wanted: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
                try:
                    answer = build_here(trt, wanted, place, calibrator)
                except TrtqError:
                    if calibrator.was_asked:
                        calibrator.raise_if_wrong()
                    raise  # TensorRT's own words
                calibrator.raise_if_wrong()
                return answer

            outcome = run(flavour, request, work, calibration_shapes=dynamic)
        return _built(
            outcome,
            usual_reason=_IMPLICIT_REASON,
            calibration_cache=calibrator.cache,
            calibration_samples=calibrator.num_samples,
        )

    def command(self, request: BuildRequest) -> str:
        """Returns the `trtexec` command that builds the same, run in the folder of the model."""
        has_typed_flag = self.takes_types() and hasattr(self._import(), "IInt8EntropyCalibrator2")
        return format_trtexec(request, has_typed_flag=has_typed_flag)

    def runner(self, plan: bytes, name: str) -> Any:
        """Returns a Polygraphy `TrtRunner` of the engine."""
        trt = importlib.import_module(self.module)
        polygraphy = lazy.require("polygraphy.backend.trt", None, "running the engine")
        load_plugins(trt, polygraphy.get_trt_logger(), list_plugins())
        runtime = trt.Runtime(polygraphy.get_trt_logger())
        runtime.engine_host_code_allowed = True  # a version-compatible engine brings its runtime
        return polygraphy.TrtRunner(polygraphy.EngineFromBytes(plan, runtime=runtime), name=name)

    def _import(self) -> ModuleType | None:
        try:
            trt = importlib.import_module(self.module)
        except (ImportError, OSError):
            return None
        return trt if hasattr(trt, "Builder") else None  # an empty package is none

    def _calibrator(self, trt: ModuleType, implicit: ImplicitQuantization, stack: ExitStack) -> AnyCalibrator:
        if implicit.batches is None:
            return make_scale_calibrator(trt, implicit.scales)
        memory = stack.enter_context(self.memory())
        return make_batch_calibrator(trt, implicit.algorithm, implicit.batches, memory, implicit.shapes)


def _built(outcome: ProcessOutcome, **further: Any) -> BuiltEngine:
    kernels = tuple(parse_inspector(outcome.answer["inspector"]))
    targets = (here,) if (here := find_compute_capability()) else ()
    return BuiltEngine(outcome.plan, kernels, outcome.warnings, targets=targets, **further)
