"""What a person sees: progress on stderr, results on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

import click

from trtq.cli.escape import escape

if TYPE_CHECKING:
    from rich.console import Console


def echo(text: str, *, err: bool = False) -> None:
    """Prints a line without colors on stdout or stderr, escaped."""
    click.echo(escape(text), err=err)


class ConsoleWatcher:
    """Draws a progress bar on a terminal, and prints notes and warnings.

    As a context manager it clears the bar at the end. What draws is imported where something is drawn.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = None if quiet else _stderr_console()
        self._progress: Any = None
        if self._console is not None and self._console.is_terminal:
            from trtq.cli.progress import show_progress

            self._progress = show_progress(self._console)
        self._task: Any = None

    def __enter__(self) -> ConsoleWatcher:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage(self, text: str, total: int | None = None) -> None:
        """Starts a new bar."""
        if self._progress is None:
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=total)

    def advance(self, num_samples: int) -> None:
        """Moves the bar."""
        if self._progress is not None:
            self._progress.advance(self._task, num_samples)

    def note(self, text: str) -> None:
        """Prints a note, unless quiet."""
        if self._console is not None:
            self._console.print(f"note: {text}", style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        console = self._console or _stderr_console()
        console.print(f"warning: {text}", style="bold red", soft_wrap=True)


def _stderr_console() -> Console:
    from trtq.cli.terminal import EscapingConsole

    return EscapingConsole(stderr=True, highlight=False, markup=False, emoji=False)


def open_console() -> Console:
    """Returns the console for results, as wide as the terminal, or 120 columns in a pipe.

    It prints strings as they are: the names of a model may look like markup.
    """
    from trtq.cli.terminal import EscapingConsole

    width = None if sys.stdout.isatty() else 120
    return EscapingConsole(highlight=False, markup=False, emoji=False, width=width)


def open_closed_streams() -> None:
    """Has stdin, stdout and stderr lead nowhere where the caller closed them, as some daemons do.

    Otherwise the next files that are opened would get their descriptors, and what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest descriptor that is free is its own
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


_answers: list[TextIO] = []
"""What stdout was before `keep_stdout`, the innermost last."""


@contextmanager
def keep_stdout() -> Iterator[None]:
    """Keeps stdout for `print_answer`; what anything else prints there goes to stderr.

    That holds for libraries, scripts of the user's and their child processes too: they may write to the file
    descriptor.
    """
    stream = sys.stdout
    stream.flush()
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # in a test, it is no file
        descriptor = None
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        _answers.append(stream if descriptor is None else stack.enter_context(_redirect(stream, descriptor)))
        try:
            yield
        finally:
            _answers.pop()


@contextmanager
def _redirect(stream: TextIO, descriptor: int) -> Iterator[TextIO]:
    """Makes a descriptor of a stream lead to stderr; gives a stream that leads where it did."""
    saved = os.dup(descriptor)
    try:
        with os.fdopen(os.dup(saved), "w", encoding=stream.encoding, errors=stream.errors) as answers:
            try:
                os.dup2(2, descriptor)
            except OSError:  # there is no stderr
                stderr = os.open(os.devnull, os.O_WRONLY)
                os.dup2(stderr, descriptor)
                os.close(stderr)
            yield answers
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def print_answer(text: str) -> None:
    """Prints the answer to `--json`, alone on stdout."""
    stream = _answers[-1] if _answers else sys.stdout
    stream.write(text)
    stream.flush()


def print_json(value: object) -> None:
    """Prints values as JSON on stdout, dataclasses as objects; numbers that are not finite become null."""
    from trtq.json import to_text

    print_answer(f"{to_text(value)}\n")
