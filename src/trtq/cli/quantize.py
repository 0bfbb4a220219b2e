"""`trtq quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.calibrators.ranges import read_ranges
from trtq.cli import options, scales
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.errors import UsageError
from trtq.files import refuse_input
from trtq.numbers import format_bytes
from trtq.pipeline.quantize import quantize


@click.command("quantize")
@options.model_argument
@click.option(
    "--ranges",
    type=click.Path(path_type=Path),
    help="The ranges file of `trtq calibrate`; not needed for --weights alone.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: MODEL.int8.onnx, MODEL.int4-weights.onnx]",
)
@options.spec_option
@scales.weight_granularity_option
@options.layer_options
@options.precision_options
@options.weight_options
@options.data_options
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Write the Q/DQ model of a float model and its ranges, or the model with weights of fewer bits.

    \b
      trtq quantize model.onnx --ranges ranges.json --output model.int8.onnx
      trtq quantize model.onnx --weights int4
      trtq quantize model.onnx --weights int4 --weight-method gptq --calib-data calib.npz
    """
    target = options.target_from({**given, "int8": given["ranges"] is not None})
    if given["ranges"] is None and target.weights is None:
        raise UsageError("give --ranges of `trtq calibrate`, or --weights")
    if given["calib_data"] is not None and (target.weights is None or target.weights.method != "gptq"):
        raise UsageError("--calib-data is for --weight-method gptq; nothing else here reads data")
    output = given["output"] or model.parent / f"{model.stem}.{target.name}.onnx"
    refuse_input(output, model, given["ranges"], given["spec"])
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        written = quantize(
            model,
            read_ranges(given["ranges"]) if given["ranges"] is not None else None,
            output,
            spec=options.spec_from(model, given),
            target=target,
            watcher=watcher,
        )
    if given["as_json"]:
        print_json({"path": str(written), "bytes": written.stat().st_size})
    elif not given["quiet"]:
        open_console().print(f"written to {written}  {format_bytes(written.stat().st_size)}", soft_wrap=True)
