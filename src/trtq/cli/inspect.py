"""`trtq inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from trtq.calibrators.cache import CalibrationCache
from trtq.calibrators.ranges import Ranges
from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.tables import create_table, print_report
from trtq.errors import GateError
from trtq.numbers import format_bytes, format_count
from trtq.pipeline.deliver.index import Index
from trtq.pipeline.deliver.report import format_asked
from trtq.pipeline.inspect import FolderSummary, ModelSummary, Summary, inspect


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--placement", is_flag=True, help="For a model: list every layer, whether it is quantized, and why."
)
@options.json_option
def command(path: Path, placement: bool, as_json: bool) -> None:
    """Show what is in a model, ranges file, calibration cache, build folder or index.

    The exit code is 3 if an engine runs layers in another format than requested.
    """
    summary = inspect(path)
    if as_json:
        print_json(summary)
    else:
        _print(path, summary, placement)
    if isinstance(summary, FolderSummary) and (discarded := summary.report.engine.discarded):
        first, count = discarded[0], format_count(len(discarded), "layer")
        raise GateError(
            f"{path} has {count} in another format than asked: {first.node!r} was asked "
            f"{format_asked(first.asked)} and runs as {first.runs_as}"
        )


def _print(path: Path, summary: Summary, placement: bool) -> None:
    console = open_console()
    if isinstance(summary, ModelSummary):
        _print_model(console, summary, placement)
    elif isinstance(summary, FolderSummary):
        folder = path if path.is_dir() else path.parent
        report = replace(summary.report, output=str(folder))  # it may have been moved since
        print_report(console, report, verbose=True, folder=folder if summary.intact else None)
        state = ("as built", "green") if summary.intact else ("NOT AS BUILT", "bold red")
        told = f"  {summary.problems}" if summary.problems else ""
        console.print(Text.assemble("files: ", state, told), soft_wrap=True)
    elif isinstance(summary, Ranges):
        _print_ranges(console, summary)
    elif isinstance(summary, Index):
        _print_index(console, summary)
    else:
        _print_cache(console, summary)


def _print_model(console: Console, summary: ModelSummary, placement: bool) -> None:
    facts = f"  opset {summary.opset}  {format_bytes(summary.weight_bytes)} of weights"
    console.print(Text.assemble((summary.path, "bold"), facts), soft_wrap=True)
    for kind, specs in (("input", summary.inputs), ("output", summary.outputs)):
        for spec in specs:
            console.print(Text(f"  {kind}  {spec}"))
    types = ", ".join(f"{count} {op_type}" for op_type, count in summary.op_types.items())
    console.print(Text(f"  nodes  {types}"))
    for note in summary.notes:
        console.print(Text(f"  {note}", style="dim"))
    layers, kept, given = summary.placement.layers, summary.placement.kept, summary.placement.given
    if given or summary.quantized_layers:
        count = format_count(len(summary.quantized_layers), "layer")
        asked = Counter(format_asked(layer.asked) for layer in summary.quantized_layers)
        formats = ", ".join(f"{number} {form}" for form, number in asked.most_common())
        told = f": {formats}" if formats else ""
        console.print(f"quantized already: {count} with Q/DQ{told}", soft_wrap=True)
    if layers or not given:
        count = format_count(len(layers), "layer")
        console.print(f"a build quantizes {count} and keeps {len(kept)} with weights in float")
    if placement:
        rows = create_table("node", "type", "decision")
        for node in summary.placement.quantized:
            rows.add_row(node.name, node.op_type, Text.assemble(("INT8", "green"), f" by {node.scheme.rule}"))
        for other in given:
            rows.add_row(other.name, other.op_type, f"as it is: {other.reason}")
        for other in kept:
            rows.add_row(other.name, other.op_type, f"float: {other.reason}")
        console.print(rows)


def _print_ranges(console: Console, ranges: Ranges) -> None:
    console.print(
        Text(f"ranges by {ranges.method} over {format_count(ranges.num_samples, 'sample')} of {ranges.data}"),
        soft_wrap=True,
    )
    if ranges.is_random:
        console.print(Text("from random data", style="bold red"))
    rows = create_table("tensor", "amax", "min", "max", numbers=3)
    for name, item in ranges.tensors.items():
        rows.add_row(name, f"{item.amax:.6g}", f"{item.minimum:.6g}", f"{item.maximum:.6g}")
    console.print(rows)


def _print_index(console: Console, index: Index) -> None:
    builds = format_count(len(index.names), "build")
    console.print(f"{format_count(len(index.engines), 'engine')} of {builds}")
    rows = create_table("build", "on", "", "backend", "GPU", "for", "folder")
    for item in index.engines:
        style = "green" if item.verdict == "pass" else "bold red" if item.verdict == "fail" else "yellow"
        verdict, built_for = Text(item.verdict.upper(), style), ", ".join(item.compute_capabilities)
        made = f"{item.backend} {item.version}"
        rows.add_row(item.name, item.kind, verdict, made, item.gpu, built_for, item.folder)
    console.print(rows)


def _print_cache(console: Console, cache: CalibrationCache) -> None:
    console.print(f"{format_count(len(cache.scales), 'tensor')} by {cache.origin}")
    rows = create_table("tensor", "scale", "amax", numbers=2)
    for name, scale in cache.scales.items():
        rows.add_row(name, f"{scale:.6g}", f"{scale * 127:.6g}")
    console.print(rows)
