"""What the user wants done to weights that Q/DQ does not quantize."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trtq.errors import UsageError
from trtq.pipeline.formats import WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.codes import DATA_METHODS, CodeFormat


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How weights are stored.

    Attributes:
        format: A name in `WEIGHT_FORMATS`. "int8" and "fp8" have one scale for each output channel (each row
            of an embedding); "int4" and "nf4" have one for each block along the axis that is summed over.
        method: One of the format's methods: see `CodeFormat`.
        block_size: Elements to a scale, where the format has blocks.
        double_quantization: Whether NF4's block scales are held in 8 bits (QLoRA, section 3).
        keep_sensitive: Whether layers with the usual sensitive names keep their precision: see `SENSITIVE`.
        in_products: Whether products with quantized activations store their weight so too, and turn it into
            the format of the activation in each run (W4A8).
        others: Regular expressions and formats: a weight is stored in the format of the first that is found
            in its name or that of a node which reads it. The usual sensitive names do not hold for it.
    """

    format: str
    method: str = "rtn"
    block_size: int = 64
    double_quantization: bool = False
    keep_sensitive: bool = True
    in_products: bool = False
    others: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("the weight format", self.format, WEIGHT_FORMATS),
            ("the weight method", self.method, WEIGHT_METHODS),
            ("the block size", self.block_size, BLOCK_SIZES),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
        if self.method not in self.number_format.methods:
            able = " and ".join(name for name, item in WEIGHT_FORMATS.items() if self.method in item.methods)
            raise UsageError(
                f"the weight method {self.method} is for {able}, {self.format} weights have only "
                f"{', '.join(self.number_format.methods)}"
            )
        for pattern, form in self.others:
            self._check_other(pattern, form)
        if self.double_quantization and self.number_format.is_linear:
            able = " and ".join(name for name, item in WEIGHT_FORMATS.items() if not item.is_linear)
            raise UsageError(f"double quantization is for {able}, not for {self.format}")

        if self.in_products and (self.format, self.method) != ("int4", "mse"):
            raise UsageError(
                f"W4A8 stores weights as int4, with clips by mse, not as {self.format} by {self.method}; "
                f"leave --weights and --weight-method out, or --w4a8"
            )

    def _check_other(self, pattern: str, form: str) -> None:
        if form not in WEIGHT_FORMATS:
            given = f"{pattern}={form}"
            raise UsageError(
                f"{given!r} is not REGEX=FORMAT; the format is one of {', '.join(WEIGHT_FORMATS)}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error
        if self.needs_data or self.in_products:
            what = "--w4a8" if self.in_products else f"--weight-method {self.method}"
            raise UsageError(f"--weights-for and {what} contradict each other; leave one of them out")

    def find_other(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Returns the pattern and the format that hold for a weight with these names; None if none does."""
        held = [*names]
        return next((item for item in self.others if any(re.search(item[0], name) for name in held)), None)

    def choose(self, names: Iterable[str]) -> WeightScheme:
        """Returns the scheme of a weight with this name and those of its readers."""
        other = self.find_other(names)
        if other is None:
            return self
        is_double = self.double_quantization and not WEIGHT_FORMATS[other[1]].is_linear
        return WeightScheme(other[1], "rtn", self.block_size, is_double, keep_sensitive=False)

    @property
    def number_formats(self) -> tuple[CodeFormat, ...]:
        """The format, and those of `others`."""
        return tuple(dict.fromkeys([self.number_format, *(WEIGHT_FORMATS[form] for _, form in self.others)]))

    @property
    def has_blocks(self) -> bool:
        """Whether a format has a scale for each block."""
        return any(form.block_sizes for form in self.number_formats)

    @property
    def needs_data(self) -> bool:
        """Whether the method looks at what the weights are multiplied with."""
        return self.method in DATA_METHODS

    @property
    def number_format(self) -> CodeFormat:
        """All that is true of the format."""
        return WEIGHT_FORMATS[self.format]
