"""`trtq report`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.cli import ci
from trtq.cli.ci import CiFiles
from trtq.cli.console import open_console
from trtq.cli.markdown import write_pair
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.files import check_outputs, resolve_name, write_atomically
from trtq.pipeline.deliver.side_by_side import name_builds
from trtq.pipeline.report import compare_builds, list_layers, report


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("other", required=False, type=click.Path(path_type=Path))
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="Result of `trtq sensitivity` for the same model, to show the cost of each layer.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="HTML file.  [default: FOLDER.html next to the folder; none with two folders]",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a table of the layers to this file: precision, SQNR in dB, range.",
)
@ci.summary_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(
    folder: Path,
    other: Path | None,
    sensitivity: Path | None,
    output: Path | None,
    table: Path | None,
    summary: Path | None,
    quiet: bool,
) -> None:
    """Rewrite the HTML report of a build, or compare two builds.

    `trtq build` already writes report.html to the folder. This report can also show the results of `trtq
    sensitivity`. It is one self-contained file. With a second folder, the differences from the first are
    shown instead.

    \b
      trtq report model.trtq
      trtq report model.trtq --sensitivity model.sensitivity.json -o report.html
      trtq report model.trtq --csv layers.csv
      trtq report before.trtq model.trtq -o both.html
    """
    if other is not None:
        files = CiFiles(f"trtq report {folder} {other}", summary)
        if sensitivity is not None or table is not None:
            raise UsageError("--sensitivity and --csv are of one build; give one folder with them")
        _show_pair(folder, other, output, files, quiet=quiet)
        return
    if summary is not None:
        raise UsageError("--summary shows two builds side by side; give two folders")
    if output is None:
        named = resolve_name(folder).absolute()
        output = named.with_name(f"{named.name}.html")
    check_outputs({"--output": output, "--csv": table}, folder, sensitivity)
    write_atomically(output, report(folder, sensitivity))
    if table is not None:
        write_atomically(table, list_layers(folder, sensitivity))
    if not quiet:
        open_console().print(f"written to {output}{f' and {table}' if table else ''}", soft_wrap=True)


def _show_pair(first: Path, second: Path, output: Path | None, files: CiFiles, *, quiet: bool) -> None:
    """Shows two builds side by side, and writes the page of both if it is named."""
    files.check(first, second, output=output)
    found = compare_builds(first, second)
    names, rows = name_builds(first, second), found.rows
    files.write(write_pair(names, rows), ())
    if output is not None:
        write_atomically(output, found.page)
    if not quiet:
        shown = create_table("", *names, "change", numbers=1)
        for row in rows:
            shown.add_row(row.name, row.first, row.second, row.change)
        console = open_console()
        console.print(shown)
        if output is not None:
            console.print(f"written to {output}", soft_wrap=True)
