"""What is built: for which backend, in which precisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from trtq.errors import UsageError
from trtq.models.option import setting
from trtq.pipeline.engine.backend import BuilderOptions, Precision
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.formats import FP16, LAYER_FORMATS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.formats.throughput import choose_fastest
from trtq.pipeline.graph.placement import ATTENTION, DEFAULT_OP_TYPES, QUANTIZABLE, SOFTMAX

HighPrecision = Literal["auto", "fp16", "bf16", "fp32"]
Quantization = Literal["auto", "explicit", "implicit"]
KvCache = Literal["int8", "fp8"]


@dataclass(frozen=True, slots=True)
class Target:
    """What is built.

    Attributes:
        precision: "int8", "fp8" or "nvfp4", "fp16" for the FP16 engine alone, or "weights" for float
            activations and `weights`. With `formats` it is the fastest of them, whatever is given.
        high_precision: Precision of everything that is not quantized; auto is fp16 for TensorRT. bf16 needs
            --weights without --int8.
        backend: Engine builder; auto is tensorrt if it works here, otherwise tensorrt-rtx.
        compute_capabilities: Target GPU, such as 8.9 (repeatable). None: the backend's: Ampere and newer.
        workspace_bytes: Limit of scratch memory, such as 512M or 4G. None: the backend's.
        shapes: Given profile shapes.
        op_types: Operator types to quantize, separated by commas. Also possible: ConvTranspose, Attention
            (every MatMul of two activations, fused or not) and Softmax (its input).
        quantization: explicit: Q/DQ in the model, for any TensorRT. implicit: by TensorRT 8.6 to 10, with its
            own calibrator (entropy, minmax) or with trtq's ranges. auto: explicit.
        options: How the builder works.
        weights: How weights are stored that Q/DQ does not quantize; None: as they are.
        auto: If the gate fails, keep the layers in float that make it pass at the lowest run-time cost. They
            are selected on every other batch of the evaluation data and validated on the rest.
        formats: Formats that layers may use, separated by commas: int8, fp8, and fp16 (not quantized). Every
            layer starts in the fastest; if the gate fails, layers move to more accurate ones. --auto means
            --formats int8,fp16.
        requantize: For a model with Q/DQ: convert to symmetric INT8 where no exact repair exists.
        kv_cache: Store the KV cache of a decoder in this format: its inputs and outputs are quantized, with
            one scale per pair.
    """

    precision: Precision = "int8"
    high_precision: HighPrecision = setting("auto")
    backend: str = setting("auto")
    compute_capabilities: tuple[str, ...] = setting((), "--compute-capability", metavar="X.Y")
    workspace_bytes: int | None = setting(None, "--workspace", metavar="SIZE")
    shapes: GivenShapes = field(default_factory=GivenShapes)
    op_types: tuple[str, ...] = setting(DEFAULT_OP_TYPES, metavar="TYPES")
    quantization: Quantization = setting("auto")
    options: BuilderOptions = field(default_factory=BuilderOptions)
    weights: WeightScheme | None = None
    auto: bool = setting(False)
    formats: tuple[str, ...] = setting((), metavar="FORMATS")
    requantize: bool = setting(False)
    kv_cache: KvCache | None = setting(None)

    def __post_init__(self) -> None:
        choices: tuple[str | None, ...]
        for name, value, choices in (
            ("precision", self.precision, get_args(Precision)),
            ("high_precision", self.high_precision, get_args(HighPrecision)),
            ("quantization", self.quantization, get_args(Quantization)),
            ("kv_cache", self.kv_cache, (None, *get_args(KvCache))),
        ):
            if value not in choices:
                known_values = ", ".join(filter(None, choices))
                raise UsageError(f"{name} must be one of {known_values}, got {value!r}")
        if self.formats:
            self._check_formats()
            fastest = choose_fastest(self.code_formats, self.compute_capabilities)
            object.__setattr__(self, "precision", fastest)
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
        if self.weights is not None and self.weights.in_products and self.form is None:
            raise UsageError("W4A8 has activations of 8 bits; give --int8 or --fp8 with --w4a8")
        if self.high_precision == "bf16" and self.precision != "weights":
            raise UsageError(
                "bf16 is for weights of fewer bits; other engines compute the rest in fp16 or fp32"
            )
        if self.weights is not None and self.quantization == "implicit":
            raise UsageError(
                "weights of fewer bits stand in the graph, which --quantization implicit does not read"
            )
        if (self.auto or self.formats) and (self.form is None or self.quantization == "implicit"):
            raise UsageError(
                f"{self.search_option} chooses which layers get Q/DQ, of which there are none with "
                f"{self.precision if self.form is None else '--quantization implicit'}; leave it out"
            )
        if (self.auto or self.formats) and self.weights is not None:
            raise UsageError(
                f"{self.search_option} keeps layers as they are, and the weights of these would be stored in "
                f"fewer bits; leave one of the two out"
            )
        if self.workspace_bytes is not None and not 1 <= self.workspace_bytes < 1 << 63:
            raise UsageError(f"the workspace must have 1 to 2^63 - 1 bytes, got {self.workspace_bytes}")

    def _check_formats(self) -> None:
        known = (*LAYER_FORMATS, FP16.name)
        if unknown := [name for name in self.formats if name not in known]:
            raise UsageError(f"{unknown[0]!r} is not a format for layers; --formats takes {', '.join(known)}")
        if not self.code_formats:
            raise UsageError("--formats fp16 quantizes nothing; use --fp16, or name int8 or fp8 too")

    @property
    def name(self) -> str:
        """What the model is called in files and reports: "int8", "fp8", "fp16", "int4-weights" ..."""
        if self.precision == "weights" and self.weights is not None:
            return f"{self.weights.format}-weights"
        if self.precision == "fp16" and self.kv_cache is not None:
            return f"{self.kv_cache}-cache"
        return self.precision if len(self.code_formats) < 2 else "quantized"

    @property
    def allowed(self) -> tuple[str, ...]:
        """The formats that each layer may have, "fp16" for what is not quantized."""
        return self.formats or ((self.precision, FP16.name) if self.auto else (self.precision,))

    @property
    def code_formats(self) -> tuple[Precision, ...]:
        """Those of codes, INT8 first."""
        return tuple(name for name in get_args(Precision) if name in LAYER_FORMATS and name in self.allowed)

    @property
    def code_words(self) -> str:
        """The same as people say it: "INT8", "INT8 and FP8"."""
        return " and ".join(name.upper() for name in self.code_formats)

    @property
    def searches(self) -> bool:
        """Whether formats of layers are chosen if the gate fails."""
        return len({*self.allowed}) > 1

    @property
    def search_option(self) -> str:
        """What asked for it."""
        return "--formats" if self.formats else "--auto"

    @property
    def form(self) -> CodeFormat | None:
        """The number format of layers with Q/DQ; None where there are none."""
        return LAYER_FORMATS.get(self.precision)

    @property
    def needs_data(self) -> bool:
        """Whether a float model is quantized with the help of data."""
        is_read = self.weights is not None and self.weights.needs_data
        return self.form is not None or self.kv_cache is not None or is_read

    @property
    def unfolds_attention(self) -> bool:
        """Whether attention that keeps a cache becomes plain nodes; ONNX Runtime has kernels of its own."""
        return self.backend != "onnxruntime" or self.kv_cache is not None

    @property
    def min_opset(self) -> int:
        """The first opset that holds what is built."""
        layers = max((LAYER_FORMATS[name].first_opset for name in self.code_formats), default=13)
        weights = () if self.weights is None else self.weights.number_formats
        cache = 13 if self.kv_cache is None else LAYER_FORMATS[self.kv_cache].first_opset
        return max([layers, cache, *(form.min_opset for form in weights)])
