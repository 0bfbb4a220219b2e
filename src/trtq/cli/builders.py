"""Options of the commands that build an engine: who builds it, for which GPUs and shapes, and how."""

from __future__ import annotations

import click

from trtq.cli.options import combine_options, take, take_one
from trtq.cli.targets import profile_option, take_shapes
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.target import Target

builder_options = combine_options(
    take_one(Target, "backend", kind=click.Choice(["auto", *BACKENDS])),
    take(Target, "compute_capabilities", "workspace_bytes"),
    take(BuilderOptions, "timing_cache"),
    take_one(BuilderOptions, "optimization_level", kind=click.IntRange(0, 5)),
    take(BuilderOptions, "hardware_compatibility", "version_compatible"),
    take_shapes("min", "smallest"),
    take_shapes("opt", "usual"),
    take_shapes("max", "largest"),
    profile_option,
)
