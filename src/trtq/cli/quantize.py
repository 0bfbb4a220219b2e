"""`trtq quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.calibrators.ranges import read_ranges
from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, print_json, result_console, show_bytes
from trtq.files import refuse_input
from trtq.pipeline.stages import quantize


@click.command("quantize")
@options.model_argument
@click.option(
    "--ranges", type=click.Path(path_type=Path), required=True, help="The ranges file of `trtq calibrate`."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write.  [default: MODEL.int8.onnx]"
)
@options.spec_option
@options.layer_options
@options.precision_options
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Write the Q/DQ model of a float model and its ranges.

    \b
      trtq quantize model.onnx --ranges ranges.json --output model.int8.onnx
    """
    output = given["output"] or model.parent / f"{model.stem}.int8.onnx"
    refuse_input(output, model, given["ranges"], given["spec"])
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        written = quantize(
            model,
            read_ranges(given["ranges"]),
            output,
            spec=options.spec_from(model, given),
            target=options.target_from(given),
            watcher=watcher,
        )
    if given["as_json"]:
        print_json({"path": str(written), "bytes": written.stat().st_size})
    elif not given["quiet"]:
        result_console().print(f"written to {written}  {show_bytes(written.stat().st_size)}", soft_wrap=True)
