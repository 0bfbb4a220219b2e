"""What every backend is asked, and what it answers."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trtq.calibrators.batches import Batches
from trtq.errors import UsageError
from trtq.models.option import setting
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.kernels import Kernel

if TYPE_CHECKING:
    import onnx_ir as ir

HardwareCompatibility = Literal["none", "ampere+", "same-compute-capability"]
Precision = Literal["int8", "fp8", "nvfp4", "fp16", "weights"]
"""Of an engine; "weights": float activations, and weights of fewer bits."""
Kept = Mapping[str, Literal["fp16", "fp32"]]


@dataclass(frozen=True, slots=True)
class BuilderOptions:
    """How the builder works.

    Attributes:
        timing_cache: File to load TensorRT's kernel timings from and save them to. Several builds may share
            it.
        optimization_level: 0 builds fastest; 5 gives the fastest engine. None: the builder's, 3.
        hardware_compatibility: Other GPUs that the TensorRT engine must also run on.
        version_compatible: Let later TensorRT releases of the same major version load the engine.
    """

    timing_cache: Path | None = setting(None)
    optimization_level: int | None = setting(None, "--builder-optimization-level")
    hardware_compatibility: HardwareCompatibility = setting("none")
    version_compatible: bool = setting(False)

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"the builder's optimization level is 0 to 5, got {self.optimization_level}")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise UsageError(
                f"hardware compatibility must be one of {', '.join(get_args(HardwareCompatibility))}, "
                f"got {self.hardware_compatibility!r}"
            )
        if self.timing_cache is not None and not self.timing_cache.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {self.timing_cache.parent} for the timing cache")


@dataclass(frozen=True, slots=True)
class ImplicitQuantization:
    """How TensorRT up to 10 quantizes a float model by itself.

    Attributes:
        scales: `amax / 127` by tensor, instead of calibrating; empty: TensorRT calibrates with `batches`.
        algorithm: The calibrator of TensorRT that runs over the batches: "entropy2" or "minmax".
        batches: The data; None where scales are given.
        shapes: Of every batch, by input.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    algorithm: str = "entropy2"
    batches: Batches | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What is built, and for which machine.

    Attributes:
        model: The ONNX file.
        profiles: By the name of each dynamic input.
        compute_capabilities: Of the target GPUs, such as ("8.9",); empty: the backend's default.
        workspace_bytes: Scratch memory that the engine may use; None: the backend's default.
        options: How the builder works.
        precisions: What the builder may compute in besides FP32; empty: exactly what the file's types say.
        implicit: How the builder quantizes the model; None: it does not, the model is as it shall be.
        kept: The precision of nodes, by name, where the builder would choose a lower one of `precisions`.
        started: Is given the builder's process when it has started, so that another thread can end it.
    """

    model: Path
    profiles: Mapping[str, InputSpec] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    options: BuilderOptions = field(default_factory=BuilderOptions)
    precisions: tuple[Precision, ...] = ()
    implicit: ImplicitQuantization | None = None
    kept: Kept = field(default_factory=dict)
    started: Callable[[subprocess.Popen[str]], None] | None = None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a backend made.

    Attributes:
        plan: The engine; None if the backend runs the ONNX file itself.
        kernels: What the engine runs.
        warnings: The builder's own warnings, each once.
        usual_reason: Why this backend usually leaves a quantized layer in float.
        targets: The compute capabilities that it runs on, where the builder has no choice of them.
        calibration_cache: What the builder's own calibration found, as TensorRT writes it; None without one.
        calibration_samples: How many samples that calibration took.
    """

    plan: bytes | None
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...] = ()
    usual_reason: str = "the builder found no kernel for it as asked; --skip it to save the conversions"
    targets: tuple[str, ...] = ()
    calibration_cache: bytes | None = None
    calibration_samples: int = 0


def split_version(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version: (10, 16, 1) of "10.16.1.post1"."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


class Backend(ABC):
    """Something that runs a quantized model in production."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As in `--backend`."""

    @property
    def runs_fp16(self) -> bool:
        """Whether what is not quantized gains from FP16."""
        return True

    @property
    def takes_scales_by_matrix(self) -> bool:
        """Whether it runs a product in INT8 whose weight has scales for each matrix and output channel."""
        return False

    @property
    def needs_coded_outputs(self) -> bool:
        """Whether it runs a convolution in INT8 only if its output has codes with a zero point too."""
        return False

    @property
    def fuses_attention(self) -> bool:
        """Whether it computes attention in 8 bits in one kernel."""
        return True

    @property
    def parts_packed_products(self) -> bool:
        """Whether it multiplies in float where one product gives query, key and value (`graph/packed.py`)."""
        return False

    @property
    def lacks(self) -> Mapping[str, str]:
        """Fields of a build request that it cannot serve, and why: "timing_cache", "implicit", "nvfp4" ..."""
        return {}

    @abstractmethod
    def version(self) -> str:
        """Returns the library's version; empty if it is not installed."""

    def why_not(self) -> str:
        """Returns why the backend cannot build here and what to do; empty if it can."""
        return ""

    def why_not_run(self) -> str:
        """Returns why engines of this backend do not run here; empty if they do."""
        return self.why_not()

    def takes_types(self) -> bool:
        """Returns whether it computes in the types of the graph, so that FP16 must stand in the graph."""
        return True

    @abstractmethod
    def build(self, request: BuildRequest) -> BuiltEngine:
        """Returns the engine.

        Raises:
            MissingDependency: The library, or a GPU that it needs, is missing.
            ModelError: The backend does not take this model; nodes and reasons are named.
            UsageError: It does not have such a target or option, or the timing cache is not its own.
            DataError: The calibration data does not fit, or is too little.
            BuildError: The build failed or the builder crashed.
        """

    def command(self, request: BuildRequest) -> str:
        """Returns the command of the vendor's own tool that builds the same; empty if there is none."""
        return ""

    def overflows(self) -> bool:
        """Returns whether its kernels on this processor overflow with weights of 8 bits."""
        return False

    @property
    def is_judged_by_engine(self) -> bool:
        """Whether what it builds is judged by running that, and not by the model that it is built from."""
        kind = type(self)
        return kind.runner is not Backend.runner or kind.model_runner is not Backend.model_runner

    def runner(self, plan: bytes, name: str) -> Any:
        """Returns a Polygraphy runner of an engine, named so; None if a build is not judged by running it."""
        return None

    def engine_runner(self, plan: bytes, name: str) -> Any:
        """Returns a Polygraphy runner of an engine, named so, for who uses it."""
        return self.runner(plan, name)

    def model_runner(self, model: ir.Model | Path | bytes, name: str) -> Any:
        """Returns a Polygraphy runner of the model, named so, where that is the engine; else None."""
        return None
