"""How the builds of `trtq build-all` went: the summary, as a file, as a table and for CI."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from trtq.cli.build_file import BuildEntry
from trtq.cli.console import echo, open_console
from trtq.cli.junit import Case
from trtq.cli.markdown import write_table, write_title
from trtq.cli.tables import create_table
from trtq.errors import ArtifactError
from trtq.json import FileKind
from trtq.numbers import format_bytes, format_count
from trtq.pipeline.build_all import CommandOutcome
from trtq.pipeline.deliver.report import FILE as REPORT_FILE
from trtq.pipeline.deliver.report import LITTLE
from trtq.records import REFERENCES

_SEVERITY = (0, 3, 2, 5, 4)
"""Exit codes from the best to the worst; any other is worse: a crash."""
_WORDS = {2: "bad input", 3: "gate failed", 4: "not built", 5: "not installed"}
_OUTCOMES = {"pass": "pass", "unverified": "unverified", "gate failed": "fail"}
"""What a test case is called for a build in each state; any other is an error."""
_WORST_FIRST = ("error", "fail", "unverified", "pass")
_HEADERS = ("", "precision", "backend", "cosine", "INT8 layers", "MACs", "engine", "seconds")
_NUM_NUMBERS = 5
"""How many of the last columns are numbers."""
_STYLES = {"pass": "green", "unverified": "yellow", "pending": "dim"}


@dataclass(frozen=True, slots=True)
class BuildResult:
    """How one build went, as in the summary.

    Attributes:
        state: "pass", "unverified", "gate failed", "bad input", "not built", "not installed", "lost" (no
            machine of the cluster did it), "crashed" or, while others run, "pending".
        exit_code: Of its process; negative: killed by this signal; None while it is pending.
        reused: What was taken from an earlier build; "everything": nothing was to do.
        min_cosine: The smallest of any output of the judged model, against FP32; None without a comparison.
        layers: Layers that run as asked, and quantized ones; None without a report.
        engine_bytes: Of the engine, or of the model that runs.
        quantized_macs: The share of the MACs on codes of 8 bits or fewer; None if nothing tells.
        error: Why it failed; empty if it did not.
        kind: Of machine that it is for; empty: any.
        machine: Of a cluster, where it ran; empty: this one.
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
    kind: str = ""
    machine: str = ""

    @property
    def title(self) -> str:
        """The name, and the kind if it has one."""
        return f"{self.name} on {self.kind}" if self.kind else self.name


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


def find_worst(codes: Sequence[int]) -> int:
    """Returns the exit code for all: that of the worst; 1 for a crash."""
    order = {code: rank for rank, code in enumerate(_SEVERITY)}
    code = max(codes, key=lambda item: order.get(item, len(order)))
    return code if code in order else 1


def describe_outcome(entry: BuildEntry, outcome: CommandOutcome) -> BuildResult:
    """Returns how a build went, from what its process left."""
    try:
        report = REPORT_FILE.decode(outcome.stdout.encode(errors="replace"), entry.name)
    except ArtifactError:
        report = None
    base = BuildResult(
        entry.name,
        str(entry.model),
        str(entry.output),
        exit_code=outcome.exit_code,
        seconds=round(outcome.seconds, 1),
        error=_find_error(outcome),
        kind=entry.kind,
        machine=outcome.machine,
    )
    if outcome.exit_code not in _SEVERITY or (outcome.exit_code == 0 and report is None):
        return replace(base, state="crashed", exit_code=outcome.exit_code or 1)
    if report is None:
        return replace(base, state="lost" if outcome.is_lost else _WORDS[outcome.exit_code])
    candidates = [item for item in report.comparison if item.reference in REFERENCES]
    judged = [item.cosine for item in candidates if item.candidate == candidates[0].candidate]
    return replace(
        base,
        state=_WORDS.get(outcome.exit_code, report.verdict),
        reused=report.reused,
        precision=report.precision,
        backend=report.backend,
        min_cosine=min((value for value in judged if not math.isnan(value)), default=None),
        layers=(report.engine.num_realized, report.engine.layers_quantized),
        engine_bytes=report.engine.bytes,
        quantized_macs=report.quantized_macs,
        warnings=report.warnings,
    )


def _find_error(outcome: CommandOutcome) -> str:
    """Returns why a build failed, with the machine of a cluster; empty if it did not."""
    words = outcome.stderr.strip() or "it said nothing"
    if outcome.exit_code not in _SEVERITY or (outcome.exit_code == 0 and not outcome.stdout.strip()):
        error = words[-2000:]
    elif outcome.exit_code == 0:
        return ""
    else:
        error = re.split(r"^error: ", words, flags=re.MULTILINE)[-1]
    is_told = not outcome.machine or outcome.machine in error
    return error if is_told else f"on the machine {outcome.machine}: {error}"


def encode_summary(results: Sequence[BuildResult]) -> bytes:
    """Returns the summary as a file."""
    return FILE.encode(Summary(tuple(results)))


def list_cases(results: Sequence[BuildResult]) -> list[Case]:
    """Returns a test case for each build."""
    return [
        Case(item.title, _OUTCOMES.get(item.state, "error"), item.error or "; ".join(item.warnings))
        for item in results
    ]


def write_builds(title: str, results: Sequence[BuildResult]) -> str:
    """Returns the builds as Markdown."""
    outcomes = {case.outcome for case in list_cases(results)}
    worst = next(word for word in _WORST_FIRST if word in outcomes)
    first = _name_first(results)
    rows = [(*(item.name, item.kind)[: len(first)], *_list_cells(item)) for item in results]
    return write_title(worst, title) + write_table((*first, *_HEADERS), rows, _NUM_NUMBERS)


def print_results(results: Sequence[BuildResult], *, quiet: bool) -> None:
    """Prints the table, and why builds failed."""
    if quiet:
        for item in results:
            if item.error:
                echo(f"{item.title}: {item.state}: {item.error}", err=True)
        return
    console, first = open_console(), _name_first(results)
    rows = create_table(*first, *_HEADERS, numbers=_NUM_NUMBERS)
    for item in results:
        state, *cells = _list_cells(item)
        rows.add_row(*(item.name, item.kind)[: len(first)], _color(item, state), *cells)
    console.print(rows)
    for item in results:
        if item.error:
            console.print(Text(f"{item.title}: {item.error}", style="red"), soft_wrap=True)
        elif item.warnings:
            text = f"{item.title}: {format_count(len(item.warnings), 'warning')}, {item.warnings[0]}"
            console.print(Text(text), soft_wrap=True)


def _name_first(results: Sequence[BuildResult]) -> tuple[str, ...]:
    """Returns the headers of the first columns; kinds have one if there are any."""
    return ("build", "on") if any(item.kind for item in results) else ("build",)


def _list_cells(item: BuildResult) -> tuple[str, ...]:
    """Returns what the table says of a build, from its state on."""
    return (
        item.state.upper() + (", unchanged" if "everything" in item.reused else ""),
        item.precision,
        item.backend,
        "" if item.min_cosine is None else f"{item.min_cosine:.5f}",
        f"{item.layers[0]} of {item.layers[1]}" if item.layers else "",
        "" if item.quantized_macs is None else f"{item.quantized_macs:.1%}",
        format_bytes(item.engine_bytes) if item.engine_bytes else "",
        f"{item.seconds:.1f}",
    )


def _color(item: BuildResult, state: str) -> Text:
    """Returns the state in its color, and without it what stands behind a comma."""
    is_less = item.quantized_macs is not None and item.quantized_macs < LITTLE and item.state == "pass"
    style = _STYLES.get("unverified" if is_less else item.state, "bold red")
    word, comma, rest = state.partition(",")
    return Text.assemble((word, style), comma, rest)
