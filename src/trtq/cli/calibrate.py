"""`trtq calibrate`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from trtq.calibrators.ranges import ranges_to_json
from trtq.calibrators.statistics import Statistics
from trtq.calibrators.statistics_file import read_statistics, statistics_to_bytes
from trtq.cli import options, scales
from trtq.cli.console import ConsoleWatcher, open_console
from trtq.errors import UsageError
from trtq.files import check_output, refuse_input, write_atomically
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate import estimate_ranges, list_placed_tensors, open_calibration
from trtq.pipeline.calibrate.data import ObserveOptions, create_method, options_from_spec
from trtq.pipeline.calibrate.improve import RangeSearch


@click.command("calibrate")
@options.model_argument
@options.spec_option
@options.calibration_options
@options.pass_options
@options.repair_option
@scales.weight_granularity_option
@scales.activations_option
@options.layer_options
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Take the ranges from these statistics: no data is read.",
)
@click.option(
    "--save-statistics",
    type=click.Path(path_type=Path),
    help="Write the statistics too, from which every method can take its ranges.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The ranges file to write.  [default: ranges.json]",
)
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Estimate the ranges of a model's tensors from data.

    \b
      trtq calibrate model.onnx --calib-data calib.npz --calib-method mse --output ranges.json
      trtq calibrate model.onnx --calib-data calib.npz --save-statistics s.npz
      trtq calibrate model.onnx --statistics s.npz --calib-method percentile
    """
    spec = options.spec_from(model, given)
    how = _pass_from(given, spec)
    is_part = how.shard[1] > 1
    _check_options(given, is_part=is_part)
    given["output"] = given["output"] or Path("ranges.json")
    outputs = {
        "--output": None if is_part else given["output"],
        "--save-statistics": given["save_statistics"],
        "--checkpoint": how.checkpoint,
    }
    sources = (spec.calibration.data, spec.evaluation.data) if given["statistics"] is None else ()
    _check_paths(outputs, model, given["spec"], given["statistics"], *sources)
    target = options.target_from(given)
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        if given["statistics"] is not None:
            seen = read_statistics(given["statistics"])
            tensors = list_placed_tensors(seen, model, spec=spec, target=target, watcher=watcher)
            ranges = estimate_ranges(seen, spec=spec, tensors=tensors, watcher=watcher)
            _write(RangeSearch(ranges, create_method(spec.calibration)), given)
            return
        subject = open_calibration(
            model, spec=spec, target=target, random_data=given["random_data"], watcher=watcher
        )
        seen = subject.observe(how, watcher)
        if given["save_statistics"] is not None:
            write_atomically(given["save_statistics"], statistics_to_bytes(seen))
        if is_part:
            _tell_part(seen, given)
        else:
            _write(subject.improve(seen, watcher), given)
    if how.checkpoint is not None:  # not before all is written, which may fail
        how.checkpoint.unlink(missing_ok=True)


def _pass_from(given: Mapping[str, Any], spec: ModelSpec) -> ObserveOptions:
    """Returns how the pass over the calibration data is made."""
    return replace(
        options_from_spec(spec.calibration),
        shard=_shard(given["shard"]) if given["shard"] else (1, 1),
        checkpoint=given["checkpoint"],
        checkpoint_seconds=given["checkpoint_seconds"],
    )


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no shard; write a part and their number, such as 3/8")
    return int(found[1]), int(found[2])


def _check_options(given: Mapping[str, Any], *, is_part: bool) -> None:
    if is_part and given["save_statistics"] is None:
        raise UsageError(
            "--shard observes a part of the data, which gives no ranges: name a file with --save-statistics, "
            "and join the parts with `trtq merge-statistics`"
        )
    if is_part and given["output"] is not None:
        raise UsageError("--output is of no use with --shard: a part of the data gives no ranges")
    if given["statistics"] is not None:
        names = [
            "calib_data",
            "calib_samples",
            "calib_batch_size",
            "calib_memory",
            "calib_device",
            "random_data",
            "shard",
            "checkpoint",
            "save_statistics",
        ]
        if unused := [name for name in names if given[name] not in (None, False)]:
            raise UsageError(
                f"--{unused[0].replace('_', '-')} is of no use with --statistics: no data is read"
            )


def _check_paths(outputs: Mapping[str, Path | None], *sources: Path | str | None) -> None:
    """Refuses, before any work, what cannot be written and what would overwrite something."""
    known: dict[Path, str] = {}
    for option, output in outputs.items():
        if output is None:
            continue
        check_output(output)
        refuse_input(output, *sources)
        if (other := known.setdefault(output.resolve(), option)) != option:
            raise UsageError(f"{output} is given as {other} and as {option}; give each a file of its own")


def _tell_part(seen: Statistics, given: Mapping[str, Any]) -> None:
    part, number = min(seen.shards), seen.source.num_shards
    if given["as_json"]:
        document = {
            "statistics": str(given["save_statistics"]),
            "num_tensors": len(seen.histograms),
            "num_samples": seen.num_samples,
            "shard": part,
            "num_shards": number,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    elif not given["quiet"]:
        console = open_console()
        console.print(
            f"{len(seen.histograms)} tensors over {seen.num_samples} samples, part {part} of {number}"
        )
        console.print(f"written to {given['save_statistics']}", soft_wrap=True)


def _write(found: RangeSearch, given: Mapping[str, Any]) -> None:
    ranges = found.ranges
    content = ranges_to_json(ranges)
    write_atomically(given["output"], content)
    if given["as_json"]:
        sys.stdout.write(content.decode())
    elif not given["quiet"]:
        console = open_console()
        console.print(f"{len(ranges.tensors)} tensors over {ranges.num_samples} samples by {ranges.method}")
        if found.repairs is not None:
            from trtq.cli.tables import print_repairs  # late: nothing else here is a table

            print_repairs(console, found.repairs, verbose=given["verbose"])
        console.print(f"written to {given['output']}", soft_wrap=True)
