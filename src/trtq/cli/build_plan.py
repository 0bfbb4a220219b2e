"""The plan of a build in the terminal: `trtq build --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from trtq.numbers import format_count, format_shape
from trtq.pipeline.deliver.report import format_asked

if TYPE_CHECKING:
    from rich.console import Console

    from trtq.models.spec import AccuracySpec, InputSpec
    from trtq.pipeline.build.dry import BuildPlan, PlannedData

_WIDTH = 13


def print_plan(console: Console, plan: BuildPlan) -> None:
    """Prints what a build would do, a line for each decision."""
    for title, text in _list_lines(plan):
        console.print(Text.assemble((f"{title:<{_WIDTH}}", "bold"), text), soft_wrap=True)


def _list_lines(plan: BuildPlan) -> Iterator[tuple[str, str]]:
    yield "model", plan.model
    yield "settings", plan.settings or "none next to the model"
    rest = "" if plan.high_precision == "as it is" else f" + {plan.high_precision.upper()}"
    yield "engine", f"{plan.precision.upper()}{rest} by {plan.backend}, {_name_targets(plan)}"
    yield "calibration", _tell_data(plan.calibration, "none is needed")
    if plan.method:
        yield "ranges", f"by {plan.method}; repairs: {', '.join(plan.repairs) or 'none'}"
    yield "evaluation", _tell_data(plan.evaluation, "none: the verdict will be unverified")
    yield "gate", _tell_gate(plan.gate)
    yield "quantized", _count(plan.layers) or "no layer"
    yield from (("stays", f"{format_count(count, 'layer')}: {reason}") for reason, count in plan.kept.items())
    yield from (("profile", f"{name}: {_tell_profile(item)}") for name, item in plan.profiles.items())
    yield "writes", f"{plan.output}: {', '.join(plan.files)}"
    if plan.engine_file:
        yield "", f"{plan.engine_file}, unless the gate fails"
    if plan.reused:
        yield "used again", f"of the earlier build: {', '.join(plan.reused)}"
    yield "command", plan.command
    yield "", "nothing was written: --dry-run"


def _name_targets(plan: BuildPlan) -> str:
    if plan.backend.startswith("onnxruntime"):
        return "on the CPU"
    return f"for {', '.join(plan.targets)}" if plan.targets else "for its default GPUs"


def _tell_data(data: PlannedData | None, otherwise: str) -> str:
    if data is None:
        return otherwise
    count = "unknown before it runs" if data.num_samples is None else format_count(data.num_samples, "sample")
    return f"{data.origin} ({count})"


def _tell_gate(gate: AccuracySpec) -> str:
    name = Path(gate.metric).name
    drop = f"{name} at most {gate.max_drop:g} points lower, where there are labels"
    speed = "" if gate.min_speedup is None else f"; at least {gate.min_speedup:g} times as fast as float"
    return f"cosine of every output at least {gate.min_cosine:.12g}; {drop}{speed}"


def _count(layers: Mapping[str, int]) -> str:
    counted = ((format_count(count, "layer"), format_asked(name)) for name, count in layers.items())
    return ", ".join(" ".join(words) for words in counted)


def _tell_profile(profile: InputSpec | None) -> str:
    if profile is None:
        return "from the data"
    return "; ".join(
        "  ".join(f"{kind} {format_shape(getattr(each, kind))}" for kind in ("min", "opt", "max"))
        for each in profile.all
    )
