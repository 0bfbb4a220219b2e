"""`trtq calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from trtq.calibrators import create_method
from trtq.calibrators.ranges import ranges_to_json
from trtq.calibrators.statistics import Statistics
from trtq.calibrators.statistics_file import read_statistics, statistics_to_bytes
from trtq.cli import options, targets
from trtq.cli.console import ConsoleWatcher, open_console, print_answer, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.options import Given
from trtq.cli.shards import SCHEDULERS, parse_shard
from trtq.cli.sharing import find_workers, workers_options
from trtq.errors import UsageError
from trtq.files import check_outputs, write_atomically
from trtq.models.option import Kind, Option
from trtq.models.spec import AUTO, CalibrationSpec, LayerSpec, ModelSpec, OperatorSpec, QuantizationSpec
from trtq.numbers import format_count
from trtq.pipeline.calibrate import estimate_ranges, list_placed_tensors, open_calibration
from trtq.pipeline.calibrate.data import ObserveOptions, options_from_spec
from trtq.pipeline.calibrate.improve import RangeSearch
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.onnx_file import list_model_files


@click.command("calibrate", cls=GroupedCommand)
@options.model_argument
@options.spec_option
@options.take_calibration()
@options.take_pictures()
@options.take(OperatorSpec)
@options.create_option(
    ObserveOptions,
    "shard",
    Option(
        "--shard",
        "I/N|auto",
        help="Calibrate on shard I of N of the data; needs --save-statistics. auto: read the shard from "
        f"the environment of a SLURM array, an indexed Kubernetes job or torchrun ({SCHEDULERS}).",
    ),
    Kind(str),
    convert=parse_shard,
)
@options.take(ObserveOptions)
@workers_options
@options.take(QuantizationSpec)
@options.take(LayerSpec, "skip", "force")
@options.take(Target, "op_types", "kv_cache")
@targets.fp8_option
@options.take_path("--statistics", text="Estimate the ranges from this statistics file; no data is read.")
@options.take_path(
    "--save-statistics",
    text="Also write the statistics, from which every method but cross-entropy can estimate ranges.",
)
@options.take_output("The ranges file to write.  [default: ranges.json]")
@options.json_option
@options.talk_options
@options.pass_given
def command(
    given: Given,
    model: Path,
    statistics: Path | None,
    save_statistics: Path | None,
    workers: str,
    worker_cpus: int | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compute the calibration ranges of a model from data.

    Without --calib-method, all methods and repairs are tried, as in `trtq build`. With it, that method is
    used, and repairs are tried only if --repair is given too.

    \b
      trtq calibrate model.onnx --calib-data calib.npz --calib-method mse --output ranges.json
      trtq calibrate model.onnx --calib-data calib.npz --save-statistics s.npz
      trtq calibrate model.onnx --statistics s.npz --calib-method percentile
    """
    spec = _search_if_asked(given, given.read_spec(model))
    how = given.apply(options_from_spec(spec.calibration))
    how = replace(how, workers=find_workers(workers, worker_cpus))
    is_part = how.shard[1] > 1
    if is_part:
        _check_part(output, save_statistics)
    elif output is None:
        output = Path("ranges.json")
    if statistics is not None:
        _refuse_unused(given, save_statistics)
    sources = spec.sources if statistics is None else (spec.file,)
    outputs = {"--output": output, "--save-statistics": save_statistics, "--checkpoint": how.checkpoint}
    check_outputs(outputs, *list_model_files(model, *outputs.values()), statistics, *sources)
    target, found = targets.read_target(given), None
    with ConsoleWatcher(quiet=quiet) as watcher:
        if statistics is not None:
            seen = read_statistics(statistics)
            tensors = list_placed_tensors(seen, model, spec=spec, target=target, watcher=watcher)
            ranges = estimate_ranges(seen, spec=spec, tensors=tensors, watcher=watcher)
            found = RangeSearch(ranges, create_method(spec.calibration))
        else:
            setup = open_calibration(
                model, spec=spec, target=target, random_data=given.random_data, watcher=watcher
            )
            seen = setup.observe(how, watcher)
            if save_statistics is not None:
                write_atomically(save_statistics, statistics_to_bytes(seen))
            found = setup.improve(seen, watcher, how.workers) if not is_part else None
    if output is not None and found is not None:
        content = ranges_to_json(found.ranges)
        write_atomically(output, content)
        if as_json:
            print_answer(content.decode())
        elif not quiet:
            _print(found, output, verbose=verbose)
    elif save_statistics is not None and not (quiet and not as_json):
        _print_part(seen, save_statistics, as_json=as_json)
    if how.checkpoint is not None:  # not before all is written, which may fail
        how.checkpoint.unlink(missing_ok=True)


def _search_if_asked(given: Given, spec: ModelSpec) -> ModelSpec:
    """Returns the settings without repairs where a method is named and no repair is."""
    is_named = spec.calibration.method != AUTO and spec.quantization.repair == (AUTO,)
    if not is_named or given.find(QuantizationSpec, "repair"):
        return spec
    return replace(spec, quantization=replace(spec.quantization, repair=("none",)))


def _check_part(output: Path | None, save_statistics: Path | None) -> None:
    if save_statistics is None:
        raise UsageError(
            "--shard observes a part of the data, which gives no ranges: name a file with --save-statistics, "
            "and join the parts with `trtq merge-statistics`"
        )
    if output is not None:
        raise UsageError("--output has no effect with --shard: a part of the data gives no ranges")


def _refuse_unused(given: Given, save_statistics: Path | None) -> None:
    """Refuses options that say how data is read, where none is."""
    names = ("data", "samples", "batch_size", "memory_bytes", "device")
    unused = [change.option for change in given.find(CalibrationSpec, *names)]
    unused += ["--random-data"] if given.random_data else []
    unused += [change.option for change in given.find(ObserveOptions, "shard", "checkpoint")]
    unused += ["--save-statistics"] if save_statistics is not None else []
    if unused:
        raise UsageError(f"{unused[0]} has no effect with --statistics: no data is read")


def _print_part(seen: Statistics, path: Path, *, as_json: bool) -> None:
    part, number = min(seen.shards), seen.source.num_shards
    num_tensors = len(seen.histograms)
    if as_json:
        numbers = {"num_tensors": num_tensors, "num_samples": seen.num_samples}
        print_json({"statistics": str(path), **numbers, "shard": part, "num_shards": number})
        return
    console = open_console()
    counts = f"{format_count(num_tensors, 'tensor')} over {format_count(seen.num_samples, 'sample')}"
    console.print(f"{counts}, part {part} of {number}")
    console.print(f"written to {path}", soft_wrap=True)


def _print(found: RangeSearch, output: Path, *, verbose: bool) -> None:
    ranges = found.ranges
    console = open_console()
    counts = (
        f"{format_count(len(ranges.tensors), 'tensor')} over {format_count(ranges.num_samples, 'sample')}"
    )
    console.print(f"{counts} by {ranges.method}")
    if found.repairs is not None:
        from trtq.cli.tables import print_repairs  # late: nothing else here is a table

        print_repairs(console, found.repairs, verbose=verbose)
    console.print(f"written to {output}", soft_wrap=True)
