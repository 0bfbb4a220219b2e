"""How fast models and engines are, beside each other in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trtq.errors import TrtqError
from trtq.json import FileKind
from trtq.pipeline.bench.machine import Conditions, Machine, compare_samples, describe_machine, sample_machine
from trtq.pipeline.bench.process import Costs, TimedProcess
from trtq.pipeline.bench.runnables import Inputs, Runnable, RunOptions, Skipped, list_runnables
from trtq.pipeline.bench.turns import (
    Latency,
    Schedule,
    Turn,
    compare_speed,
    find_median_ms,
    measure_spread,
    measure_throughput,
    summarize_latency,
    take_turns,
)
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.progress import Silent, Watcher

_BUSY = 0.1
_STOLEN = 0.02
_SPREAD = 0.05
_FEW_RUNS = 100


@dataclass(frozen=True, slots=True)
class Int8Layers:
    """How many layers of a quantized model ONNX Runtime runs in INT8 on this CPU."""

    int8: int
    quantized: int


@dataclass(frozen=True, slots=True)
class Timing:
    """One model or engine.

    Attributes:
        device: "cpu", or "cuda" for a GPU.
        runtime: What ran it, with its version.
        median_ms: The median of the rounds' medians. Of an engine, by CUDA events: without copies.
        latency: Of all runs.
        samples_per_s: The median of the rounds.
        speedup: How many times faster than `against`; None for that one itself.
        against: The FP32 model on the same device, else on the CPU, else the first.
        spread: Of the rounds' medians, as a share of their median.
        load_s: Loading and the first run.
        graph: Of an engine: "yes" if it ran as a CUDA graph, else why not; empty for a model.
        layers: Of a quantized model on the CPU.
    """

    name: str
    precision: str
    device: str
    runtime: str
    path: str
    median_ms: float
    latency: Latency
    samples_per_s: float
    num_runs: int
    speedup: float | None
    against: str
    spread: float
    load_s: float
    costs: Costs
    graph: str
    layers: Int8Layers | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was measured, on what, and what to think of it.

    Attributes:
        conditions: While it was measured.
        num_threads: Of ONNX Runtime; 0: all cores.
        inputs: Where they come from; `shapes` are theirs, with `num_samples` in one run.
        measured: In the order of the turns.
        skipped: What could not be measured, and why.
        notes: What the figures mean.
        warnings: Why they may not be trusted.
    """

    machine: Machine
    conditions: Conditions
    schedule: Schedule
    num_threads: int
    inputs: str
    shapes: Mapping[str, tuple[int, ...]]
    num_samples: int
    measured: tuple[Timing, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


FILE = FileKind(Benchmark, "benchmark", "trtq bench", "bench")


def bench(
    *targets: Path | str,
    options: RunOptions | None = None,
    schedule: Schedule | None = None,
    watcher: Watcher | None = None,
) -> Benchmark:
    """Returns how fast models and engines are, measured in turns in one run, each in a process of its own.

    Args:
        targets: Build folders (the float model, the FP16 and quantized models and the engine that are there),
            `.onnx` and `.engine` files; they take the same inputs. An engine needs its GPU.
        options: How they are run; None: all that works here, on the calibration data or random numbers.
        schedule: How long; None: ten rounds of half a second each.
        watcher: Gets the progress.

    Raises:
        UsageError, ModelError, DataError: Something that was given cannot be used.
        ArtifactError: A build folder is not what was built, or an engine does not fit.
        MissingDependency: Nothing that was given can be run here.
    """
    options, schedule, watcher = options or RunOptions(), schedule or Schedule(), watcher or Silent()
    watcher.stage("Loading")
    runnables, skipped, inputs = list_runnables([Path(target) for target in targets], options, watcher)
    here = describe_machine()
    with ExitStack() as stack:
        running, failed = _start(runnables, inputs, schedule, stack)
        skipped = (*skipped, *(Skipped(name, str(error)) for name, error in failed.items()))
        if not running:
            raise next(iter(failed.values()))
        watcher.stage("Measuring", schedule.rounds * len(running))
        pids = [candidate.pid for candidate in running.values()]
        before = sample_machine(pids)
        turns = take_turns(
            {name: candidate.turn for name, candidate in running.items()},
            schedule,
            lambda name: watcher.advance(1),
        )
        during = compare_samples(before, sample_machine(pids))
        costs = {name: candidate.finish() for name, candidate in running.items()}
    items = [item for item in runnables if item.name in running]
    shapes = running[items[0].name].shapes
    num_samples = inputs.num_samples if inputs.feed is not None else _first_axis(shapes)
    measured = tuple(
        _summarize(item, running[item.name], turns, costs[item.name], num_samples, _reference(item, items))
        for item in items
    )
    return Benchmark(
        here,
        during,
        schedule,
        options.num_threads,
        inputs.origin,
        shapes,
        num_samples,
        measured,
        skipped,
        tuple(_notes(items, measured, here)),
        tuple(_warnings(measured, during)),
    )


def _start(
    runnables: Sequence[Runnable], inputs: Inputs, schedule: Schedule, stack: ExitStack
) -> tuple[dict[str, TimedProcess], dict[str, TrtqError]]:
    """Returns, by name, what runs and is warm, and why others do not run; `stack` ends the processes."""
    running: dict[str, TimedProcess] = {}
    failed: dict[str, TrtqError] = {}
    for item in runnables:
        try:
            candidate = stack.enter_context(TimedProcess(item.request, inputs.feed))
            candidate.turn(schedule.warmup_s)
            running[item.name] = candidate
        except TrtqError as error:
            failed[item.name] = error
    return running, failed


def to_json(benchmark: Benchmark) -> bytes:
    """Returns the result as JSON."""
    return FILE.encode(benchmark)


def _first_axis(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return max((shape[0] for shape in shapes.values() if shape), default=1)


def _reference(item: Runnable, items: Sequence[Runnable]) -> Runnable:
    """Returns what it is compared with: FP32 on the same device, else anywhere, else the first."""
    floats = [other for other in items if other.precision == "fp32"]
    return next((other for other in floats if other.device == item.device), (*floats, *items)[0])


def _summarize(
    item: Runnable,
    candidate: TimedProcess,
    turns: Mapping[str, Sequence[Turn]],
    costs: Costs,
    num_samples: int,
    reference: Runnable,
) -> Timing:
    own = turns[item.name]
    return Timing(
        name=item.name,
        precision=item.precision,
        device=item.device,
        runtime=candidate.runtime,
        path=str(item.request.path),
        median_ms=find_median_ms(own),
        latency=summarize_latency(own),
        samples_per_s=measure_throughput(own, num_samples),
        num_runs=sum(len(turn.times_ms) for turn in own),
        speedup=None if item is reference else compare_speed(own, turns[reference.name]),
        against=reference.name,
        spread=measure_spread(own),
        load_s=candidate.load_s,
        costs=costs,
        graph=candidate.graph,
        layers=_count_int8_layers(item),
    )


def _count_int8_layers(item: Runnable) -> Int8Layers | None:
    """Returns what ONNX Runtime runs in INT8; None where the model is not quantized, or not on the CPU."""
    if item.request.kind != "onnx" or item.device != "cpu" or item.precision in ("fp32", "fp16"):
        return None
    backend, path = OnnxRuntime(), item.request.path
    wanted = find_quantized_layers(load(path, min_opset=1).model)
    covered = measure_coverage(wanted, backend.build(BuildRequest(path)), ())
    return Int8Layers(covered.layers_realized.get("int8", 0), covered.layers_quantized)


def _notes(items: Sequence[Runnable], measured: Sequence[Timing], here: Machine) -> Iterator[str]:
    """Yields what the figures mean: on a CPU they say little of a GPU."""
    has = here.int8 or "no instructions for sums of INT8 products"
    devices = {result.name: result.device for result in measured}
    for item, result in zip(items, measured, strict=True):
        if result.layers is not None and result.layers.quantized:
            rest = ""
            if item.high_precision == "fp16":
                rest = "; the rest of it is FP16: trtq build --backend onnxruntime makes a model for the CPU"
            yield (
                f"{item.name}: ONNX Runtime runs {result.layers.int8} of {result.layers.quantized} quantized "
                f"layers in INT8 on this CPU, which has {has}{rest}"
            )
        if item.precision == "fp16" and item.device == "cpu" and not here.half:
            yield f"{item.name}: this CPU has no FP16 arithmetic, so ONNX Runtime converts to FP32 and back"
        if result.graph not in ("", "yes", "not asked for"):
            yield f"{item.name}: not run as a CUDA graph, {result.graph}"
    if any(item.device == "cuda" and item.request.kind == "plan" for item in items):
        yield "engines: the time is that of the GPU, by CUDA events, without copies of inputs and outputs"
    elif any(item.high_precision for item in items):
        yield "Q/DQ pairs are placed for TensorRT: only its engine on a GPU shows what INT8 gives there"
    for result in measured:
        if result.device == "cuda" and devices.get(result.against) == "cpu":
            yield (
                f"{result.name}: its speed is beside {result.against} on the CPU; "
                f"onnxruntime-gpu gives FP32 on the GPU"
            )
        if result.num_runs < _FEW_RUNS:
            yield f"{result.name}: p90 and p99 are of {result.num_runs} runs alone; --seconds makes more"


def _warnings(measured: Sequence[Timing], during: Conditions) -> Iterator[str]:
    """Yields why the figures may not be trusted."""
    if (during.others_share or 0) > _BUSY:
        share = f"{during.others_share:.0%}"
        yield f"other processes used {share} of the processor meanwhile; stop them and measure again"
    if (during.stolen_share or 0) > _STOLEN:
        yield f"other virtual machines took {during.stolen_share:.0%} of the processor meanwhile"
    for reason in during.throttled:
        yield f"throttled: {reason}"
    for result in measured:
        if result.spread > _SPREAD:
            yield f"{result.name}: its rounds differ by {result.spread:.0%}; the machine is not at rest"
