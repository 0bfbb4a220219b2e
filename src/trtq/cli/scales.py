"""Options that say how many scales and zero points a quantized model has."""

from __future__ import annotations

from typing import get_args

import click

from trtq.models.spec import Activations, WeightGranularity

weight_granularity_option = click.option(
    "--weight-granularity",
    type=click.Choice(get_args(WeightGranularity)),
    help="One scale for each output channel of an INT8 weight, or one for all: that costs accuracy, and is "
    "for tools that know no scales by channel.  [default: per-channel]",
)
activations_option = click.option(
    "--activations",
    type=click.Choice(get_args(Activations)),
    help="asymmetric: with zero points, finer where values have mostly one sign; for --backend onnxruntime "
    "only, since TensorRT takes no zero points other than 0.  [default: symmetric]",
)
