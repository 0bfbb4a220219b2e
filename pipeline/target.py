"""What is built: for which backend, in which precisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from trtq.errors import UsageError
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, QUANTIZABLE

Precision = Literal["int8", "fp16"]
HighPrecision = Literal["auto", "fp16", "fp32"]


@dataclass(frozen=True, slots=True)
class Target:
    """What is built.

    Attributes:
        precision: "int8", or "fp16" for the FP16 engine alone.
        high_precision: What is not quantized computes in this; "auto": FP16 where the backend gains from it.
        backend: "auto" or a name of `trtq.pipeline.engine.BACKENDS`.
        compute_capabilities: Of the target GPUs, such as ("8.9",); empty: the backend's default.
        workspace_bytes: Scratch memory that the engine may use; None: the backend's default.
        shapes: Given profile shapes.
        op_types: The types of nodes that are quantized.
        requantize: Of a Q/DQ model: make symmetric int8 of what has no exact repair.
    """

    precision: Precision = "int8"
    high_precision: HighPrecision = "auto"
    backend: str = "auto"
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    shapes: GivenShapes = field(default_factory=GivenShapes)
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    requantize: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("precision", self.precision, get_args(Precision)),
            ("high_precision", self.high_precision, get_args(HighPrecision)),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if unknown := [name for name in self.op_types if name not in QUANTIZABLE]:
            raise UsageError(
                f"{unknown[0]!r} cannot be quantized; the types to quantize are {', '.join(QUANTIZABLE)}"
            )
        if self.workspace_bytes is not None and not 1 <= self.workspace_bytes < 1 << 63:
            raise UsageError(f"the workspace must have 1 to 2^63 - 1 bytes, got {self.workspace_bytes}")
