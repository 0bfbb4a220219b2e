"""`trtq migrate`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from trtq.cli import builders, options, targets
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.options import Given
from trtq.cli.tables import create_table, print_report
from trtq.errors import GateError, UsageError
from trtq.models.spec import AccuracySpec, EvaluationSpec, LayerSpec, QuantizationSpec
from trtq.pipeline.engine.target import Target
from trtq.pipeline.migrate import CacheOutcome, migrate, migration_to_json
from trtq.pipeline.migrate.removed.scripts import check_scripts


@click.command("migrate")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.argument("cache", type=click.Path(path_type=Path), required=False)
@click.option(
    "--check",
    "scripts",
    type=click.Path(path_type=Path),
    metavar="SCRIPT|DIR",
    help="Only find what scripts use that TensorRT 11 removed, and say what to do instead.",
)
@options.take_output("Folder.  [default: MODEL.migrated.trtq]")
@options.spec_option
@options.take(QuantizationSpec, "weight_granularity")
@options.take(LayerSpec)
@options.take(Target, "op_types")
@options.take_one(
    Target,
    "high_precision",
    kind=click.Choice(["fp32", "fp16"]),
    text="Precision of what is not quantized. fp32 keeps the cache's scales bit for bit; fp16 is faster and "
    "rounds them up to FP16, most by less than 0.1 %.  [default: fp32]",
)
@builders.builder_options
@options.take(EvaluationSpec)
@options.take(AccuracySpec)
@options.json_option
@options.talk_options
@options.pass_given
def command(
    given: Given,
    model: Path | None,
    cache: Path | None,
    scripts: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Carry a float model and its TensorRT calibration cache over to Q/DQ, without data.

    TensorRT 11 and TensorRT-RTX read no calibration caches. The model with Q/DQ pairs at the scales of the
    cache runs there, on TensorRT 10 and on ONNX Runtime; an engine is built from it. Keys of the cache that
    are no tensors of the model, and tensors without a scale, are told. With --eval-data the result is
    compared with the float model.

    \b
      trtq migrate model.onnx calibration.cache
      trtq migrate model.onnx calibration.cache --high-precision fp16 --eval-data eval.npz
      trtq migrate --check build_engine.py
    """
    if scripts is not None:
        _check(scripts, as_json=as_json, quiet=quiet, verbose=verbose)
        return
    if model is None or cache is None:
        raise UsageError(
            "give a model and its calibration cache, or --check with a script or a folder of them"
        )
    with ConsoleWatcher(quiet=quiet) as watcher:
        migrated = migrate(
            model,
            cache,
            spec=given.read_spec(model),
            target=targets.read_target(given, Target(high_precision="fp32")),
            output=output,
            watcher=watcher,
        )
    report = migrated.report
    if as_json:
        print_json({"report": report, "migration": json.loads(migration_to_json(migrated.outcome))})
    elif not quiet:
        console = open_console()
        _print_outcome(console, migrated.outcome, verbose=verbose)
        print_report(console, report, verbose=verbose)
    if report.verdict == "fail":
        raise GateError("the accuracy gate failed: " + "; ".join(report.reasons))


def _check(scripts: Path, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Prints what was found; what runs on TensorRT 11 in spite of its guard is no error."""
    findings = check_scripts(scripts)
    removed = [item for item in findings if item.kind == "removed"]
    left_out = [item for item in findings if item.kind != "removed"]
    if as_json:
        print_json(findings)
    elif not quiet:
        console = open_console()
        for item in removed:
            guarded = " (guarded)" if item.guarded else ""
            console.print(
                f"{item.path}:{item.line}:{item.column}: {item.name}, removed in {item.since}{guarded}",
                soft_wrap=True,
                markup=False,
            )
            console.print(Text(f"    {item.code}", style="dim"), soft_wrap=True)
            console.print(Text(f"    {item.advice}"), soft_wrap=True)
        if left_out:
            console.print(
                f"not read: {len(left_out)} files or folders" + ("" if verbose else " (-v names them)")
            )
        for item in left_out if verbose else ():
            console.print(Text(f"  {item.path}: {item.name}", style="dim"), soft_wrap=True)
        if not removed:
            console.print("nothing that TensorRT 11 removed")
    if bare := [item for item in removed if not item.guarded]:
        raise UsageError(f"{len(bare)} uses of what TensorRT 11 no longer has in {scripts}")


def _print_outcome(console: Console, outcome: CacheOutcome, *, verbose: bool) -> None:
    found = outcome.migration
    exact = (
        f"{outcome.num_rounded} of them rounded up, by at most {outcome.largest_rise:.2%}"
        if outcome.num_rounded
        else "exactly"
    )
    source = f"{len(outcome.cache.scales)} of {outcome.cache.origin}"
    console.print(f"{len(found.mapped)} scales taken from {source}, {exact}")
    if verbose:
        rows = create_table("tensor", "key", "scale", "by", numbers=0)
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
