"""What a person sees: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed else "", style="progress.data.speed")


class ConsoleWatcher:
    """Draws a progress bar on a terminal, and prints notes and warnings.

    As a context manager it clears the bar at the end.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> ConsoleWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Starts a new bar."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=total)

    def advance(self, num_samples: int) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, num_samples)

    def note(self, text: str) -> None:
        """Prints a note, unless quiet."""
        if not self._quiet:
            self._console.print(Text(f"note: {text}", style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._console.print(Text(f"warning: {text}", style="bold red"), soft_wrap=True)


def result_console() -> Console:
    """Returns the console for results, as wide as the terminal, or 120 columns in a pipe.

    It prints strings as they are: the names of a model may look like markup.
    """
    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    """Prints JSON on stdout; the value holds finite numbers only."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def show_bytes(count: float) -> str:
    """Returns a size for people: `1.8 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
