"""What every backend is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trtq.models.spec import InputSpec


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What is built, and for which machine.

    Attributes:
        model: The ONNX file; its precisions are those of the engine.
        profiles: By the name of each dynamic input.
        compute_capabilities: Of the target GPUs, such as ("8.9",); empty: the backend's default.
        workspace_bytes: Scratch memory that the engine may use; None: the backend's default.
    """

    model: Path
    profiles: Mapping[str, InputSpec] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None


_DEQUANTIZING = ("kgen", "shape_call", "runtime_fusion")
"""Kinds of generated kernels: what they read may be INT8, their arithmetic is not."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One step of an engine, as the builder names it.

    Attributes:
        kind: The builder's word for it, such as `correlation` (a convolution) or `gemm`.
        nodes: The ONNX nodes that it computes.
        inputs: The dtypes of its inputs.
        constants: The dtypes of its constants.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    constants: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The dtypes of what it multiplies: its first input, and its first constant or second input.

        Where it has both, one of them is a scale or is added; if one is INT8, the other is that one.
        """
        others = (*self.constants[:1], *self.inputs[1:2])
        return (*self.inputs[:1], *(("Int8",) if "Int8" in others else others[:1]))

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies INT8 with INT8."""
        return self.kind not in _DEQUANTIZING and self.operands == ("Int8", "Int8")


@dataclass(frozen=True, slots=True)
class Built:
    """What a backend made.

    Attributes:
        plan: The engine; None if the backend runs the ONNX file itself.
        kernels: What the engine runs.
        warnings: The builder's own warnings, each once.
        usual_reason: Why this backend usually leaves a quantized layer in float.
    """

    plan: bytes | None
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...] = ()
    usual_reason: str = "the builder found no INT8 kernel for this shape; --skip it to save the conversions"


class Backend(Protocol):
    """Something that runs a quantized model in production."""

    @property
    def name(self) -> str:
        """As in `--backend`."""
        ...

    @property
    def runs_fp16(self) -> bool:
        """Whether what is not quantized gains from FP16."""
        ...

    def version(self) -> str:
        """Returns the library's version; empty if it is not installed."""
        ...

    def why_not(self) -> str:
        """Returns why the backend cannot build here and what to do; empty if it can."""
        ...

    def build(self, request: BuildRequest) -> Built:
        """Returns the engine.

        Raises:
            ModelError: The backend does not take this model; nodes and reasons are named.
            UsageError: It does not have such a target.
            BuildError: The build failed.
        """
        ...
