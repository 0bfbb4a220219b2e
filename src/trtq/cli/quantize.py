"""`trtq quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.cli import options, targets
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.options import Given
from trtq.errors import UsageError
from trtq.files import check_output, resolve_name
from trtq.models.spec import PER_TOKEN, CalibrationSpec, LayerSpec, OperatorSpec, QuantizationSpec
from trtq.numbers import format_bytes
from trtq.pipeline.engine.asked import Formats
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP8, NVFP4
from trtq.pipeline.formats.codes import DATA_METHODS
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.pipeline.judge.compare import read_coded_caches
from trtq.pipeline.quantize import measure_model, quantize


@click.command("quantize", cls=GroupedCommand)
@options.model_argument
@options.take_path(
    "--ranges",
    text="Ranges file from `trtq calibrate`. Not needed for --weights, --activations per-token and "
    "--kv-cache.",
)
@options.take_output("The file to write.  [default: MODEL.int8.onnx, MODEL.fp8.onnx, ...]")
@options.spec_option
@options.take(QuantizationSpec, "weight_granularity", "activations")
@options.take(LayerSpec)
@options.take(Target, "op_types", "kv_cache")
@targets.fp8_option
@targets.high_precision_option
@targets.weight_options
@options.take(CalibrationSpec, "data", "batch_size", "samples")
@options.take_pictures()
@options.take(OperatorSpec)
@options.json_option
@options.quiet_option
@options.pass_given
def command(
    given: Given,
    model: Path,
    ranges: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the Q/DQ model from a float model and its ranges, or quantize only its weights or KV cache.

    \b
      trtq quantize model.onnx --ranges ranges.json --output model.int8.onnx
      trtq quantize model.onnx --ranges ranges.json --fp8
      trtq quantize model.onnx --activations per-token
      trtq quantize model.onnx --weights int4
      trtq quantize model.onnx --weights int4 --weight-method awq --calib-data calib.npz
      trtq quantize decoder.onnx --kv-cache int8 --calib-data calib.npz
    """
    spec = given.read_spec(model)
    is_alone = given.find(Formats, "weights")
    is_per_token = spec.quantization.activations == PER_TOKEN and not is_alone
    found = read_ranges(ranges) if ranges is not None else None
    has_cache = bool(given.find(Target, "kv_cache"))
    is_cache_alone = has_cache and found is None and not is_per_token and not is_alone
    usual: Precision | None = "int8" if is_per_token else "fp16" if is_cache_alone else _find_precision(found)
    target = targets.read_target(given, precision=usual)
    if ranges is None and target.weights is None and not is_per_token and not has_cache:
        raise UsageError(
            "give --ranges of `trtq calibrate`, --weights, --activations per-token or --kv-cache"
        )
    reads_data = (has_cache and found is None) or (target.weights is not None and target.weights.needs_data)
    if not reads_data and given.find(CalibrationSpec, "data"):
        raise UsageError(
            f"--calib-data is for --weight-method {' and '.join(DATA_METHODS)}, and for --kv-cache without "
            f"--ranges; nothing else here reads data"
        )
    if output is None:
        named = resolve_name(model)
        output = named.with_name(f"{named.stem}.{target.name}.onnx")
    check_output(output, *list_model_files(model, output), ranges, *spec.sources)
    with ConsoleWatcher(quiet=quiet) as watcher:
        written = quantize(
            model,
            found,
            output,
            spec=spec,
            target=target,
            watcher=watcher,
        )
    if as_json:
        print_json({"path": str(written), "bytes": measure_model(written)} | _list_scales(written, has_cache))
    elif not quiet:
        open_console().print(f"written to {written}  {format_bytes(measure_model(written))}", soft_wrap=True)


def _list_scales(written: Path, has_cache: bool) -> dict[str, object]:
    """Returns the scales of caches, by inputs, as the file holds them."""
    caches = read_coded_caches(written) if has_cache else ()
    return {"kv_cache": {item.past: item.scale for item in caches}} if caches else {}


def _find_precision(ranges: Ranges | None) -> Precision | None:
    """Returns the precision that ranges were calibrated for; None without ranges."""
    if ranges is None:
        return None
    found = {*ranges.formats.values()}
    return "nvfp4" if NVFP4.name in found else "fp8" if FP8.name in found else "int8"
