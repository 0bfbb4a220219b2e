"""Options that say what is built: in which formats, for which GPUs and shapes."""

from __future__ import annotations

from dataclasses import replace

import click

from trtq.cli.options import Decorator, Given, GivenSetting, combine_options, create_option, take, take_one
from trtq.errors import UsageError
from trtq.models.option import Kind, Option
from trtq.pipeline.engine.asked import Formats
from trtq.pipeline.engine.backend import BuilderOptions, Precision
from trtq.pipeline.engine.profiles import GivenShapes, parse_profile, parse_shapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.capability import parse_capability


def take_shapes(kind: str, word: str) -> Decorator:
    """Returns the option of one kind of profile shapes, as trtexec or as Polygraphy spells it."""
    text = f"The {word} shapes of dynamic inputs, such as name:1x3x224x224 or name:[1,3,224,224]."
    return create_option(
        GivenShapes,
        kind,
        Option(f"--{kind}-shapes", "NAME:DIMS", help=text),
        Kind(str, is_list=True),
        f"--{kind}-shapes",
        f"--{kind}Shapes",
        convert=lambda texts: parse_shapes(",".join(texts)),
    )


profile_option = create_option(
    GivenShapes,
    "profiles",
    Option(
        "--profile",
        "NAME:MIN:OPT:MAX",
        help="Another optimization profile, such as x:1x3x224x224:1x3x224x224:1x3x224x224 (repeatable). "
        "Without --opt-shapes or settings, the first one given is profile 0.",
    ),
    Kind(str, is_list=True),
    convert=lambda texts: tuple(map(parse_profile, texts)),
)
fp8_option = take_one(
    Formats, "fp8", text="FP8 (E4M3) instead of INT8, for compute capability 8.9 and newer."
)
high_precision_option = take_one(Target, "high_precision", "--high-precision", "--compute-dtype")
weight_options = combine_options(
    take_one(Formats, "weights", kind=click.Choice(list(WEIGHT_FORMATS))),
    take_one(Formats, "weight_method", kind=click.Choice(WEIGHT_METHODS)),
    take_one(Formats, "block_size", kind=click.Choice([str(size) for size in BLOCK_SIZES])),
    take(Formats, "w4a8", "double_quant", "quantize_sensitive", "weights_for"),
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
    if given.find(Target, "formats") and (named := formats.precisions):
        raise UsageError(f"--{named[0]} and --formats contradict each other; give one of them")
    precision, weights = formats.choose_precision(precision), formats.choose_weights()
    target = given.apply(replace(usual or Target(), precision=precision, weights=weights))
    return replace(
        target,
        high_precision="fp16" if formats.scheme and formats.fp16 else target.high_precision,
        shapes=given.apply(GivenShapes()),
        options=given.apply(BuilderOptions()),
    )


def _parse_change(change: GivenSetting) -> GivenSetting:
    if (change.settings, change.field) != (Target, "compute_capabilities"):
        return change
    return replace(change, value=tuple(map(parse_capability, change.value)))
