"""`trtq report`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.cli.console import open_console
from trtq.files import check_output, write_atomically
from trtq.pipeline.report import report


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="The file of `trtq sensitivity` for the same model: the page then shows what each layer costs.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="HTML file.  [default: FOLDER.html beside it]"
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, sensitivity: Path | None, output: Path | None, quiet: bool) -> None:
    """Write the page of a build again, from what is in its folder.

    `trtq build` has already written report.html to the folder. This page can also show what `trtq
    sensitivity` measured for each layer. It is one file that loads nothing else.

    \b
      trtq report model.trtq
      trtq report model.trtq --sensitivity model.sensitivity.json -o report.html
    """
    output = output or folder.absolute().with_suffix(f"{folder.suffix}.html")
    check_output(output, folder, sensitivity)
    page = report(folder, sensitivity)
    write_atomically(output, page)
    if not quiet:
        open_console().print(f"written to {output}", soft_wrap=True)
