"""Options of the commands that build an engine: who builds it, for which GPUs and shapes, and how."""

from __future__ import annotations

import click

from trtq.cli.options import combine_options, take, take_one
from trtq.cli.targets import TargetOptions
from trtq.pipeline.engine.backends import BACKENDS

builder_options = combine_options(
    take_one(TargetOptions, "backend", kind=click.Choice(["auto", *BACKENDS])),
    take(TargetOptions, "compute_capability", "workspace", "timing_cache"),
    take_one(TargetOptions, "builder_optimization_level", kind=click.IntRange(0, 5)),
    take(TargetOptions, "hardware_compatibility", "version_compatible"),
    *(
        take_one(TargetOptions, f"{kind}_shapes", f"--{kind}-shapes", f"--{kind}Shapes")
        for kind in ("min", "opt", "max")
    ),
)
