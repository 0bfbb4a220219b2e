"""What the page says, put together from report and manifest; the template lays it out."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.json import to_plain
from trtq.models.preprocess import Preprocess
from trtq.numbers import format_bytes, format_seconds, format_shape
from trtq.pipeline.deliver.html.numbers import MINUS, format_decibels
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import AutoReport, Report, format_asked
from trtq.pipeline.engine.profiles import list_profiles
from trtq.pipeline.formats import LAYER_FORMATS
from trtq.pipeline.judge.score import format_score
from trtq.pipeline.judge.speed import format_speed
from trtq.records import GIVEN, REFERENCES, OutputComparison

_DTYPES = {
    "Int8": "INT8", "Int4": "INT4", "FP4E2M1": "FP4", "Half": "FP16", "Float": "FP32", "BFloat16": "BF16",
}  # fmt: skip
_LONG_COMMAND = 90
_TRUTHS = {"fp32": "the float model", GIVEN: "the model as given, with its own Q/DQ"}
_COMMANDS = {
    "trtq": "The same build",
    "engine": "The engine with its vendor's own tool, in this folder",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the three models at the top: its name, the number, and what it means."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Nodes that do not run as asked for the same reason: names with what they are."""

    reason: str
    nodes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A named part of a whole: the number as text, and the length of its bar in per cent."""

    name: str
    text: str
    length: float


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, and what it does."""

    title: str
    text: str


def format_dtype(name: str) -> str:
    """Returns an engine's word for a type as people write it: `Half` is FP16, `Int8/Half` INT8/FP16."""
    return "/".join(_DTYPES.get(part, part) for part in name.split("/"))


def list_tiles(report: Report) -> tuple[Tile, ...]:
    """Returns FP32, FP16 and the built model by the metric; without labels by their cosine to the first."""
    if report.accuracy:
        return tuple(
            Tile(name.upper(), format_score(score, report.metric), _against(report, name))
            for name, score in report.accuracy.items()
        )
    found, truth = [], find_truth(report)
    for name in reversed(list(dict.fromkeys(item.candidate for item in report.comparison))):
        pairs = [item for item in report.comparison if (item.candidate, item.reference) == (name, truth)]
        if pairs:
            worst = min(pairs, key=_nearness)
            detail = f"cosine to {truth.upper()}, SQNR {format_decibels(worst.sqnr_db)} dB"
            found.append(Tile(name.upper(), f"{worst.cosine:.5f}", detail))
    return (Tile(truth.upper(), "reference", _TRUTHS[truth]), *found) if found else ()


def _nearness(item: OutputComparison) -> float:
    return item.cosine if item.cosine == item.cosine else -2.0  # NaN is the worst


def find_truth(report: Report) -> str:
    """Returns the name of the model that the others are compared with: "fp32", or "given" with Q/DQ."""
    names = {*report.accuracy, *(item.reference for item in report.comparison)}
    return next((name for name in REFERENCES if name in names), REFERENCES[0])


def _against(report: Report, name: str) -> str:
    truth = find_truth(report)
    if name == truth or truth not in report.accuracy:
        return _TRUTHS[truth] if name == truth else ""
    points = 100 * (report.accuracy[name] - report.accuracy[truth])
    return (
        f"the same as {truth.upper()}"
        if abs(points) < 0.005
        else f"{points:+.2f} points against {truth.upper()}".replace("-", MINUS)
    )


def format_gate(report: Report, manifest: Manifest) -> str:
    """Returns what the gate asks for, in a sentence; empty if the settings do not say."""
    accuracy = _section(manifest, "accuracy")
    least, most = accuracy.get("min_cosine"), accuracy.get("max_drop")
    if not (isinstance(least, int | float) and isinstance(most, int | float)):
        return ""
    cosine = f"every output has a cosine of at least {least:.12g}"
    if not report.accuracy:
        return f"The gate: {cosine}."
    return f"The gate: {cosine}, and the metric drops by at most {most:.12g} percentage points."


def list_kept(report: Report, manifest: Manifest) -> tuple[tuple[str, tuple[Kept, ...]], ...]:
    """Returns what does not run as asked, or not in FP16, by the kind of decision and then by reason."""
    runs = manifest.layers
    fallen = [
        (
            f"asked {format_asked(item.asked)}, runs as {format_dtype(item.runs_as)}: {item.reason}",
            item.node,
            item.op_type,
        )
        for item in report.engine.fallbacks
    ]
    never = [(item.reason, item.name, _kind(item.op_type, runs.get(item.name))) for item in report.kept_float]
    fp32 = [(item.reason, item.name, "") for item in report.kept_fp32]
    titles = (
        ("Quantized, but not run as asked", fallen),
        ("Not quantized", never),
        ("Kept in FP32", fp32),
    )
    return tuple((title, _by_reason(nodes)) for title, nodes in titles if nodes)


def list_layers_by_format(report: Report) -> tuple[Kept, ...]:
    """Returns the layers of each format that `--formats` chose; none where all have one."""
    auto = report.auto
    if auto is None or not auto.layers:
        return ()
    groups = [(form, share) for form, share in auto.formats.items() if form in {*auto.layers.values()}]
    return tuple(
        Kept(
            f"in {form.upper()}, {share:.1%} of the multiply-accumulates",
            tuple((name, "") for name, own in auto.layers.items() if own == form),
        )
        for form, share in groups
    )


def format_search(auto: AutoReport) -> str:
    """Returns what the search for formats found, and what the layers then cost."""
    if auto.cost is None or auto.cost_before is None:
        return auto.outcome
    return (
        f"{auto.outcome}. By the data sheets of the GPU (not measured) the layers that could be chosen cost "
        f"{auto.cost:.0%} of all layers in FP16; in their cheapest formats {auto.cost_before:.0%}."
    )


def _kind(op_type: str, runs_as: str | None) -> str:
    return op_type if runs_as is None else f"{op_type}, runs as {format_dtype(runs_as)}"


def _by_reason(nodes: Sequence[tuple[str, str, str]]) -> tuple[Kept, ...]:
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for reason, name, kind in nodes:
        groups[reason].append((name, kind))
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    return tuple(Kept(reason, tuple(names)) for reason, names in largest)


def list_kernels(manifest: Manifest) -> str:
    """Returns how many layers with weights run as what, most first: `35 INT8, 19 FP16`."""
    counts = Counter(map(format_dtype, manifest.layers.values()))
    return ", ".join(f"{count} {dtype}" for dtype, count in counts.most_common())


def format_coverage(report: Report) -> tuple[Share, ...]:
    """Returns how many layers with weights run as asked, fell back, and were not quantized."""
    engine = report.engine
    counts = {
        **{f"run {format_asked(name)}": count for name, count in engine.layers_realized.items()},
        "quantized, but not run as asked": engine.layers_quantized - engine.num_realized,
        "not quantized": len(report.kept_float),
    }
    total = sum(counts.values())
    if not total:
        return ()
    return tuple(Share(name, str(count), round(100 * count / total, 2)) for name, count in counts.items())


def sizes_of(report: Report) -> tuple[Share, ...]:
    """Returns the files with their sizes against the float model, the largest as the longest bar."""
    sizes = report.sizes_bytes
    most = max(sizes.values(), default=0) or 1
    given = sizes.get("model", 0)
    rows = []
    for name, count in sizes.items():
        ratio = f" ({_ratio(count / given)})" if given and name != "model" else ""
        title = f"{Path(report.model).name} (given)" if name == "model" else name
        rows.append(Share(title, f"{format_bytes(count)}{ratio}", round(100 * count / most, 1)))
    return tuple(rows)


def _ratio(value: float) -> str:
    return f"{value:.0%}" if value < 2 else f"{value:.1f} times"


def list_timings(report: Report) -> tuple[Share, ...]:
    """Returns the seconds of each stage."""
    most = max(report.timings_s.values(), default=0.0) or 1.0
    return tuple(
        Share(name, format_seconds(value), round(100 * value / most, 1))
        for name, value in report.timings_s.items()
    )


def list_commands(report: Report, manifest: Manifest) -> tuple[Command, ...]:
    """Returns the commands that make this again, and what helps where the gate failed."""
    own = manifest.commands
    names = sorted(own, key=lambda name: name != "trtq")
    commands = [Command(_COMMANDS.get(name, name), fold_command(str(own[name]))) for name in names]
    is_quantized = report.precision in LAYER_FORMATS
    if "accuracy" in report.failed_gates and is_quantized and "trtq" in own and report.auto is None:
        commands.append(
            Command(
                "The same, with the most harmful layers kept in float", fold_command(f"{own['trtq']} --auto")
            )
        )
    return tuple(commands)


def fold_command(command: str) -> str:
    """Returns a command line, if long with a line for each option; a shell takes it all the same."""
    if len(command) <= _LONG_COMMAND:
        return command
    try:
        words = [shlex.quote(word) for word in shlex.split(command)]
    except ValueError:  # it was not written by us
        return command
    return words[0] + "".join((" \\\n  " if word.startswith("--") else " ") + word for word in words[1:])


def list_preprocess(manifest: Manifest) -> str:
    """Returns how pictures are prepared, as model.toml says it, since no option does; empty by default."""
    found = _section(manifest, "preprocess")
    defaults = to_plain(Preprocess())
    changed = [f"{key} = {json.dumps(value)}" for key, value in found.items() if value != defaults.get(key)]
    return "\n".join(["[preprocess]", *changed]) if changed else ""


def _section(manifest: Manifest, name: str) -> Mapping[str, object]:
    """Returns a section of the model's settings, as JSON has it."""
    model = to_plain(manifest.settings).get("model")
    found = model.get(name) if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def list_facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yields what stands under the name: terms and what they are here."""
    yield "built with", report.backend
    if report.engine.targets:
        yield "compute capability", ", ".join(report.engine.targets)
    if report.engine.layers_quantized:
        yield "quantization", report.engine.quantization
    if report.precision != "fp16":
        yield "the rest is", report.high_precision.upper().replace("AS IT IS", "as it is")
    if (calibration := report.calibration) is not None:
        yield "calibrated", f"{calibration.samples} samples, {calibration.method}"
    if (speed := report.speed) is not None and speed.ratio is not None:
        yield "speed", format_speed(speed)
    for number, profiles in enumerate(every := list_profiles(report.engine.profiles)):
        for name, profile in profiles.items():
            shapes = " / ".join(map(format_shape, (profile.min, profile.opt, profile.max)))
            which = f", profile {number}" if len(every) > 1 else ""
            yield f"shapes of {name}{which}", f"{shapes} (min / opt / max)"
