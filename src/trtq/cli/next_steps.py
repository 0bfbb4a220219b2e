"""What a person does after a build: the page, the command that helps most, the command to run it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtq.cli.options import Given
from trtq.cli.targets import read_target
from trtq.errors import GateError, UsageError
from trtq.files import as_argument
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
    """Returns up to three lines: the page, what helps most, and how to run what was built on such data.

    What takes a cache of codes does not run on the data that it was built with.

    Args:
        report: Of the build.
        advises: Whether options that help are those of this command.
    """
    folder = _shorten(report.output)
    lines = [f"open  {shlex.quote(as_argument(str(Path(folder, PAGE))))}"]
    advice = advise(report) if advises else None
    if advice is not None and (words := advice.command or _change_given(advice)):
        lines.append(f"try   {shlex.join(map(_shorten, words))}  # {advice.text}")
    if report.verdict != "fail" and report.kv_cache is None:
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


def _change_given(advice: Advice) -> tuple[str, ...]:
    """Returns this command as the advice changes it; empty where that contradicts what else was given."""
    ctx = click.get_current_context()
    words = (*_list_given(ctx, advice), *advice.options)
    try:
        changed = ctx.command.make_context(ctx.info_name, [*words])
        given = changed.ensure_object(Given)
        read_target(given)
        given.read_spec(changed.params["model"])
    except (click.UsageError, UsageError):
        return ()
    return ("trtq", str(ctx.info_name), *words)


def _list_given(ctx: click.Context, advice: Advice) -> Iterator[str]:
    """Yields the model and the options without what the advice drops, or gives another value."""
    _, *words = ctx.find_root().meta[WORDS]
    values, _, order = ctx.command.make_parser(ctx).parse_args([*words])
    yield from (as_argument(values[str(item.name)]) for item in order if isinstance(item, click.Argument))
    seen = Counter[str]()
    for parameter in (item for item in order if isinstance(item, click.Option)):
        value, name = values[str(parameter.name)], parameter.opts[0]
        seen[name] += 1
        if {*parameter.opts} & {*advice.drops, *(() if parameter.multiple else advice.options)}:
            continue
        if parameter.is_flag:
            yield from (name,) if seen[name] == 1 else ()
        elif parameter.multiple:
            yield from _join(name, value[seen[name] - 1])
        elif seen[name] == 1:
            yield from _join(name, value)


def _join(name: str, value: str) -> tuple[str, ...]:
    return (f"{name}={value}",) if value.startswith("-") else (name, value)


def _list_run(report: Report, folder: str) -> Iterator[str]:
    data = report.evaluation_data
    known = as_argument(data) if data and Path(data).exists() else "DATA"
    yield from ("trtq", "run", folder, "--data", known)
    yield from ("-o", "outputs.npz")
    if report.engine.path == ENGINE and explain_missing_gpu():
        yield from ("--backend", "onnxruntime")


def _shorten(path: str) -> str:
    """Returns a path as it is written from here, if it lies in this folder."""
    is_known = Path(path).is_absolute() and Path(path).exists()
    relative = os.path.relpath(path) if is_known else path
    return path if relative.startswith(os.pardir) else as_argument(relative) if is_known else path
