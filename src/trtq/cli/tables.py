"""Results as tables in the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trtq.cli.fitting import FittingTable
from trtq.numbers import format_bytes, format_count, format_decibels, format_seconds, format_shape
from trtq.pipeline.deliver.advice import group_reasons
from trtq.pipeline.engine.profiles import list_profiles
from trtq.pipeline.formats import LAYER_FORMATS
from trtq.pipeline.judge.score import format_score, name_metric
from trtq.pipeline.judge.speed import describe_speed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trtq.kept import Fallback, KeptFp32, KeptNode
    from trtq.pipeline.deliver.report import CalibrationReport, Report, WeightsReport
    from trtq.pipeline.judge.speed import SpeedVerdict
    from trtq.records import LogitsComparison, OutputComparison, Repairs

_STYLES = {"pass": "bold green", "fail": "bold red", "unverified": "bold yellow"}
_MOST_ROWS = 12
_MOST_NAMED = 8


def create_table(*headers: str, numbers: int = 0, drops: Sequence[str] | None = None) -> Table:
    """Returns an empty table.

    Args:
        headers: Of the columns.
        numbers: How many of the last columns are numbers.
        drops: Columns that a narrow terminal leaves out, in this order; None: numbers but the first, from the
            last on.
    """
    result = FittingTable(box=box.SIMPLE_HEAD, pad_edge=False)
    result.drops = headers[: len(headers) - numbers : -1] if drops is None else drops
    for index, header in enumerate(headers):
        right = index >= len(headers) - numbers
        result.add_column(header, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return result


def print_report(
    console: Console,
    report: Report,
    *,
    verbose: bool,
    folder: Path | None = None,
    engine: Path | None = None,
) -> None:
    """Prints a build's report.

    Args:
        console: Where to.
        report: Of the build.
        verbose: Whether all is to be told.
        folder: Of the build: then with its layers, if all is told.
        engine: A file that has a copy of the engine, unless the gate failed.
    """
    rest = {"fp16": " + FP16", "fp32": " + FP32"}.get(report.high_precision, "")
    title = report.precision.upper() + (rest if report.precision in LAYER_FORMATS else "")
    console.print(Text.assemble((Path(report.model).name, "bold"), f"  {title}  {report.backend}"))
    if report.accuracy:
        print_accuracy(console, report.accuracy, report.evaluated_samples, report.metric)
    if report.top5:
        print_accuracy(console, report.top5, report.evaluated_samples, "top-5")
    if report.comparison:
        console.print(create_comparison_table(report.comparison))
    print_logits(console, report.logits)
    if report.evaluated_samples:
        data = f"compared on {format_count(report.evaluated_samples, 'sample')} of {report.evaluation_data}"
        console.print(data, soft_wrap=True)
    _print_engine(console, report)
    if report.weights is not None:
        _print_weights(console, report.weights, verbose)
    if (held := report.kv_cache) is not None:
        pairs = format_count(len(held.scales), "input")
        console.print(f"the KV cache inputs and outputs are {held.format.upper()} ({pairs})")
    if report.calibration is not None:
        _print_calibration(console, report.calibration)
    if report.repairs is not None:
        print_repairs(console, report.repairs, verbose=verbose)
    _print_kept(console, report, verbose)
    _print_auto(console, report, verbose=verbose)
    if verbose:
        way = f"{report.engine.quantization} quantization: {report.engine.quantization_reason}"
        _print_lines(console, way, *report.notes, *report.engine.warnings)
        if folder is not None:
            _print_layers(console, folder)
    _print_cost(console, report)
    if report.speed is not None:
        print_speed(console, report.speed)
    if report.reused:
        console.print(f"reused from the earlier build: {', '.join(report.reused)}")
    console.print(f"written to {report.output}", soft_wrap=True)
    if engine is not None and report.verdict != "fail":
        console.print(f"engine written to {engine}", soft_wrap=True)
    console.print(format_verdict(report))


def format_verdict(report: Report) -> Text:
    """Returns the verdict; if it is a pass, with how much of the work is on codes: little is no plain one."""
    if report.verdict == "pass" and report.quantized_macs is not None:
        share = f"{report.quantized_macs:.1%} of the MACs run {report.runs_in}"
        if report.is_mostly_float:
            return Text.assemble(("PASS", _STYLES["unverified"]), f", but only {share}")
        return Text.assemble(("PASS", _STYLES["pass"]), f"  {share}")
    return format_outcome(report.verdict, report.reasons)


def format_outcome(outcome: str, reasons: Sequence[str]) -> Text:
    """Returns "pass", "fail" or "unverified"; the last with the reasons, which no error tells."""
    text = Text(outcome.upper(), style=_STYLES[outcome])
    if outcome == "unverified":
        text.append(f": {'; '.join(group_reasons(reasons))}", style="not bold")
    return text


def create_comparison_table(outputs: Sequence[OutputComparison]) -> Table:
    """Returns the comparisons as a table."""
    headers = ("model", "against", "output", "cosine", "SQNR dB", "max abs", "mean abs", "agree")
    result = create_table(*headers, numbers=5)
    for item in outputs[:_MOST_ROWS]:
        result.add_row(
            item.candidate,
            item.reference,
            item.name,
            _number(item.cosine, "{:.5f}"),
            format_decibels(item.sqnr_db),
            _number(item.max_abs, "{:.3g}"),
            _number(item.mean_abs, "{:.3g}"),
            "-" if item.top1_agreement is None else f"{item.top1_agreement:.2%}",
        )
    if len(outputs) > _MOST_ROWS:
        result.caption = f"and {len(outputs) - _MOST_ROWS} more in the report"
    return result


def _print_layers(console: Console, folder: Path) -> None:
    """Prints the quantized layers of a build folder, the noisiest first, with the methods' ranges."""
    # Late: no other table needs the page, which is a good part of this package.
    from trtq.pipeline.deliver.html.page_data import read_page_data
    from trtq.pipeline.deliver.html.rows import list_layer_rows
    from trtq.pipeline.deliver.manifest import read_manifest

    seen, manifest = read_page_data(folder), read_manifest(folder)
    layers = list_layer_rows(seen, manifest, None)
    if not layers:
        return
    names = ("used", *seen.methods) if seen.tensors else ()
    rows = create_table("layer", "type", "runs as", "input dB", "weight dB", *names, numbers=2 + len(names))
    for layer in layers[:_MOST_ROWS]:
        read = [] if layer.tensor is None else [seen.tensors[layer.tensor]]
        clips = [clip for tensor in read for clip in (tensor.used, *tensor.methods.values())]
        levels = ("-" if level.db is None else format_decibels(level.db) for level in layer.levels)
        amaxes = (f"{clip.amax:.4g}" for clip in clips)
        rows.add_row(layer.name, layer.op_type, layer.runs_as or "-", *levels, *amaxes)
    if len(layers) > _MOST_ROWS:
        rows.caption = f"and {len(layers) - _MOST_ROWS} more in report.html"
    console.print(rows)
    console.print(
        Text("dB: SQNR of what the layer reads, predicted; then the amax that is used, and each method's"),
        style="dim",
        soft_wrap=True,
    )


def print_logits(console: Console, logits: Sequence[LogitsComparison]) -> None:
    """Prints perplexity, divergence and agreement of each pair in one line."""
    for item in logits:
        agreement = f"  top 1 agrees {item.top1:.2%}, top 5 {item.top5:.2%}" if item.spans else ""
        console.print(
            f"{item.output}  {_describe_perplexity(item)}  KL divergence {item.kl_nats:.3g} nats{agreement}",
            soft_wrap=True,
        )


def _describe_perplexity(item: LogitsComparison) -> str:
    """Returns the perplexity of both models; only their names if the data has no next token."""
    if math.isnan(item.perplexity) and math.isnan(item.reference_perplexity):
        return f"{item.candidate} against {item.reference}"
    ours, theirs = (_number(value, "{:.4g}") for value in (item.perplexity, item.reference_perplexity))
    return f"perplexity {ours} ({item.candidate}), {theirs} ({item.reference})"


def print_accuracy(
    console: Console, accuracy: Mapping[str, float], num_samples: int, metric: str = "top-1"
) -> None:
    """Prints what a metric says of each model in one line."""
    scores = "   ".join(f"{name.upper()} {format_score(score, metric)}" for name, score in accuracy.items())
    console.print(Text.assemble(f"{name_metric(metric)}  ", (scores, "bold"), f"   on {num_samples} samples"))


def _print_calibration(console: Console, calibration: CalibrationReport) -> None:
    seconds = "" if calibration.seconds is None else f" in {format_seconds(calibration.seconds)}"
    made_up = ("  RANDOM DATA", "bold red") if calibration.random else ""
    text = f"calibrated on {format_count(calibration.samples, 'sample')} by {calibration.method}{seconds}"
    console.print(Text.assemble(text, made_up))


def _print_lines(console: Console, *lines: str, style: str = "dim") -> None:
    for line in lines:
        console.print(Text(f"  {line}", style=style), soft_wrap=True)


def _print_engine(console: Console, report: Report) -> None:
    engine = report.engine
    covered = engine.coverage
    if engine.quantization == "implicit":
        covered = covered.replace("quantized", "implicitly quantized", 1)
    if not covered and report.is_quantized:
        covered = "no layer is quantized"
    console.print(
        f"{engine.path}  {format_bytes(engine.bytes)}"
        + (f"  {covered}" if covered else "")
        + (f"  for {', '.join(engine.targets)}" if engine.targets else "")
    )
    for number, profiles in enumerate(every := list_profiles(engine.profiles)):
        which = f" {number}" if len(every) > 1 else ""
        for name, profile in profiles.items():
            shapes = (f"{kind} {format_shape(getattr(profile, kind))}" for kind in ("min", "opt", "max"))
            console.print(f"  profile{which} of {name}: {'  '.join(shapes)}")
    _print_lines(console, *_list_fallbacks(engine.fallbacks), style="yellow")


def _list_fallbacks(fallbacks: Sequence[Fallback]) -> list[str]:
    """Returns a line for each reason, with the layers that have it."""
    groups: dict[str, list[str]] = {}
    for item in fallbacks:
        layers = groups.setdefault(f"{item.runs_as}: {item.reason}", [])
        layers.append(f"{item.node} ({item.op_type})")
    lines = []
    for reason, layers in groups.items():
        more = f" and {len(layers) - _MOST_NAMED} more" if len(layers) > _MOST_NAMED else ""
        verb = "runs" if len(layers) == 1 else "run"
        lines.append(f"{', '.join(layers[:_MOST_NAMED])}{more} {verb} as {reason}")
    return lines


def _print_weights(console: Console, weights: WeightsReport, verbose: bool) -> None:
    blocks = f", blocks of {weights.block_size}" if weights.block_size is not None else ""
    if weights.smallest_block != weights.block_size and weights.smallest_block is not None:
        blocks = f", blocks of {weights.smallest_block} to {weights.block_size}"
    console.print(
        f"{format_count(weights.num_weights, 'weight')} in {weights.formats.upper()} "
        f"({weights.method}{blocks}): "
        f"{format_bytes(weights.bytes_float)} in FP32, now {format_bytes(weights.bytes_quantized)}, "
        f"{weights.bits_per_weight:.2f} bits a weight"
    )
    if verbose:
        _print_lines(console, weights.gain)


def _print_cost(console: Console, report: Report) -> None:
    """Prints the sizes of the files and the seconds of the stages, a line each."""
    sizes = dict(report.sizes_bytes)
    sizes = {Path(report.model).name: sizes.pop("model", 0), **sizes} if sizes else {}
    shown_sizes = [f"{name} {format_bytes(count)}" for name, count in sizes.items()]
    times = [f"{name} {format_seconds(seconds)}" for name, seconds in report.timings_s.items()]
    for title, items in (("sizes", shown_sizes), ("times", times)):
        if items:
            console.print(f"{title}  {'  '.join(items)}", soft_wrap=True)


def print_speed(console: Console, item: SpeedVerdict) -> None:
    """Prints what the speed gate says, in a line."""
    verdict = (item.verdict.upper(), _STYLES[item.verdict])
    told = item.reasons[0] if item.reasons else describe_speed(item)
    console.print(Text.assemble("speed: ", verdict, f": {told}"), soft_wrap=True)


def print_repairs(console: Console, repairs: Repairs, *, verbose: bool) -> None:
    """Prints what the repairs gained, and with `verbose` all that was tried."""
    done = ", ".join(repairs.applied) or "none pays"
    method = repairs.method.partition("(")[0]
    console.print(
        f"repairs: {done} (ranges by {method}); {repairs.before_db:.1f} -> {repairs.after_db:.1f} dB SQNR on "
        f"{format_count(repairs.num_samples, 'held-out calibration sample')}",
        soft_wrap=True,
    )
    for item in repairs.tried if verbose else ():
        mark = "applied" if item.applied else "not applied"
        _print_lines(console, f"{item.name}: {item.gain_db:+.1f} dB on {item.num_samples} samples, {mark}")


def _print_kept(console: Console, report: Report, verbose: bool) -> None:
    groups = (
        ("came quantized", report.given),
        ("not quantized", report.kept_float),
        ("kept FP32", report.kept_fp32),
    )
    for title, nodes in groups:
        if not nodes:
            continue
        console.print(
            f"{title}: {format_count(len(nodes), 'node')}" + ("" if verbose else " (-v lists them)")
        )
        _print_lines(console, *(_group_by_reason(nodes) if verbose else ()))


def _group_by_reason(nodes: Sequence[KeptNode] | Sequence[KeptFp32]) -> list[str]:
    """Returns a line for each reason, with all nodes that have it."""
    groups: dict[str, list[str]] = {}
    for item in nodes:
        groups.setdefault(item.reason, []).append(item.name)
    return [
        f"{', '.join(names)}: {reason}"
        if len(names) == 1
        else f"{len(names)} nodes, {', '.join(names)}: {reason}"
        for reason, names in groups.items()
    ]


def _print_auto(console: Console, report: Report, *, verbose: bool) -> None:
    auto = report.auto
    if auto is None:
        return
    console.print(Text(f"{auto.option}: {auto.outcome}"), soft_wrap=True)
    options = [f"--calib-method {auto.method}"] if auto.method else []
    options += [f"--skip {shlex.quote(pattern)}" for pattern in auto.skip]
    if options and not auto.layers:
        _print_lines(console, f"to reproduce: {' '.join(options)}")
    for form, share in auto.formats.items() if auto.layers else ():
        names = [name for name, own in auto.layers.items() if own == form]
        if form != "fp16" and names:
            _print_lines(
                console, f"{form.upper()}: {format_count(len(names), 'layer')}, {share:.1%} of the MACs"
            )
            _print_lines(console, *(f"  {name}" for name in names if verbose))
    if auto.cost is not None and auto.cost_before is not None:
        _print_lines(
            console,
            f"estimated cost {auto.cost:.0%} of all layers in FP16, {auto.cost_before:.0%} with every layer "
            f"in its cheapest format; not measured",
        )


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "nan"
    return "exact" if value == math.inf else form.format(value)
