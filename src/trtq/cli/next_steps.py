"""What a person does after a build: the page, the command that helps most, the command to run it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtq.errors import GateError
from trtq.pipeline.deliver.advice import advise, group_reasons
from trtq.pipeline.deliver.html.page import NAME as PAGE
from trtq.pipeline.deliver.names import ENGINE
from trtq.pipeline.engine.gpu import explain_missing_gpu

if TYPE_CHECKING:
    from rich.console import Console

    from trtq.pipeline.deliver.advice import Advice
    from trtq.pipeline.deliver.report import Report

WORDS = "trtq.words"
"""Where the words of the command line are kept."""


def list_next(report: Report, *, advises: bool = True) -> list[str]:
    """Returns up to three lines: the page, what helps most, and how to run what was built.

    Args:
        report: Of the build.
        advises: Whether options that help are those of this command.
    """
    folder = _shorten(report.output)
    lines = [f"page  {Path(folder, PAGE)}"]
    if advises and (advice := advise(report)) is not None:
        lines.append(f"try   {_format_advice(advice)}")
    if report.verdict != "fail":
        lines.append(f"run   {shlex.join(_list_run(report, folder))}")
    return lines


def print_next(console: Console, report: Report, lines: Sequence[str]) -> None:
    """Prints the lines below a verdict that is no failure; those of a failure follow its error."""
    for line in lines if report.verdict != "fail" else ():
        console.print(line, soft_wrap=True)


def refuse_failed(report: Report, lines: Sequence[str] = ()) -> None:
    """Ends a command whose gate failed, with what is to be done next below the reasons.

    Raises:
        GateError: The verdict is a failure.
    """
    if report.verdict == "fail":
        failed = f"the {report.failed_gates} gate failed: {'; '.join(group_reasons(report.reasons))}"
        raise GateError("\n  ".join((failed, *lines)))


def _format_advice(advice: Advice) -> str:
    """Returns a command that can be copied, with the reason as a comment of the shell."""
    words = advice.command or ("trtq", *_list_given(advice), *advice.options)
    return f"{shlex.join(map(_shorten, words))}  # {advice.text}"


def _list_given(advice: Advice) -> Iterator[str]:
    """Yields the words of this command without options, and their values, that the advice changes."""
    gone = {*advice.drops, *(word for word in advice.options if word.startswith("--"))}
    is_value = False
    for word in click.get_current_context().find_root().meta[WORDS]:
        name, equals, _ = word.partition("=")
        if not is_value and name not in gone:
            yield word
        is_value = not is_value and name in gone and not equals


def _list_run(report: Report, folder: str) -> Iterator[str]:
    data = report.evaluation_data
    yield from ("trtq", "run", folder, "--data", data if data and Path(data).exists() else "DATA")
    yield from ("-o", "outputs.npz")
    if report.engine.path == ENGINE and explain_missing_gpu():
        yield from ("--backend", "onnxruntime")


def _shorten(path: str) -> str:
    """Returns a path as it is written from here, if it lies in this folder."""
    relative = os.path.relpath(path) if Path(path).is_absolute() else path
    return path if relative.startswith(os.pardir) else relative
