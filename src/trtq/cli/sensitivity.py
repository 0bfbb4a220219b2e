"""`trtq sensitivity`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from trtq.cli import options, scales
from trtq.cli.chart import Bar, draw_bars
from trtq.cli.console import ConsoleWatcher, open_console
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.files import check_output, refuse_input, write_atomically
from trtq.pipeline.judge.evaluate import find_labels
from trtq.pipeline.judge.score import format_score, name_metric
from trtq.pipeline.judge.sensitivity import Effect, LayerSensitivity, Sensitivity, to_json
from trtq.pipeline.sensitivity import sensitivity

_MOST_ROWS = 20
_BAR_WIDTH = 20
_WITHOUT_LABELS = ("sqnr", "cosine")
_RANKS = (*_WITHOUT_LABELS, "accuracy")


@click.command("sensitivity")
@options.model_argument
@options.spec_option
@options.calibration_options
@options.repair_option
@scales.weight_granularity_option
@scales.activations_option
@options.layer_options
@click.option(
    "--high-precision",
    type=click.Choice(["auto", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="Precision of what is not quantized: whether scales are rounded to FP16.",
)
@options.evaluation_options
@click.option(
    "--metric",
    metavar="NAME|SCRIPT:FUNCTION",
    default="sqnr",
    show_default=True,
    help="What the layers are ranked by: sqnr, cosine, accuracy, top-1, top-5 (with --labels), or "
    "script.py:function.",
)
@click.option(
    "--chart", type=click.Path(path_type=Path), help="Write a bar chart of all layers to this .svg."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="JSON file.  [default: MODEL.sensitivity.json]"
)
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Measure what each quantized layer costs in accuracy: alone, and kept float among all the others.

    One session measures all. What is measured is written down every few layers: the same command goes on
    after an interruption, and shows at once what is complete.

    \b
      trtq sensitivity model.onnx --calib-data calib.npz
      trtq sensitivity model.onnx --eval-data eval.npz --labels labels --metric accuracy --chart layers.svg
    """
    rank = given.pop("metric")
    spec = options.spec_from(model, {**given, "metric": None if rank in _RANKS else rank})
    output = given["output"] or model.with_suffix(".sensitivity.json")
    if given["chart"] is not None and given["chart"].suffix != ".svg":
        raise UsageError(f"the chart is an SVG file, {given['chart']} is not named .svg")
    for file in (output, given["chart"]):
        if file is not None:
            refuse_input(file, model, given["spec"], spec.calibration.data)
            check_output(file)
    if rank not in _WITHOUT_LABELS and find_labels(spec.evaluation, spec.accuracy.metric) is None:
        raise UsageError(f"--metric {rank} needs --labels; without labels take sqnr or cosine")
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        result = sensitivity(
            model,
            spec=spec,
            target=options.target_from(given),
            output=output,
            random_data=given["random_data"],
            watcher=watcher,
        )
    loss = _loss_by(rank, result)
    if given["chart"] is not None:
        write_atomically(given["chart"], _chart(result, loss, rank))
    if given["as_json"]:
        sys.stdout.write(to_json(result).decode())
    elif not given["quiet"]:
        _print(open_console(), result, loss, verbose=given["verbose"])
        open_console().print(f"written to {output}", soft_wrap=True)


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
    rows = create_table(
        "layer", "type", "", "MACs", "alone dB", "cosine", "without dB", *scores, numbers=4 + len(scores)
    )
    ranked = _ranked(result, loss)
    longest = max((value for layer in ranked if math.isfinite(value := loss(layer.alone))), default=0.0)
    count = len(ranked) if verbose else _MOST_ROWS
    for layer in ranked[:count]:
        rows.add_row(
            layer.name,
            layer.op_type,
            _bar(loss(layer.alone), longest),
            f"{layer.macs / max(result.total_macs, 1):.1%}",
            _decibels(layer.alone.sqnr_db),
            f"{layer.alone.cosine:.5f}",
            _decibels(layer.without.sqnr_db),
            *(_score(effect, result.metric) for effect in (layer.alone, layer.without) if has_score),
        )
    if len(ranked) > count:
        rows.caption = f"and {len(ranked) - count} less sensitive ones (-v shows them)"
    console.print(rows)
    every = result.all_quantized
    if every is not None:
        score = f", {name_metric(result.metric)} {_score(every, result.metric)}" if has_score else ""
        console.print(
            f"all quantized: SQNR {_decibels(every.sqnr_db)} dB, cosine {every.cosine:.5f}{score}"
            + (
                f" (float {format_score(result.float_score, result.metric)})"
                if result.float_score is not None
                else ""
            )
        )
    console.print(
        f"alone: only this layer quantized; without: all but this one\n"
        f"on {result.num_samples} samples of {result.data}",
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
            f"{_decibels(layer.alone.sqnr_db)} dB"
            if rank in ("sqnr", "cosine")
            else f"{loss(layer.alone):.2f}",
        )
        for layer in _ranked(result, loss)
    ]
    legend = (f"quantized alone: {unit}", "kept float among all the others: how much of it goes")
    return draw_bars(f"Sensitivity of {Path(result.model).name}, {result.num_layers} layers", legend, bars)


def _bar(value: float, longest: float) -> str:
    share = 1.0 if value == math.inf else max(value, 0.0) / longest if longest else 0.0
    return "\N{FULL BLOCK}" * round(_BAR_WIDTH * min(share, 1.0))


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else "broken" if not math.isfinite(value) else f"{value:.1f}"


def _score(effect: Effect, metric: str) -> str:
    return "-" if effect.score is None else format_score(effect.score, metric)
