"""`trtq migrate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from trtq.cli import builders, options, targets
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.next_steps import list_next, print_next, refuse_failed
from trtq.cli.options import Given
from trtq.cli.tables import create_table, print_report
from trtq.errors import UsageError
from trtq.models.spec import AccuracySpec, EvaluationSpec, LayerSpec, OperatorSpec, QuantizationSpec
from trtq.numbers import format_count
from trtq.pipeline.engine.target import Target
from trtq.pipeline.migrate import CacheOutcome, migrate, migration_to_json
from trtq.pipeline.migrate.removed.scripts import check_scripts


@click.command("migrate", cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.argument("cache", type=click.Path(path_type=Path), required=False)
@click.option(
    "--check",
    "scripts",
    type=click.Path(path_type=Path),
    metavar="SCRIPT|DIR",
    help="Only find APIs in scripts that TensorRT 11 removed, with their replacements.",
)
@options.take_output("Folder.  [default: MODEL.migrated.trtq]")
@options.spec_option
@options.take(OperatorSpec)
@options.take(QuantizationSpec, "weight_granularity")
@options.take(LayerSpec)
@options.take(Target, "op_types")
@targets.fp8_option
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
    """Turn a float model and its TensorRT calibration cache into a Q/DQ model and an engine, without data.

    TensorRT 11 and TensorRT-RTX do not read calibration caches. The Q/DQ model has the scales of the
    cache, and also runs on TensorRT 10 and ONNX Runtime. The command lists cache entries that are not
    tensors of the model, and tensors without a scale. With --eval-data the result is compared with the
    float model.

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
    lines = [] if as_json or quiet else list_next(report, advises=False)
    if as_json:
        print_json({"report": report, "migration": json.loads(migration_to_json(migrated.outcome))})
    elif not quiet:
        console = open_console()
        _print_outcome(console, migrated.outcome, verbose=verbose)
        print_report(console, report, verbose=verbose)
        print_next(console, report, lines)
    refuse_failed(report, lines)


def _check(scripts: Path, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Prints what was found; what is guarded, so that it does not run on TensorRT 11, is not an error."""
    findings = check_scripts(scripts)
    removed = [item for item in findings if item.kind == "removed"]
    left_out = [item for item in findings if item.kind != "removed"]
    if as_json:
        print_json(findings)
    elif not quiet:
        console = open_console()
        for item in removed:
            place = f"{item.path}:{item.line}:{item.column}"
            guarded = " (guarded)" if item.guarded else ""
            console.print(Text(f"{place}: {item.name}, removed in {item.since}{guarded}"), soft_wrap=True)
            console.print(Text(f"    {item.code}", style="dim"), soft_wrap=True)
            console.print(Text(f"    {item.advice}"), soft_wrap=True)
        not_read = [f"{item.path}: {item.name}" for item in left_out]
        _print_names(console, "not read", not_read, "files or folders", verbose=verbose)
        if not removed:
            console.print("nothing that TensorRT 11 removed")
    if bare := [item for item in removed if not item.guarded]:
        raise UsageError(f"{format_count(len(bare), 'use')} of what TensorRT 11 no longer has in {scripts}")


def _print_outcome(console: Console, outcome: CacheOutcome, *, verbose: bool) -> None:
    found = outcome.migration
    exact = "exactly"
    if outcome.num_rounded:
        exact = f"{outcome.num_rounded} of them rounded up, by at most {outcome.largest_rise:.2%}"
    source = f"{len(outcome.cache.scales)} of {outcome.cache.origin}"
    console.print(f"{format_count(len(found.mapped), 'scale')} taken from {source}, {exact}")
    if verbose:
        rows = create_table("tensor", "key", "scale", "by", numbers=0)
        for item in found.mapped:
            rows.add_row(item.tensor, item.key, f"{item.scale:.6g}", item.how)
        console.print(rows)
    left_alone = [
        f"{item.tensor}: {item.reason}; left as they are: {', '.join(item.nodes)}" for item in found.uncovered
    ]
    for title, names in (
        ("tensors without a scale", left_alone),
        ("keys of tensors that no quantized layer reads", found.unused),
        ("keys that are not tensors of the model", [f"{item.key}: {item.reason}" for item in found.unmapped]),
    ):
        _print_names(console, title, names, verbose=verbose)


def _print_names(
    console: Console, title: str, names: Sequence[str], unit: str = "", *, verbose: bool
) -> None:
    """Prints how many there are, and each of them if that is wanted."""
    if names:
        count = f"{len(names)} {unit}".rstrip()
        console.print(f"{title}: {count}" + ("" if verbose else " (-v lists them)"))
    for name in names if verbose else ():
        console.print(Text(f"  {name}", style="dim"), soft_wrap=True)
