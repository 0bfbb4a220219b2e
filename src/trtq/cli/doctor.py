"""`trtq doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import print_json, result_console
from trtq.cli.tables import table
from trtq.pipeline.doctor import examine


@click.command("doctor")
@options.json_option
def command(as_json: bool) -> None:
    """Show what is installed and which backends work here.

    Each backend that is installed builds a tiny model.
    """
    health = examine()
    if as_json:
        print_json(asdict(health))
        return
    console = result_console()
    console.print(f"Python {health.python} on {health.platform}")
    console.print(f"GPU: {health.gpu}")
    console.print(f"calibration counts: {health.kernel}")
    backends = table("backend", "version", "works here")
    for item in health.backends:
        works = Text.assemble(("no", "red"), f": {item.reason}") if item.reason else Text("yes", "green")
        backends.add_row(item.name, item.version or "-", works)
    console.print(backends)
    packages = table("package", "version")
    for name, found in health.packages.items():
        packages.add_row(name, found or Text("not installed", "dim"))
    console.print(packages)
