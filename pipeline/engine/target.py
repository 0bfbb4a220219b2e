"""What is built: for which backend, in which precisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from trtq.errors import UsageError
from trtq.pipeline.engine.backend import BuilderOptions, Precision
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import ATTENTION, DEFAULT_OP_TYPES, QUANTIZABLE, SOFTMAX

HighPrecision = Literal["auto", "fp16", "bf16", "fp32"]
Quantization = Literal["auto", "explicit", "implicit"]


@dataclass(frozen=True, slots=True)
class Target:
    """What is built.

    Attributes:
        precision: "int8", "fp16" for the FP16 engine alone, or "weights" for float activations and `weights`.
        high_precision: What is not quantized computes in this; "auto": FP16 where the backend gains from it.
            "bf16" is for the precision "weights".
        backend: "auto" or a name of `trtq.pipeline.engine.backends.BACKENDS`.
        compute_capabilities: Of the target GPUs, such as ("8.9",); empty: the backend's default.
        workspace_bytes: Scratch memory that the engine may use; None: the backend's default.
        shapes: Given profile shapes.
        op_types: The types of nodes that are quantized.
        quantization: "explicit" by Q/DQ, "implicit" by TensorRT up to 10 itself; "auto": explicit.
        options: How the builder works.
        weights: How weights are stored that Q/DQ does not quantize; None: as they are.
        auto: Whether layers are kept out of INT8 where the gate fails otherwise.
        requantize: Of a Q/DQ model: make symmetric int8 of what has no exact repair.
    """

    precision: Precision = "int8"
    high_precision: HighPrecision = "auto"
    backend: str = "auto"
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    shapes: GivenShapes = field(default_factory=GivenShapes)
    op_types: tuple[str, ...] = DEFAULT_OP_TYPES
    quantization: Quantization = "auto"
    options: BuilderOptions = field(default_factory=BuilderOptions)
    weights: WeightScheme | None = None
    auto: bool = False
    requantize: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("precision", self.precision, get_args(Precision)),
            ("high_precision", self.high_precision, get_args(HighPrecision)),
            ("quantization", self.quantization, get_args(Quantization)),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        known = (*QUANTIZABLE, ATTENTION, SOFTMAX)
        if unknown := [name for name in self.op_types if name not in known]:
            raise UsageError(
                f"{unknown[0]!r} cannot be quantized; the types to quantize are {', '.join(known)}"
            )
        if (self.precision == "weights" and self.weights is None) or (
            self.precision == "fp16" and self.weights is not None
        ):
            raise UsageError(
                'the precision is "weights" if a weight scheme is given without INT8, and only then'
            )
        if self.high_precision == "bf16" and self.precision != "weights":
            raise UsageError(
                "bf16 is for weights of fewer bits; INT8 and FP16 engines compute the rest in fp16 or fp32"
            )
        if self.weights is not None and self.quantization == "implicit":
            raise UsageError(
                "weights of fewer bits stand in the graph, which --quantization implicit does not read"
            )
        if self.auto and (self.precision != "int8" or self.quantization == "implicit"):
            raise UsageError(
                f"--auto chooses which layers get Q/DQ, of which there are none with "
                f"{self.precision if self.precision != 'int8' else '--quantization implicit'}; leave it out"
            )
        if self.auto and self.weights is not None:
            raise UsageError(
                "--auto keeps layers as they are, and the weights of these would be stored in fewer bits; "
                "leave one of the two out"
            )
        if self.workspace_bytes is not None and not 1 <= self.workspace_bytes < 1 << 63:
            raise UsageError(f"the workspace must have 1 to 2^63 - 1 bytes, got {self.workspace_bytes}")

    @property
    def name(self) -> str:
        """What the model is called in files and reports: "int8", "fp16", "int4-weights"."""
        if self.precision == "weights" and self.weights is not None:
            return f"{self.weights.format}-weights"
        return self.precision

    @property
    def needs_data(self) -> bool:
        """Whether a float model is quantized with the help of data."""
        return self.precision == "int8" or (self.weights is not None and self.weights.method == "gptq")

    @property
    def min_opset(self) -> int:
        """The first opset that holds what is built."""
        return 13 if self.weights is None else self.weights.number_format.min_opset
