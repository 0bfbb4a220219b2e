"""The command line as tests run it, and its output as they compare it."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.testing import CliRunner, Result

from trtq.cli import main

METHOD = "method(...)"
"""What `plain` makes of a method with its parameters."""


def trtq(*arguments: object, command: click.Command = main, terminal: bool = False) -> Result:
    """Runs the command line in this process, 80 columns wide; what is no expected failure is raised.

    Args:
        arguments: Words of any type.
        command: One of the commands itself, whose expected failures end up in `Result.exception`.
        terminal: Print as on a terminal.
    """
    runner = CliRunner(env={"FORCE_COLOR": "1" if terminal else None, "TERM": "xterm", "COLUMNS": "80"})
    words = [str(argument) for argument in arguments]
    return runner.invoke(command, words, prog_name="trtq", catch_exceptions=command is not main)


def lines_of(text: str) -> list[str]:
    """Returns the lines of output without rules and padding."""
    return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line.strip(" ─")]


def plain(text: str, folder: Path) -> str:
    """Returns output without what differs from run to run.

    The folder is DIR, fractions are #; rules, padding, parameters of methods and names of repairs are gone.
    """
    text = re.sub(
        r"(?:minmax|percentile|entropy|mse|cosine)\([^)]*\)", METHOD, text.replace(str(folder), "DIR")
    )
    text = re.sub(r"repairs: .*;", "repairs: ...;", text)
    text = re.sub(r"-?\d+\.[\d.]+(?:e[-+]\d+)?%?", "#", text)
    return "".join(f"{line}\n" for line in lines_of(text))
