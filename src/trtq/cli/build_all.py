"""`trtq build-all`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from trtq.calibrators.memory import find_free_bytes
from trtq.cli import options
from trtq.cli.build_file import BuildEntry, read_builds
from trtq.cli.ci import ci_options, take_ci_files
from trtq.cli.console import ConsoleWatcher, echo, open_console, print_answer
from trtq.cli.junit import Case
from trtq.cli.markdown import write_table, write_title
from trtq.cli.sizes import parse_bytes
from trtq.cli.tables import create_table
from trtq.errors import ArtifactError, UsageError
from trtq.files import write_atomically
from trtq.json import FileKind
from trtq.numbers import format_bytes, format_count, format_seconds
from trtq.pipeline.build_all import CommandOutcome, Limits, run_jobs
from trtq.pipeline.deliver.report import FILE as REPORT_FILE
from trtq.pipeline.deliver.report import LITTLE
from trtq.records import REFERENCES
from trtq.workers import count_cores

_SEVERITY = (0, 3, 2, 5, 4)
"""Exit codes from the best to the worst; any other is worse: a crash."""
_WORDS = {2: "bad input", 3: "gate failed", 4: "not built", 5: "not installed"}
_OUTCOMES = {"pass": "pass", "unverified": "unverified", "gate failed": "fail"}
"""What a test case is called for a build in each state; any other is an error."""
_WORST_FIRST = ("error", "fail", "unverified", "pass")
_HEADERS = ("build", "", "precision", "backend", "cosine", "INT8 layers", "MACs", "engine", "seconds")
_STYLES = {"pass": "green", "unverified": "yellow", "pending": "dim"}


@dataclass(frozen=True, slots=True)
class BuildResult:
    """How one build went, as in the summary.

    Attributes:
        state: "pass", "unverified", "gate failed", "bad input", "not built", "not installed", "crashed" or,
            while others run, "pending".
        exit_code: Of its process; negative: killed by this signal; None while it is pending.
        reused: What was taken from an earlier build; "everything": nothing was to do.
        min_cosine: The smallest of any output of the judged model, against FP32; None without a comparison.
        layers: Layers that run as asked, and quantized ones; None without a report.
        engine_bytes: Of the engine, or of the model that runs.
        quantized_macs: The share of the MACs on codes of 8 bits or fewer; None if nothing tells.
        error: Why it failed; empty if it did not.
    """

    name: str
    model: str
    output: str
    state: str = "pending"
    exit_code: int | None = None
    seconds: float = 0.0
    reused: tuple[str, ...] = ()
    precision: str = ""
    backend: str = ""
    min_cosine: float | None = None
    layers: tuple[int, int] | None = None
    engine_bytes: int = 0
    quantized_macs: float | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """How all builds went."""

    builds: tuple[BuildResult, ...]


def _upgrade(document: dict[str, Any], version: int) -> dict[str, Any]:
    """Returns a summary of an older schema as one of today: the first knew INT8 alone."""
    builds = document.get("builds")
    if version > 1 or not isinstance(builds, list):
        return document
    renamed = [
        {**item, "quantized_macs": item.get("int8_macs")} if isinstance(item, dict) else item
        for item in builds
    ]
    return {**document, "builds": renamed}


FILE = FileKind(Summary, "summary of trtq", "trtq build-all", "trtq build-all", version=2, upgrade=_upgrade)


@click.command("build-all")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=Path("trtq.toml"))
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="How many builds run at a time.  [default: half of the cores, 2 at least]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for all running builds together, such as 8G: a build starts when what it may need is "
    "left.  [default: nine tenths of what is free]",
)
@options.take_output("Where the summary is written as JSON.  [default: summary.json beside FILE]")
@ci_options
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print what failed, and nothing else.")
@click.pass_context
def command(ctx: click.Context, /, file: Path, **given: Any) -> None:
    """Build several models at once, from one file.

    Each [[build]] of FILE names a model and, as keys, options of `trtq build` without their dashes;
    [defaults] holds for all. Everything is checked before any work. Each build runs in a process of its own
    and fails by itself. The exit code is the worst of all: 4, else 5, else 2, else 3. What is unchanged
    since it was built is not built again, so the same command continues after an interruption.

    \b
      trtq build-all trtq.toml --jobs 2 --memory 8G
    """
    entries = read_builds(file)
    path = given["output"] or file.parent / "summary.json"
    files = take_ci_files(("build-all", file), given)
    files.check(file, output=path)
    _refuse_foreign(path)
    memory = parse_bytes(given["memory"]) if given["memory"] else find_free_bytes() * 9 // 10
    if memory < 1:
        raise UsageError(f"--memory must be at least 1 byte, got {given['memory']}")
    limits = Limits(given["jobs"] or max(2, math.ceil(count_cores() / 2)), memory)
    unwritten: list[ArtifactError] = []
    results = [BuildResult(entry.name, str(entry.model), str(entry.output)) for entry in entries]
    with ConsoleWatcher(quiet=given["quiet"] or given["as_json"]) as watcher:
        watcher.stage("Building", len(entries))
        for entry in entries:
            if entry.job.memory_bytes > memory:
                watcher.warn(
                    f"{entry.name} may need {format_bytes(entry.job.memory_bytes)}, more than the "
                    f"{format_bytes(memory)} available: it runs alone"
                )

        def started(number: int) -> None:
            watcher.note(f"{entries[number].name} has begun")

        def ended(number: int, outcome: CommandOutcome) -> None:
            results[number] = _result(entries[number], outcome)
            watcher.advance(1)
            state, seconds = results[number].state, format_seconds(outcome.seconds)
            watcher.note(f"{entries[number].name}: {state} after {seconds}")
            unwritten.clear()
            try:
                write_atomically(path, _summary(results))
            except ArtifactError as error:  # the other builds go on
                unwritten.append(error)

        run_jobs([entry.job for entry in entries], limits, started, ended)
    files.write(*_tell_ci(files.title, results))
    if given["as_json"]:
        print_answer(_summary(results).decode())
    else:
        _print(results, quiet=given["quiet"])
    if unwritten:
        raise unwritten[0]
    if not (given["as_json"] or given["quiet"]):
        open_console().print(f"written to {path}", soft_wrap=True)
    ctx.exit(worst([item.exit_code or 0 for item in results]))


def worst(codes: Sequence[int]) -> int:
    """Returns the exit code for all: that of the worst; 1 for a crash."""
    order = {code: rank for rank, code in enumerate(_SEVERITY)}
    code = max(codes, key=lambda item: order.get(item, len(order)))
    return code if code in order else 1


def _refuse_foreign(path: Path) -> None:
    """Refuses to write the summary over something else, before any work."""
    if not path.exists():
        return
    try:
        FILE.read(path)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is not a summary of trtq; choose another file with --output") from error


def _result(entry: BuildEntry, outcome: CommandOutcome) -> BuildResult:
    """Returns how a build went, from what its process left."""
    try:
        report = REPORT_FILE.decode(outcome.stdout.encode(errors="replace"), entry.name)
    except ArtifactError:
        report = None
    words = outcome.stderr.strip() or "it said nothing"
    error = re.split(r"^error: ", words, flags=re.MULTILINE)[-1] if outcome.exit_code else ""
    ours, seconds = (entry.name, str(entry.model), str(entry.output)), round(outcome.seconds, 1)
    if outcome.exit_code not in _SEVERITY or (outcome.exit_code == 0 and report is None):
        return BuildResult(*ours, "crashed", outcome.exit_code or 1, seconds, error=words[-2000:])
    if report is None:
        return BuildResult(*ours, _WORDS[outcome.exit_code], outcome.exit_code, seconds, error=error)
    candidates = [item for item in report.comparison if item.reference in REFERENCES]
    judged = [item.cosine for item in candidates if item.candidate == candidates[0].candidate]
    return BuildResult(
        *ours,
        state=_WORDS.get(outcome.exit_code, report.verdict),
        exit_code=outcome.exit_code,
        seconds=seconds,
        reused=report.reused,
        precision=report.precision,
        backend=report.backend,
        min_cosine=min((value for value in judged if not math.isnan(value)), default=None),
        layers=(report.engine.num_realized, report.engine.layers_quantized),
        engine_bytes=report.engine.bytes,
        quantized_macs=report.quantized_macs,
        warnings=report.warnings,
        error=error,
    )


def _summary(results: Sequence[BuildResult]) -> bytes:
    return FILE.encode(Summary(tuple(results)))


def _tell_ci(title: str, results: Sequence[BuildResult]) -> tuple[str, list[Case]]:
    """Returns the builds as Markdown, and each as a test case."""
    cases = [
        Case(item.name, _OUTCOMES.get(item.state, "error"), item.error or "; ".join(item.warnings))
        for item in results
    ]
    worst_outcome = next(word for word in _WORST_FIRST if word in {case.outcome for case in cases})
    return write_title(worst_outcome, title) + write_table(
        _HEADERS, list(map(_list_cells, results)), 5
    ), cases


def _list_cells(item: BuildResult) -> tuple[str, ...]:
    """Returns what the table of builds says of one."""
    return (
        item.name,
        item.state.upper() + (", unchanged" if "everything" in item.reused else ""),
        item.precision,
        item.backend,
        "" if item.min_cosine is None else f"{item.min_cosine:.5f}",
        f"{item.layers[0]} of {item.layers[1]}" if item.layers else "",
        "" if item.quantized_macs is None else f"{item.quantized_macs:.1%}",
        format_bytes(item.engine_bytes) if item.engine_bytes else "",
        f"{item.seconds:.1f}",
    )


def _print(results: Sequence[BuildResult], *, quiet: bool) -> None:
    """Prints the table, and why builds failed."""
    if quiet:
        for item in results:
            if item.error:
                echo(f"{item.name}: {item.state}: {item.error}", err=True)
        return
    console = open_console()
    rows = create_table(*_HEADERS, numbers=5)
    for item in results:
        is_less = item.quantized_macs is not None and item.quantized_macs < LITTLE and item.state == "pass"
        style = _STYLES.get("unverified" if is_less else item.state, "bold red")
        name, state, *cells = _list_cells(item)
        word, comma, rest = state.partition(",")
        rows.add_row(name, Text.assemble((word, style), comma, rest), *cells)
    console.print(rows)
    for item in results:
        if item.error:
            console.print(Text(f"{item.name}: {item.error}", style="red"), soft_wrap=True)
        elif item.warnings:
            text = f"{item.name}: {format_count(len(item.warnings), 'warning')}, {item.warnings[0]}"
            console.print(Text(text), soft_wrap=True)
