"""`trtq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.ci import ci_options, take_ci_files
from trtq.cli.console import ConsoleWatcher, echo, open_console, print_answer
from trtq.cli.help import GroupedCommand
from trtq.cli.markdown import write_benchmark
from trtq.cli.options import Given
from trtq.cli.tables import create_table, print_speed
from trtq.cli.verdicts import list_speed_cases
from trtq.errors import GateError, UsageError
from trtq.files import write_atomically
from trtq.models.operators import use_operators
from trtq.models.spec import OperatorSpec
from trtq.numbers import format_bytes, format_count, format_shape
from trtq.pipeline.bench.benchmark import Benchmark, bench, to_json
from trtq.pipeline.bench.runnables import RunOptions
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.engine.profiles import parse_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from trtq.pipeline.bench.layers import LayerTable
    from trtq.pipeline.bench.machine import Conditions, Machine
    from trtq.pipeline.judge.speed import LayerTime

_MOST_COSTLY, _MOST_GAINING = 20, 10
_TIMES = ("float_ms", "quantized_ms", "conversions_ms")


@click.command("bench", cls=GroupedCommand)
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--batch", type=int, help="Batch size, for dynamic first axes.  [default: the engine's opt shape, or 1]"
)
@click.option(
    "--shapes", multiple=True, metavar="NAME:DIMS", help="Full shapes of inputs, such as name:1x3x224x224."
)
@click.option(
    "--data",
    metavar="DATA",
    help="Run on the first samples of this data, in any format of --calib-data.  [default: the calibration "
    "data, or random numbers]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where ONNX models run; auto: on the CPU, and also on the GPU if onnxruntime-gpu is installed.",
)
@click.option(
    "--threads", type=int, default=0, help="Number of ONNX Runtime threads.  [default: one per core]"
)
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=True,
    show_default=True,
    help="Run the engine as a CUDA graph, if it can be captured.",
)
@click.option(
    "--rounds",
    type=int,
    default=10,
    show_default=True,
    help="Number of rounds; every model runs once in each.",
)
@click.option(
    "--seconds",
    type=float,
    default=5.0,
    show_default=True,
    help="Seconds to measure each model, over all rounds.",
)
@click.option(
    "--warmup",
    type=float,
    default=1.0,
    show_default=True,
    help="Seconds of warm-up for each model.",
)
@click.option(
    "--layers",
    "--dumpProfile",
    "layers",
    is_flag=True,
    help="Also show the time of each layer, float and quantized, the largest slowdown first.",
)
@click.option(
    "--min-speedup",
    type=float,
    help="Exit with code 3 if the speed-up over the float model or engine is below this, beyond "
    "measurement noise. If the measurement cannot decide, the verdict is unverified and the exit code "
    "0.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result to this file as JSON.",
)
@options.take(OperatorSpec)
@ci_options
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
@options.pass_given
def command(settings: Given, /, targets: tuple[Path, ...], **given: Any) -> None:
    """Measure the speed of models and engines side by side.

    A target is a build folder, an .onnx or an .engine file. From a folder, everything that can run here
    is measured: the float model, the FP16 and INT8 models, and the engine if its GPU is here. All of them
    take turns, so that background load affects all alike. Each runs in its own process, so that its
    memory can be measured.

    \b
      trtq bench model.trtq
      trtq bench model.onnx other.onnx --batch 8 --threads 1 -o bench.json
      trtq bench model.fp16.trtq model.trtq --no-cuda-graph
      trtq bench model.trtq --layers
      trtq bench model.trtq --min-speedup 1.05
    """
    output: Path | None = given["output"]
    files = take_ci_files(("bench", *targets), given)
    files.check(*targets, given["data"], output=output)
    use_operators(settings.apply(OperatorSpec()))
    if len(set(targets)) != len(targets):
        raise UsageError("a target is given twice; give each once")
    chosen = RunOptions(
        device=given["device"],
        num_threads=given["threads"],
        graph=given["cuda_graph"],
        batch=given["batch"],
        shapes=parse_shapes(",".join(given["shapes"])) if given["shapes"] else {},
        data=given["data"],
    )
    schedule = Schedule(given["rounds"], given["seconds"], given["warmup"])
    with files.tell_errors(), ConsoleWatcher(quiet=given["quiet"]) as watcher:
        result = bench(
            *targets,
            options=chosen,
            schedule=schedule,
            min_speedup=given["min_speedup"],
            layers=given["layers"],
            watcher=watcher,
        )
        for warning in result.warnings:
            watcher.warn(warning)
    cases = list_speed_cases(result.speed)
    files.write(write_benchmark(files.title, result, cases), cases)
    if output is not None:
        write_atomically(output, to_json(result))
    if given["as_json"]:
        print_answer(to_json(result).decode())
    elif not given["quiet"]:
        _print(open_console(), result)
        if output is not None:
            echo(f"written to {output}")
    if failed := [reason for item in result.speed if item.verdict == "fail" for reason in item.reasons]:
        raise GateError("the speed gate failed: " + "; ".join(failed))


def _print(console: Console, result: Benchmark) -> None:
    rows = create_table(
        "model",
        "runs in",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "mean ms",
        "per second",
        "memory",
        "speed",
        numbers=7,
        drops=("mean ms", "p99 ms", "p90 ms", "memory", "per second"),
    )
    references = list(dict.fromkeys(item.against for item in result.measured))
    of = {name: f" of {name}" for name in references} if len(references) > 1 else {}
    for item in result.measured:
        times = (item.latency.p50_ms, item.latency.p90_ms, item.latency.p99_ms, item.latency.mean_ms)
        memory = item.costs.peak_rss_bytes if item.device == "cpu" else item.costs.gpu_bytes
        rows.add_row(
            item.name,
            item.runtime,
            *(_number(value) for value in times),
            _number(item.samples_per_s),
            "-" if memory is None else format_bytes(memory),
            "1" if item.speedup is None else f"{item.speedup:.2f}x{of.get(item.against, '')}",
        )
    console.print(rows)
    shapes = [f"{name} {format_shape(shape)}" for name, shape in result.shapes.items()]
    for line in (
        (
            f"speed: relative to {', '.join(references)}, median of "
            f"{format_count(result.schedule.rounds, 'round')}"
        ),
        f"inputs: {', '.join(shapes)} of {result.inputs}",
        *_machine(result.machine, result.conditions),
    ):
        console.print(line, soft_wrap=True)
    for skipped in result.skipped:
        console.print(Text(f"not measured: {skipped.name}: {skipped.reason}", style="yellow"), soft_wrap=True)
    for table in result.layers:
        console.print(_create_layer_table(table))
    for verdict in result.speed:
        print_speed(console, verdict)
    for note in result.notes:
        console.print(Text(f"  {note}", style="dim"), soft_wrap=True)


def _create_layer_table(table: LayerTable) -> Table:
    """Returns the times by layers, what quantization costs most first; of many layers both ends alone."""
    names = (table.against, table.candidate)
    headers = ("layer", *(f"{name} kernels" for name in names), *(f"{name} ms" for name in names))
    drops = ("of it converts", *headers[1:])
    result = create_table(*headers, "of it converts", "costs ms", numbers=4, drops=drops)
    is_long = len(table.rows) > _MOST_COSTLY + _MOST_GAINING
    most, least = (_MOST_COSTLY, _MOST_GAINING) if is_long else (len(table.rows), 0)
    between = table.rows[most : len(table.rows) - least]
    for row in table.rows[:most]:
        _add_layers(result, [row], f"{row.name} +{len(row.fused)}" if row.fused else row.name)
    if between:
        _add_layers(result, between, f"... {format_count(len(between), 'layer')} between (--json has all)")
    for row in table.rows[len(table.rows) - least :]:
        _add_layers(result, [row], f"{row.name} +{len(row.fused)}" if row.fused else row.name)
    result.add_section()
    _add_layers(result, table.rows, "all layers")
    return result


def _add_layers(table: Table, rows: Sequence[LayerTime], name: str) -> None:
    """Adds a row for a layer, or the sums of several."""
    kernels = ("", "")
    if len(rows) == 1:
        kernels = (", ".join(rows[0].float_kernels), ", ".join(rows[0].quantized_kernels))
    times = (sum(getattr(row, field) for row in rows) for field in _TIMES)
    costs = sum(row.costs_ms for row in rows)
    table.add_row(Text(name), *kernels, *map(_number, times), f"{costs:+.3f}")


def _machine(here: Machine, during: Conditions) -> list[str]:
    """Returns what the figures depend on, in a line for the processor and one for the GPU."""
    features = f"  {' '.join(here.features)}" if here.features else ""
    clock = f"  {during.cpu_mhz[-1]:.0f} MHz" if during.cpu_mhz else ""
    governor = f" ({here.governor})" if here.governor else ""
    others = "" if during.others_share is None else f", others used {during.others_share:.0%}"
    load = f"  load {during.load_before:.1f} before{others}"
    lines = [f"{here.cpu}  {format_count(here.cores, 'core')}{features}{clock}{governor}{load}"]
    if here.gpu:
        clocks = " -> ".join(f"{mhz:.0f}" for mhz in during.gpu_mhz)
        heat = " -> ".join(f"{celsius:.0f}" for celsius in during.gpu_celsius)
        lines.append(
            f"{here.gpu}  driver {here.driver}  {clocks} of {during.gpu_max_mhz or 0:.0f} MHz  {heat} C"
        )
    return lines


def _number(value: float) -> str:
    """Returns a number with three significant digits, and no fraction above a thousand."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.3f}"
