"""Options that say what is built: in which formats, for which GPUs and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import click

from trtq.cli.options import Decorator, Given, GivenSetting, combine_options, create_option, take, take_one
from trtq.errors import UsageError
from trtq.models.option import Kind, Option, setting
from trtq.pipeline.engine.backend import BuilderOptions, Precision
from trtq.pipeline.engine.profiles import GivenShapes, parse_shapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.scheme import WeightScheme


@dataclass(frozen=True, slots=True)
class Formats:
    """The number formats that are asked for.

    Attributes:
        int8: Build an INT8 engine (the default without --weights).
        fp8: Build an FP8 engine (E4M3), for GPUs of compute capability 8.9 and newer.
        nvfp4: Build an NVFP4 engine, for GPUs of compute capability 12.0 and newer: MatMul and Gemm in FP4
            blocks of 16, other layers in FP8.
        fp16: Build the FP16 engine alone; with --int8 it changes nothing.
        weights: Store weights in fewer bits. Activations stay float, unless --int8 is given too: then
            convolutions and large products are INT8, and the other weights are stored in this format.
        weight_method: For int4: round to nearest, clip for the least error, or GPTQ, which needs data. None:
            mse.
        block_size: For int4 and nf4: elements for each scale. A weight that it does not divide gets a half, a
            quarter and so on, down to 16. None: 64.
        double_quant: For nf4: store the scales in 8 bits.
        quantize_sensitive: Also store the weights of lm_head, proj_out, norm_out and classifier heads in
            fewer bits.
    """

    int8: bool = setting(False)
    fp8: bool = setting(False)
    nvfp4: bool = setting(False)
    fp16: bool = setting(False)
    weights: str | None = setting(None)
    weight_method: str | None = setting(None)
    block_size: str = setting("")
    double_quant: bool = setting(False)
    quantize_sensitive: bool = setting(False)


def take_shapes(kind: str, word: str) -> Decorator:
    """Returns the option of one kind of profile shapes, as trtexec or as Polygraphy spells it."""
    text = f"The {word} shapes of dynamic inputs: name:1x3x224x224 or name:[1,3,224,224]."
    return create_option(
        GivenShapes,
        kind,
        Option(f"--{kind}-shapes", "NAME:DIMS", help=text),
        Kind(str, is_list=True),
        f"--{kind}-shapes",
        f"--{kind}Shapes",
        convert=lambda texts: parse_shapes(",".join(texts)),
    )


fp8_option = take_one(
    Formats, "fp8", text="FP8 (E4M3) instead of INT8, for GPUs of compute capability 8.9 and newer."
)
high_precision_option = take_one(Target, "high_precision", "--high-precision", "--compute-dtype")
weight_options = combine_options(
    take_one(Formats, "weights", kind=click.Choice(list(WEIGHT_FORMATS))),
    take_one(Formats, "weight_method", kind=click.Choice(WEIGHT_METHODS)),
    take_one(Formats, "block_size", kind=click.Choice([str(size) for size in BLOCK_SIZES])),
    take(Formats, "double_quant", "quantize_sensitive"),
)


def read_target(given: Given, usual: Target | None = None, *, precision: Precision | None = None) -> Target:
    """Returns the target that is asked for.

    Args:
        given: What the options say.
        usual: What holds where they say nothing.
        precision: That of the layers where no option says it; None: INT8, or float with --weights.

    Raises:
        UsageError: There is no such target.
    """
    given = replace(given, changes=[*map(_parse_change, given.changes)])
    formats = given.apply(Formats())
    for change in given.find(Target, "high_precision") if formats.fp16 else ():
        if change.value not in ("auto", "fp16"):
            raise UsageError(
                f"--fp16 and --high-precision {change.value} contradict each other; give one of them"
            )
    if given.find(Target, "formats") and (named := _list_named(formats)):
        raise UsageError(f"--{named[0]} and --formats contradict each other; give one of them")
    precision = _choose_precision(formats) or precision or ("weights" if formats.weights else "int8")
    weights = _choose_weights(formats, given)
    target = given.apply(replace(usual or Target(), precision=precision, weights=weights))
    return replace(
        target,
        high_precision="fp16" if formats.weights and formats.fp16 else target.high_precision,
        shapes=given.apply(GivenShapes()),
        options=given.apply(BuilderOptions()),
    )


def _list_named(formats: Formats) -> list[Precision]:
    """Returns the precisions that options name."""
    names: tuple[Precision, ...] = ("int8", "fp8", "nvfp4", "fp16")
    return [name for name in names if getattr(formats, name)]


def _choose_precision(formats: Formats) -> Precision | None:
    """Returns the precision that an option names."""
    given = [name for name in _list_named(formats) if name != "fp16"]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name in given)} contradict each other; give one of them"
        )
    if given:
        return given[0]
    return "fp16" if formats.fp16 and not formats.weights else None


def _choose_weights(formats: Formats, given: Given) -> WeightScheme | None:
    """Returns the weight scheme that is asked for; None without --weights."""
    form = formats.weights
    if form is None:
        if alone := given.find(Formats, "weight_method", "block_size", "double_quant", "quantize_sensitive"):
            raise UsageError(f"{alone[0].option} is for weights of fewer bits; give --weights too")
        return None
    if formats.block_size and not WEIGHT_FORMATS[form].block_sizes:
        raise UsageError(
            f"--block-size is for int4 and nf4; {form.upper()} weights have one scale for each channel"
        )
    return WeightScheme(
        form,
        formats.weight_method or ("mse" if "mse" in WEIGHT_FORMATS[form].methods else "rtn"),
        int(formats.block_size or 64),
        formats.double_quant,
        not formats.quantize_sensitive,
    )


def _parse_change(change: GivenSetting) -> GivenSetting:
    if (change.settings, change.field) != (Target, "compute_capabilities"):
        return change
    return replace(change, value=tuple(map(_parse_capability, change.value)))


def _parse_capability(text: str) -> str:
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no compute capability; write 8.9, 89 or sm_89")
    return f"{found[1]}.{found[2]}"
