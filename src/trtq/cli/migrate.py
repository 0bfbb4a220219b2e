"""`trtq migrate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, result_console
from trtq.cli.tables import print_report, table
from trtq.errors import GateError
from trtq.pipeline.deliver.report import to_json
from trtq.pipeline.migrate import Outcome, migrate, outcome_to_json


@click.command("migrate")
@options.model_argument
@click.argument("cache", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: MODEL.migrated.trtq]"
)
@options.spec_option
@options.layer_options
@click.option("--keep-fp32", multiple=True, metavar="REGEX", help="Keep these nodes FP32 (repeatable).")
@click.option(
    "--high-precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of what is not quantized. With fp32 the scales are the cache's bit for bit; fp16 is "
    "faster and rounds them up to FP16, most by less than 0.1 %.",
)
@options.target_options
@options.evaluation_options
@options.gate_options
@options.json_option
@options.talk_options
def command(model: Path, cache: Path, **given: Any) -> None:
    """Carry a float model and its TensorRT calibration cache over to Q/DQ, without data.

    TensorRT 11 and TensorRT-RTX read no calibration caches. The model with Q/DQ pairs at the scales of the
    cache runs there, on TensorRT 10 and on ONNX Runtime; an engine is built from it. Keys of the cache that
    are no tensors of the model, and tensors without a scale, are told. With --eval-data the result is
    compared with the float model.

    \b
      trtq migrate model.onnx calibration.cache
      trtq migrate model.onnx calibration.cache --high-precision fp16 --eval-data eval.npz
    """
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        migrated = migrate(
            model,
            cache,
            spec=options.spec_from(model, given),
            target=options.target_from(given),
            output=given["output"],
            watcher=watcher,
        )
    report = migrated.report
    if given["as_json"]:
        document = {
            "report": json.loads(to_json(report)),
            "migration": json.loads(outcome_to_json(migrated.outcome)),
        }
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
    elif not given["quiet"]:
        console = result_console()
        _print_outcome(console, migrated.outcome, verbose=given["verbose"])
        print_report(console, report, verbose=given["verbose"])
    if report.verdict == "fail":
        raise GateError("the accuracy gate failed: " + "; ".join(report.reasons))


def _print_outcome(console: Console, outcome: Outcome, *, verbose: bool) -> None:
    found = outcome.migration
    exact = (
        f"{outcome.num_rounded} of them rounded up, by at most {outcome.largest_rise:.2%}"
        if outcome.num_rounded
        else "exactly"
    )
    source = f"{len(outcome.cache.scales)} of {outcome.cache.origin}"
    console.print(f"{len(found.mapped)} scales taken from {source}, {exact}")
    if verbose:
        rows = table("tensor", "key", "scale", "by", numbers=0)
        for item in found.mapped:
            rows.add_row(item.tensor, item.key, f"{item.scale:.6g}", item.how)
        console.print(rows)
    left_alone = [
        (item.tensor, f": {item.reason}; left as they are: {', '.join(item.nodes)}")
        for item in found.uncovered
    ]
    for title, keys in (
        ("tensors without a scale", left_alone),
        ("keys of tensors that no quantized layer reads", [(key, "") for key in found.unused]),
        (
            "keys that are no tensors of the model",
            [(item.key, f": {item.reason}") for item in found.unmapped],
        ),
    ):
        if keys:
            console.print(f"{title}: {len(keys)}" + ("" if verbose else " (-v names them)"))
        for key, why in keys if verbose else ():
            console.print(Text(f"  {key}{why}", style="dim"))
