"""`trtq lint`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.sarif import describe_repair, to_sarif
from trtq.errors import ModelError
from trtq.files import check_output, write_atomically
from trtq.numbers import format_count
from trtq.pipeline.deliver.report import describe_coverage
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.pipeline.lint import lint

if TYPE_CHECKING:
    from rich.console import Console

    from trtq.pipeline.lint import LintItem, LintReport

_STYLES = {"refused": "bold red", "wrong": "bold red", "float": "yellow", "suspect": "yellow"}
_MOST_NODES = 3


@click.command("lint")
@options.model_argument
@click.option(
    "--compute-capability",
    "targets",
    multiple=True,
    metavar="X.Y",
    help="Target GPU, such as 8.9, to check for supported formats (repeatable).",
)
@click.option(
    "--sarif",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the findings to this file as SARIF 2.1.0, for code scanning on GitHub and others.",
)
@options.json_option
@click.option("-v", "--verbose", is_flag=True, help="List every node, not only the first few of each rule.")
def command(model: Path, targets: tuple[str, ...], sarif: Path | None, as_json: bool, verbose: bool) -> None:
    """Find Q/DQ that TensorRT rejects, reads differently or silently runs in float, and mismatched pairs.

    Builds nothing. Each finding has the rule, the node, the reason and the repair. The exit code is 2 if
    `trtq build` would refuse the model, because there is no exact repair.

    \b
      trtq lint quantized.onnx
      trtq lint quantized.onnx --sarif lint.sarif
    """
    if sarif is not None:
        check_output(sarif, *list_model_files(model, sarif), option="--sarif")
    linted = lint(model, compute_capabilities=targets)
    if sarif is not None:
        write_atomically(sarif, to_sarif(linted))
    if as_json:
        print_json(asdict(linted))
    else:
        _print(open_console(), linted, verbose=verbose)
    if linted.stopping:
        first = linted.stopping[0].finding
        count = format_count(len(linted.stopping), "finding")
        raise ModelError(
            f"TensorRT does not take {model}; {count} without an exact repair, {first.rule} of node "
            f"{first.node!r} first"
        )


def _print(console: Console, linted: LintReport, *, verbose: bool) -> None:
    if not linted.is_quantized:
        console.print(f"{linted.model} holds no Q/DQ: nothing to check", soft_wrap=True)
        return
    groups: dict[tuple[str, str, str, str], list[LintItem]] = {}
    for item in linted.items:
        groups.setdefault((item.finding.rule, item.finding.effect, item.repair, item.what), []).append(item)
    for (rule, effect, _, _), items in groups.items():
        count = format_count(len(items), "node")
        console.print(Text.assemble((effect, _STYLES[effect]), "  ", (rule, "bold"), f"  {count}"))
        for item in items if verbose else items[:_MOST_NODES]:
            finding = item.finding
            console.print(f"  {finding.node} ({finding.op_type}): {finding.reason}", soft_wrap=True)
        if not verbose and len(items) > _MOST_NODES:
            console.print(f"  and {len(items) - _MOST_NODES} more (-v lists them)")
        details = {item.detail for item in items}
        text = describe_repair(items[0], details.pop() if len(details) == 1 else "")
        console.print(Text(f"  {text}", style="dim"), soft_wrap=True)
    counts = {effect: sum(item.finding.effect == effect for item in linted.items) for effect in _STYLES}
    shown = ", ".join(f"{count} {effect}" for effect, count in counts.items() if count) or "no findings"
    lost = Counter(linted.layers_quantized) - Counter(linted.layers_realized)
    covered = describe_coverage(linted.layers_realized, lost) or "no layer is quantized"
    console.print(f"{covered} as it is; {shown}", soft_wrap=True)
