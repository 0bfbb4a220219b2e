"""`trtq doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.tables import create_table
from trtq.pipeline.doctor import doctor


@click.command("doctor")
@options.json_option
def command(as_json: bool) -> None:
    """Show what is installed and which backends work here.

    Each installed backend builds a tiny model.
    """
    health = doctor()
    if as_json:
        print_json(asdict(health))
        return
    console = open_console()
    console.print(f"Python {health.python} on {health.platform}")
    console.print(f"GPU: {health.gpu}")
    console.print(f"calibration kernel: {health.kernel}")
    backends = create_table("backend", "version", "works here")
    for item in health.backends:
        works = Text.assemble(("no", "red"), f": {item.reason}") if item.reason else Text("yes", "green")
        backends.add_row(item.name, item.version or "-", works)
    console.print(backends)
    packages = create_table("package", "version")
    for name, found in health.packages.items():
        packages.add_row(name, found or Text("not installed", "dim"))
    console.print(packages)
