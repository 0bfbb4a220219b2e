"""A plan that TensorRT or TensorRT-RTX has loaded, with a context to run it in."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.models.operators import list_plugins
from trtq.pipeline.engine.plugins import load_plugins


class OpenedPlan:
    """An engine of a library's bindings, its context, and what the library says.

    Attributes:
        engine: The library's `ICudaEngine`.
        context: Its `IExecutionContext`.
        inputs: Their names, in the engine's order; `outputs` likewise.
    """

    def __init__(self, trt: ModuleType, plan: bytes) -> None:
        """Loads the plan with the bindings `trt` of its version.

        Raises:
            ArtifactError: The library does not load it.
            UsageError: A library of plugins cannot be loaded.
        """
        self._trt = trt
        self._logger = _logger(trt)
        load_plugins(trt, self._logger, list_plugins())
        self._runtime = trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = True  # a version-compatible engine brings its runtime
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ArtifactError(f"{trt.__name__} {trt.__version__} does not load it: {self.words()}")
        self.context = _context(trt, self.engine)
        if self.context is None:
            raise ArtifactError(f"{trt.__name__} {trt.__version__} gives it no context: {self.words()}")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])

    def take_shapes(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Tells the context the shapes of its next inputs.

        Raises:
            ArtifactError: The engine has other inputs, or no profile for these shapes.
        """
        if sorted(self.inputs) != sorted(inputs):
            raise ArtifactError(
                f"the engine takes {', '.join(self.inputs)}, it was given {', '.join(inputs)}"
            )
        self._choose_profile(inputs)
        for name, array in inputs.items():
            if not self.context.set_input_shape(name, tuple(array.shape)):
                raise ArtifactError(f"the engine has no profile for {name} {array.shape}: {self.words()}")

    def _choose_profile(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Has the context use the first of several optimization profiles that takes these shapes."""
        count = int(getattr(self.engine, "num_optimization_profiles", 1))
        for number in range(count) if count > 1 else ():
            if all(self._takes(name, array.shape, number) for name, array in inputs.items()):
                if number != self.context.active_optimization_profile:
                    self.context.set_optimization_profile_async(number, 0)
                return

    def _takes(self, name: str, shape: tuple[int, ...], number: int) -> bool:
        """Returns whether a profile takes a shape of an input; one without open dims has none."""
        if min(self.engine.get_tensor_shape(name), default=0) >= 0:
            return True
        low, _, high = self.engine.get_tensor_profile_shape(name, number)
        return len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def require_shapes(self) -> None:
        """Refuses to go on where the shapes of the outputs do not follow from the inputs, which are in place.

        Raises:
            ArtifactError: Some do not; the tensors that lack are named.
        """
        if missing := self.context.infer_shapes():
            raise ArtifactError(
                f"the engine's shapes do not follow from the inputs without {', '.join(missing)}"
            )

    def enqueue(self, stream: int) -> None:
        """Puts a run into a stream of CUDA.

        Raises:
            ArtifactError: The library refuses.
        """
        if not self.context.execute_async_v3(stream):
            raise ArtifactError(f"the engine does not run: {self.words()}")

    def is_on_host(self, name: str) -> bool:
        """Returns whether a tensor is read or written in the memory of the host, as shapes are."""
        return bool(self.engine.get_tensor_location(name) == self._trt.TensorLocation.HOST)

    def words(self) -> str:
        """Returns what the library said last."""
        return "; ".join(self._logger.lines[-4:]) or "it gave no reason"


def _context(trt: ModuleType, engine: Any) -> Any:
    """Returns a context; TensorRT-RTX compiles kernels for the shapes at once, not beside the first runs."""
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(config)


def _logger(trt: ModuleType) -> Any:
    """Returns a logger that keeps errors and warnings."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines = list[str]()

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.lines.append(" ".join(message.split()))

    return Logger()
