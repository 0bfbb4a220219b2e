"""Options of the commands that build an engine: who builds it, for which GPUs and shapes, and how."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from trtq.cli.options import combine_options
from trtq.pipeline.engine.backend import HardwareCompatibility
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.target import Quantization

target_options = combine_options(
    click.option(
        "--backend",
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        show_default=True,
        help="Who builds.",
    ),
    click.option(
        "--compute-capability",
        multiple=True,
        metavar="X.Y",
        help="Target GPU, such as 8.9 (repeatable).  [default: the backend's: Ampere and newer]",
    ),
    click.option("--workspace", metavar="SIZE", help="Scratch memory limit, such as 512M or 4G."),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path, dir_okay=False),
        help="TensorRT's kernel timings: read, and added to; several builds may share the file.",
    ),
    click.option(
        "--builder-optimization-level",
        type=click.IntRange(0, 5),
        help="0 builds fastest, 5 makes the fastest engine.  [default: the builder's, 3]",
    ),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(get_args(HardwareCompatibility)),
        default="none",
        show_default=True,
        help="On which other GPUs a TensorRT engine shall run too.",
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="Let later TensorRT of the same major version load the engine.",
    ),
    *(
        click.option(
            f"--{kind}-shapes",
            f"--{kind}Shapes",
            f"{kind}_shapes",
            multiple=True,
            metavar="NAME:DIMS",
            help=f"The {word} shapes of dynamic inputs: name:1x3x224x224 or name:[1,3,224,224].",
        )
        for kind, word in (("min", "smallest"), ("opt", "usual"), ("max", "largest"))
    ),
)
quantization_option = click.option(
    "--quantization",
    type=click.Choice(get_args(Quantization)),
    default="auto",
    show_default=True,
    help="explicit: Q/DQ in the model, any TensorRT; implicit: by TensorRT 8.6 to 10 itself, with its own "
    "calibrator (entropy, minmax) or our ranges; auto: explicit.",
)
