"""Options that say what is built: in which precisions, by whom, for which GPUs and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from trtq.cli.options import apply_changes, combine_options, list_changes, take, take_one
from trtq.errors import UsageError
from trtq.models.option import setting
from trtq.pipeline.engine.backend import BuilderOptions, HardwareCompatibility, Precision
from trtq.pipeline.engine.profiles import GivenShapes, Shape, parse_shapes
from trtq.pipeline.engine.target import HighPrecision, Quantization, Target
from trtq.pipeline.formats import WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES

_SHAPES = "shapes of dynamic inputs: name:1x3x224x224 or name:[1,3,224,224]."


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What is asked for on the command line."""

    int8: bool = setting(False, "Build an INT8 engine (the default without --weights).")
    fp16: bool = setting(False, "Build the FP16 engine alone; with --int8 it changes nothing.")
    requantize: bool = setting(
        False,
        "For a model with Q/DQ: convert zero points and types without an exact repair to symmetric INT8.",
    )
    op_types: tuple[str, ...] = setting(
        DEFAULT_OP_TYPES,
        "Types of nodes to quantize, separated by commas. Also possible: ConvTranspose, Attention (the "
        "MatMul of two activations) and Softmax (its input).",
        metavar="TYPES",
    )
    high_precision: HighPrecision = setting(
        "auto",
        "Precision of what is not quantized; auto is fp16 for TensorRT. bf16 needs --weights without --int8.",
    )
    quantization: Quantization = setting(
        "auto",
        "explicit writes Q/DQ into the model, for any TensorRT. implicit leaves it to TensorRT 8.6 to 10, "
        "with its own calibrator (entropy, minmax) or with trtq's ranges. auto is explicit.",
    )
    weights: str | None = setting(
        None,
        "Store weights in fewer bits. Activations stay float, unless --int8 is given too: then convolutions "
        "and large products are INT8, and the other weights are stored in this format.",
    )
    weight_method: str | None = setting(
        None,
        "For int4: round to nearest, clip for the least error, or GPTQ, which needs data.  [default: mse]",
    )
    block_size: str = setting(
        "",
        "For int4 and nf4: elements for each scale. A weight that it does not divide gets a half, a quarter "
        "and so on, down to 16.  [default: 64]",
    )
    double_quant: bool = setting(False, "For nf4: store the scales in 8 bits.")
    quantize_sensitive: bool = setting(
        False, "Also store the weights of lm_head, proj_out, norm_out and classifier heads in fewer bits."
    )
    backend: str = setting("auto", "The engine builder.")
    compute_capability: tuple[str, ...] = setting(
        (),
        "Target GPU, such as 8.9 (repeatable).  [default: the backend's: Ampere and newer]",
        metavar="X.Y",
    )
    workspace: int | None = setting(None, "Limit of scratch memory, such as 512M or 4G.", metavar="SIZE")
    timing_cache: Path | None = setting(
        None, "A file of TensorRT's kernel timings, which is read and added to. Several builds may share it."
    )
    builder_optimization_level: int | None = setting(
        None, "0 builds fastest; 5 gives the fastest engine.  [default: the builder's, 3]"
    )
    hardware_compatibility: HardwareCompatibility = setting(
        "none", "Other GPUs on which a TensorRT engine must run too."
    )
    version_compatible: bool = setting(
        False, "Let later TensorRT versions of the same major version load the engine."
    )
    min_shapes: tuple[str, ...] = setting((), f"The smallest {_SHAPES}", metavar="NAME:DIMS")
    opt_shapes: tuple[str, ...] = setting((), f"The usual {_SHAPES}", metavar="NAME:DIMS")
    max_shapes: tuple[str, ...] = setting((), f"The largest {_SHAPES}", metavar="NAME:DIMS")
    auto: bool = setting(
        False,
        "If the gate fails, keep out of INT8 the cheapest layers that make it pass. They are chosen on every "
        "other batch of the evaluation data and judged on the rest.",
    )


high_precision_option = take_one(TargetOptions, "high_precision", "--high-precision", "--compute-dtype")
weight_options = combine_options(
    take_one(TargetOptions, "weights", kind=click.Choice(list(WEIGHT_FORMATS))),
    take_one(TargetOptions, "weight_method", kind=click.Choice(WEIGHT_METHODS)),
    take_one(TargetOptions, "block_size", kind=click.Choice([str(size) for size in BLOCK_SIZES])),
    take(TargetOptions, "double_quant", "quantize_sensitive"),
)


def read_target(ctx: click.Context, *, is_int8: bool = False) -> Target:
    """Returns the target that the options of a command describe.

    Args:
        ctx: Of the command.
        is_int8: Whether it is INT8 without the option --int8.

    Raises:
        UsageError: There is no such target.
    """
    given = apply_changes(TargetOptions(int8=is_int8), list_changes(ctx))
    return Target(
        precision=_choose_precision(given),
        high_precision=_choose_high_precision(given),
        backend=given.backend,
        compute_capabilities=tuple(_parse_capability(text) for text in given.compute_capability),
        workspace_bytes=given.workspace,
        shapes=GivenShapes(*map(_parse_shapes, (given.min_shapes, given.opt_shapes, given.max_shapes))),
        op_types=given.op_types,
        quantization=given.quantization,
        auto=given.auto,
        options=BuilderOptions(
            given.timing_cache,
            given.builder_optimization_level,
            given.hardware_compatibility,
            given.version_compatible,
        ),
        weights=_choose_weights(given),
        requantize=given.requantize,
    )


def _choose_precision(given: TargetOptions) -> Precision:
    if given.int8:
        return "int8"
    return "weights" if given.weights else "fp16" if given.fp16 else "int8"


def _choose_high_precision(given: TargetOptions) -> HighPrecision:
    if given.fp16 and given.high_precision not in ("auto", "fp16"):
        raise UsageError(
            f"--fp16 and --high-precision {given.high_precision} contradict each other; give one of them"
        )
    return "fp16" if given.weights and given.fp16 else given.high_precision


def _choose_weights(given: TargetOptions) -> WeightScheme | None:
    """Returns the weight scheme that the options describe; None without --weights."""
    if given.weights is None:
        for option, value in (
            ("--weight-method", given.weight_method),
            ("--block-size", given.block_size),
            ("--double-quant", given.double_quant),
            ("--quantize-sensitive", given.quantize_sensitive),
        ):
            if value:
                raise UsageError(f"{option} is for weights of fewer bits; give --weights too")
        return None
    form = WEIGHT_FORMATS[given.weights]
    if given.block_size and not form.block_sizes:
        name = given.weights.upper()
        raise UsageError(f"--block-size is for int4 and nf4; {name} weights have one scale for each channel")
    return WeightScheme(
        given.weights,
        given.weight_method or ("mse" if "mse" in form.methods else "rtn"),
        int(given.block_size or 64),
        given.double_quant,
        not given.quantize_sensitive,
    )


def _parse_shapes(texts: tuple[str, ...]) -> dict[str, Shape]:
    return parse_shapes(",".join(texts)) if texts else {}


def _parse_capability(text: str) -> str:
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no compute capability; write 8.9, 89 or sm_89")
    return f"{found[1]}.{found[2]}"
