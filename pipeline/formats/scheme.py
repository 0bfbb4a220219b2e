"""What is done to the weights of a weight-only model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trtq.errors import UsageError

WeightFormat = Literal["int8", "fp8", "int4", "nf4"]
WeightMethod = Literal["rtn", "mse", "gptq"]
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""TensorRT runs INT4 blocks of 8 to 128 fused; ONNX Runtime's MatMulBnb4 takes powers of two from 16 on."""


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How weights are stored.

    Attributes:
        format: "int8" and "fp8" (E4M3) have one scale for each output channel (each row of an embedding);
            "int4" and "nf4" have one for each block along the axis that is summed over.
        method: Of INT4: "rtn" rounds to nearest, "mse" searches the clip of every block, "gptq" makes up for
            each rounding in what is not rounded yet, and needs data. The other formats have only "rtn".
        block_size: Elements to a scale, for INT4 and NF4.
        double_quantization: Whether NF4's block scales are held in 8 bits (QLoRA, section 3).
        keep_sensitive: Whether layers with the usual sensitive names keep their precision: see `SENSITIVE`.
    """

    format: WeightFormat
    method: WeightMethod = "rtn"
    block_size: int = 64
    double_quantization: bool = False
    keep_sensitive: bool = True

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("the weight format", self.format, get_args(WeightFormat)),
            ("the weight method", self.method, get_args(WeightMethod)),
            ("the block size", self.block_size, BLOCK_SIZES),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
        if self.method != "rtn" and self.format != "int4":
            raise UsageError(
                f"the weight method {self.method} is for int4, {self.format} weights have only rtn"
            )
        if self.double_quantization and self.format != "nf4":
            raise UsageError(f"double quantization is for nf4, not for {self.format}")

    @property
    def is_per_channel(self) -> bool:
        """Whether scales belong to whole channels, not to blocks."""
        return self.format in ("int8", "fp8")

    @property
    def min_opset(self) -> int:
        """The first opset that can hold the format for TensorRT."""
        return 19 if self.is_per_channel else 21
