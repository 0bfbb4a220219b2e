"""`trtq sensitivity`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from trtq.calibrators import Method
from trtq.cli import options, targets
from trtq.cli.chart import Bar, draw_bars
from trtq.cli.console import ConsoleWatcher, open_console, print_answer
from trtq.cli.help import GroupedCommand
from trtq.cli.options import Given
from trtq.cli.sharing import find_workers, workers_options
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.files import check_outputs, resolve_name, write_atomically
from trtq.models.spec import (
    CalibrationSpec,
    EvaluationSpec,
    LayerSpec,
    ModelSpec,
    OperatorSpec,
    QuantizationSpec,
)
from trtq.numbers import format_count, format_decibels
from trtq.pipeline.deliver.integrity import read_intact_manifest
from trtq.pipeline.deliver.settings import read_settings
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.pipeline.judge.evaluate import find_labels
from trtq.pipeline.judge.score import format_score, name_metric
from trtq.pipeline.judge.sensitivity import Effect, LayerSensitivity, Sensitivity, to_json
from trtq.pipeline.sensitivity import sensitivity

_MOST_ROWS = 20
_BAR_WIDTH = 20
_WITHOUT_LABELS = ("sqnr", "cosine")
_RANKS = (*_WITHOUT_LABELS, "accuracy")


@click.command("sensitivity", cls=GroupedCommand)
@options.model_argument
@options.spec_option
@options.take_calibration()
@options.take_pictures()
@options.take(OperatorSpec)
@options.take(QuantizationSpec)
@options.take(LayerSpec, "skip", "force")
@options.take(Target, "op_types")
@targets.fp8_option
@options.take_one(
    Target,
    "high_precision",
    kind=click.Choice(["auto", "fp16", "fp32"]),
    text="Precision of everything that is not quantized; fp16 rounds the scales to FP16.  [default: auto]",
)
@options.take(EvaluationSpec, "data", "labels", "output", "samples")
@click.option(
    "--metric",
    metavar="NAME|SCRIPT:FUNCTION",
    default="sqnr",
    show_default=True,
    help="Metric to rank the layers by: sqnr, cosine, script.py:function, or, with --labels, accuracy, "
    "top-1 or top-5.",
)
@options.take_path("--chart", text="Write a bar chart of all layers to this .svg file.")
@options.take_output("JSON file.  [default: MODEL.sensitivity.json]")
@workers_options
@options.json_option
@options.talk_options
@options.pass_given
def command(
    given: Given,
    model: Path,
    metric: str,
    chart: Path | None,
    output: Path | None,
    workers: str,
    worker_cpus: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure the accuracy cost of each quantized layer.

    Each layer is measured twice: as the only quantized layer, and as the only layer in float. Given a
    build folder, its ranges, repairs and data are used. Results are saved every few seconds, so running
    the command again resumes an interrupted one.

    \b
      trtq sensitivity model.onnx --calib-data calib.npz
      trtq sensitivity model.trtq
      trtq sensitivity model.onnx --eval-data eval.npz --labels labels --metric accuracy --chart layers.svg
    """
    spec = given.read_spec(model, _read_build(given, model) if model.is_dir() else None)
    if metric not in _RANKS:
        spec = replace(spec, accuracy=replace(spec.accuracy, metric=metric))
    output = output or resolve_name(model).with_suffix(".sensitivity.json")
    if chart is not None and chart.suffix != ".svg":
        raise UsageError(f"the chart is an SVG file, {chart} is not named .svg")
    files = [model] if model.is_dir() else list_model_files(model, output, chart)
    check_outputs({"--output": output, "--chart": chart}, *files, *spec.sources)
    if metric not in _WITHOUT_LABELS and find_labels(spec.evaluation, spec.accuracy.metric) is None:
        raise UsageError(f"--metric {metric} needs --labels; without labels take sqnr or cosine")
    with ConsoleWatcher(quiet=quiet) as watcher:
        result = sensitivity(
            model,
            spec=spec,
            target=targets.read_target(given),
            output=output,
            random_data=given.random_data,
            watcher=watcher,
            workers=find_workers(workers, worker_cpus),
        )
    loss = _loss_by(metric, result)
    if chart is not None:
        write_atomically(chart, _chart(result, loss, metric))
    if as_json:
        print_answer(to_json(result).decode())
    elif not quiet:
        _print(open_console(), result, loss, verbose=verbose)
        open_console().print(f"written to {output}", soft_wrap=True)


def _read_build(given: Given, folder: Path) -> ModelSpec:
    """Returns the settings of a build, of which those that made it cannot be changed any more."""
    made = (*given.find(Method), *given.find(QuantizationSpec), *given.find(LayerSpec), *given.find(Target))
    made += (*given.find(CalibrationSpec, "method", "device", "memory_bytes"),)
    if made:
        raise UsageError(
            f"{made[0].option} has no effect with the build folder {folder}: its own layers and ranges "
            "are measured; give the model instead"
        )
    return read_settings(read_intact_manifest(folder), folder)[0]


def _loss_by(rank: str, result: Sensitivity) -> Callable[[Effect], float]:
    """Returns what is lost by an effect, in per cent; infinite if an output is broken."""
    if rank == "sqnr":
        return lambda effect: _known(100 * 10 ** (-effect.sqnr_db / 20))
    if rank == "cosine":
        return lambda effect: _known(100 * (1 - effect.cosine))
    best = result.float_score
    assert best is not None  # there are labels, or a metric that needs none
    return lambda effect: 100 * (best - effect.score) if effect.score is not None else math.inf


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _ranked(result: Sensitivity, loss: Callable[[Effect], float]) -> list[LayerSensitivity]:
    return sorted(result.layers, key=lambda layer: -loss(layer.alone))


def _print(console: Console, result: Sensitivity, loss: Callable[[Effect], float], *, verbose: bool) -> None:
    has_score = result.float_score is not None
    scores = (name_metric(result.metric), "without") if has_score else ()
    headers = ("layer", "type", "", "MACs", "alone dB", "cosine", "without dB", *scores)
    drops = ("", *scores[1:], "without dB", "MACs", "cosine")
    rows = create_table(*headers, numbers=4 + len(scores), drops=drops)
    ranked = _ranked(result, loss)
    longest = max((value for layer in ranked if math.isfinite(value := loss(layer.alone))), default=0.0)
    count = len(ranked) if verbose else _MOST_ROWS
    for layer in ranked[:count]:
        rows.add_row(
            layer.name,
            layer.op_type,
            _bar(loss(layer.alone), longest),
            f"{layer.macs / max(result.total_macs, 1):.1%}",
            format_decibels(layer.alone.sqnr_db),
            f"{layer.alone.cosine:.5f}",
            format_decibels(layer.without.sqnr_db),
            *(_score(effect, result.metric) for effect in (layer.alone, layer.without) if has_score),
        )
    if len(ranked) > count:
        rows.caption = f"and {len(ranked) - count} less sensitive ones (-v shows them)"
    console.print(rows)
    every = result.all_quantized
    if every is not None:
        score = ""
        if result.float_score is not None:
            score = f", {name_metric(result.metric)} {_score(every, result.metric)}"
            score += f" (float {format_score(result.float_score, result.metric)})"
        error = f"SQNR {format_decibels(every.sqnr_db)} dB, cosine {every.cosine:.5f}"
        console.print(f"all quantized: {error}{score}")
    console.print(
        f"alone: only this layer quantized; without: all but this one\n"
        f"on {format_count(result.num_samples, 'sample')} of {result.data}",
        soft_wrap=True,
    )


def _chart(result: Sensitivity, loss: Callable[[Effect], float], rank: str) -> bytes:
    unit = {"sqnr": "error of the outputs, % of their size", "cosine": "1 - cosine, %"}.get(
        rank, f"{name_metric(result.metric)} lost, points"
    )
    every = loss(result.all_quantized) if result.all_quantized is not None else 0.0
    finite = [value for layer in result.layers if math.isfinite(value := loss(layer.alone))]
    most = max((*finite, every if math.isfinite(every) else 0.0), default=0.0)
    bars = [
        Bar(
            layer.name,
            min(max(loss(layer.alone), 0.0), most),
            min(max(every - loss(layer.without), 0.0) if math.isfinite(every) else 0.0, most),
            f"{format_decibels(layer.alone.sqnr_db)} dB"
            if rank in ("sqnr", "cosine")
            else f"{loss(layer.alone):.2f}",
        )
        for layer in _ranked(result, loss)
    ]
    legend = (f"quantized alone: {unit}", "kept in float, all others quantized: error removed")
    return draw_bars(f"Sensitivity of {Path(result.model).name}, {result.num_layers} layers", legend, bars)


def _bar(value: float, longest: float) -> str:
    share = 1.0 if value == math.inf else max(value, 0.0) / longest if longest else 0.0
    return "\N{FULL BLOCK}" * round(_BAR_WIDTH * min(share, 1.0))


def _score(effect: Effect, metric: str) -> str:
    return "-" if effect.score is None else format_score(effect.score, metric)
