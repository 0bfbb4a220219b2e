"""`trtq quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.calibrators.ranges import read_ranges
from trtq.cli import options, targets
from trtq.cli.console import ConsoleWatcher, format_bytes, open_console, print_json
from trtq.cli.targets import TargetOptions
from trtq.errors import UsageError
from trtq.files import refuse_input
from trtq.models.spec import CalibrationSpec, LayerSpec, QuantizationSpec
from trtq.pipeline.quantize import quantize


@click.command("quantize")
@options.model_argument
@click.option(
    "--ranges",
    type=click.Path(path_type=Path),
    help="The ranges file of `trtq calibrate`. --weights alone does not need it.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: MODEL.int8.onnx, MODEL.int4-weights.onnx]",
)
@options.spec_option
@options.take(QuantizationSpec, "weight_granularity")
@options.take(LayerSpec)
@options.take(TargetOptions, "op_types")
@targets.high_precision_option
@targets.weight_options
@options.take(CalibrationSpec, "data", "batch_size", "samples")
@options.json_option
@options.talk_options
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    settings: Path | None,
    ranges: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write a model with Q/DQ from a float model and its ranges, or a model with weights of fewer bits.

    \b
      trtq quantize model.onnx --ranges ranges.json --output model.int8.onnx
      trtq quantize model.onnx --weights int4
      trtq quantize model.onnx --weights int4 --weight-method gptq --calib-data calib.npz
    """
    target = targets.read_target(ctx, is_int8=ranges is not None)
    if ranges is None and target.weights is None:
        raise UsageError("give --ranges of `trtq calibrate`, or --weights")
    reads_data = target.weights is not None and target.weights.method == "gptq"
    if not reads_data and options.gives(ctx, CalibrationSpec, "data"):
        raise UsageError("--calib-data is for --weight-method gptq; nothing else here reads data")
    output = output or model.parent / f"{model.stem}.{target.name}.onnx"
    refuse_input(output, model, ranges, settings)
    with ConsoleWatcher(quiet=quiet) as watcher:
        written = quantize(
            model,
            read_ranges(ranges) if ranges is not None else None,
            output,
            spec=options.read_settings(ctx, model),
            target=target,
            watcher=watcher,
        )
    if as_json:
        print_json({"path": str(written), "bytes": written.stat().st_size})
    elif not quiet:
        open_console().print(f"written to {written}  {format_bytes(written.stat().st_size)}", soft_wrap=True)
