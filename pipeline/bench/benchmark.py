"""How fast models and engines are, beside each other in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from trtq.errors import TrtqError, UsageError
from trtq.json import FileKind
from trtq.models.spec import AccuracySpec
from trtq.numbers import format_shape
from trtq.pipeline.bench.layers import LayerTable
from trtq.pipeline.bench.machine import (
    Conditions,
    Machine,
    compare_samples,
    describe_machine,
    list_disturbances,
    sample_machine,
)
from trtq.pipeline.bench.process import Costs, TimedProcess
from trtq.pipeline.bench.runnables import Inputs, Runnable, RunOptions, Skipped, list_runnables
from trtq.pipeline.bench.speed import (
    Pair,
    Turns,
    blame_all,
    compare_pairs,
    find_pairs,
    judge_pairs,
    judge_skipped,
    take_decisive_turns,
)
from trtq.pipeline.bench.turns import (
    Latency,
    Schedule,
    Turn,
    compare_speed,
    find_median_ms,
    measure_spread,
    measure_throughput,
    summarize_latency,
)
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.speed import SpeedVerdict
from trtq.progress import Watcher, choose_watcher

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
        against: The FP32 model that it was built from on the same device, else on the CPU; else another FP32
            model, else the first.
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
        machine: Its processor, GPU and system.
        conditions: While it was measured.
        schedule: How many rounds, and how many seconds in all of them.
        num_threads: Of ONNX Runtime; 0: all cores.
        inputs: Where they come from; `shapes` are theirs, with `num_samples` in one run.
        measured: In the order of the turns.
        skipped: What could not be measured, and why.
        notes: What the figures mean.
        warnings: Why they may not be trusted.
        speed: What the speed gate says of what was built; empty if it was not asked.
        layers: The times by layers; empty if they were not asked, and nothing is too slow.
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
    speed: tuple[SpeedVerdict, ...] = ()
    layers: tuple[LayerTable, ...] = ()


FILE = FileKind(Benchmark, "benchmark", "trtq bench", "bench")


def bench(
    *targets: Path | str,
    options: RunOptions | None = None,
    schedule: Schedule | None = None,
    min_speedup: float | None = None,
    layers: bool = False,
    watcher: Watcher | None = None,
) -> Benchmark:
    """Returns how fast models and engines are, measured in turns in one run, each in a process of its own.

    Args:
        targets: Build folders (the float model, the FP16 and quantized models and the engine that are there),
            `.onnx` and `.engine` files; they take the same inputs. An engine needs its GPU.
        options: How they are run; None: all that works here, on the calibration data or random numbers.
        schedule: How long; None: ten rounds of half a second each.
        min_speedup: How many times as fast as the float one what was built has to be; it is measured up to
            four times as long until that is decided. None: nothing is judged.
        layers: Whether what was built and the float one are run again with their kernels timed. That is also
            done with what is too slow.
        watcher: Receives the progress.

    Raises:
        UsageError, ModelError, DataError: An argument cannot be used.
        ArtifactError: A build folder is not what was built, or an engine does not fit.
        MissingDependency: Nothing that was given can be run here.
    """
    options, schedule, watcher = options or RunOptions(), schedule or Schedule(), choose_watcher(watcher)
    AccuracySpec(min_speedup=min_speedup)  # which says what is wrong with it
    watcher.stage("Loading")
    runnables, skipped, inputs = list_runnables([Path(target) for target in targets], options, watcher)
    here = describe_machine()
    with ExitStack() as stack:
        running, failed = _start(runnables, inputs, schedule, stack)
        skipped = (*skipped, *_list_failed(runnables, failed))
        if not running:
            raise next(iter(failed.values()))
        _refuse_other_shapes({name: candidate.shapes for name, candidate in running.items()})
        items = [item for item in runnables if item.name in running]
        pairs = _find_pairs(items, skipped, is_judged=min_speedup is not None, has_layers=layers)
        unknown = judge_skipped(items, skipped, min_speedup or 1.0)
        judge = _create_judge(pairs, unknown, min_speedup, running, here)
        pids = [candidate.pid for candidate in running.values()]
        before = sample_machine(pids)
        turns = take_decisive_turns(
            {name: candidate.turn for name, candidate in running.items()},
            schedule,
            lambda turns: all(item.verdict != "unverified" or not item.against for item in judge(turns)),
            watcher,
        )
        during = compare_samples(before, sample_machine(pids))
        costs = {name: candidate.finish() for name, candidate in running.items()}
    speed = judge(turns)
    shown = [item.candidate for item in speed if item.verdict == "fail"]
    shown += [pair.candidate.name for pair in pairs] if layers else []
    tables = compare_pairs(pairs, shown, inputs, schedule, watcher)
    shapes = running[items[0].name].shapes
    num_samples = inputs.num_samples if inputs.feed is not None else _first_axis(shapes)
    measured = tuple(
        _summarize(item, running[item.name], turns, costs[item.name], num_samples, _reference(item, items))
        for item in items
    )
    return Benchmark(
        here,
        during,
        _find_taken(schedule, turns),
        options.num_threads,
        inputs.origin,
        shapes,
        num_samples,
        measured,
        skipped,
        tuple(_notes(items, measured, here)),
        tuple(_warnings(measured, during)),
        blame_all(speed, tables),
        tables,
    )


def _refuse_other_shapes(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
    """Refuses engines alone whose profiles have other usual shapes: their times are not of the same work.

    Raises:
        UsageError: There are such.
    """
    (first, wanted), *others = shapes.items()
    for name, found in others:
        if found != wanted:
            ours, theirs = (
                ", ".join(f"{key} {format_shape(shape)}" for key, shape in each.items())
                for each in (wanted, found)
            )
            raise UsageError(
                f"{first} runs on {ours}, {name} on {theirs}: their times are not of the same work; give a "
                f"build folder or an .onnx file too, and --batch or --shapes for all"
            )


def _find_pairs(
    items: Sequence[Runnable], skipped: Sequence[Skipped], *, is_judged: bool, has_layers: bool
) -> tuple[Pair, ...]:
    """Returns what is judged or shown by layers, and what it is measured against.

    Raises:
        UsageError: It is asked for, and there is nothing.
    """
    pairs = find_pairs(items, skipped if is_judged else ())
    if is_judged and not (pairs or judge_skipped(items, skipped, 1.0)):
        raise UsageError(
            "--min-speedup judges quantized and FP16 models and engines, and there is none among what was "
            "given; give a build folder"
        )
    if has_layers and all(pair.reference in (None, pair.candidate) for pair in pairs):
        raise UsageError(
            "--layers compares a quantized or FP16 model or engine with a float one on the same "
            "device, and the targets have no such pair; give a build folder, or both"
        )
    return pairs


def _create_judge(
    pairs: Sequence[Pair],
    unknown: Sequence[SpeedVerdict],
    wanted: float | None,
    running: Mapping[str, TimedProcess],
    here: Machine,
) -> Callable[[Turns], tuple[SpeedVerdict, ...]]:
    """Returns what makes the verdicts of turns; none if no speed is wanted."""
    if wanted is None:
        return lambda turns: ()
    runtimes = {name: candidate.runtime for name, candidate in running.items()}
    return lambda turns: (*judge_pairs(pairs, turns, wanted, runtimes, here), *unknown)


def _find_taken(schedule: Schedule, turns: Turns) -> Schedule:
    """Returns how long was measured in fact."""
    rounds = len(next(iter(turns.values())))
    return replace(schedule, rounds=rounds, seconds=schedule.seconds * rounds / schedule.rounds)


def _list_failed(runnables: Sequence[Runnable], failed: Mapping[str, TrtqError]) -> Iterator[Skipped]:
    for item in runnables:
        if item.name in failed:
            is_engine = item.request.kind == "plan"
            reason = str(failed[item.name])
            yield Skipped(item.name, reason, item.precision, is_engine=is_engine, source=item.source)


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
    """Returns what it is compared with: FP32, if possible of its model and on its device; else the first."""
    floats = [other for other in items if other.precision == "fp32"]
    return min(
        floats or items[:1], key=lambda other: (other.source != item.source, other.device != item.device)
    )


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
    has = here.int8 or "no INT8 dot-product instructions"
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
                f"{result.name}: its speed is relative to {result.against} on the CPU; onnxruntime-gpu "
                "gives FP32 on the GPU"
            )
        if result.num_runs < _FEW_RUNS:
            yield f"{result.name}: p90 and p99 are of {result.num_runs} runs alone; --seconds makes more"


def _warnings(measured: Sequence[Timing], during: Conditions) -> Iterator[str]:
    """Yields why the figures may not be trusted."""
    yield from list_disturbances(during)
    for result in measured:
        if result.spread > _SPREAD:
            yield f"{result.name}: its rounds differ by {result.spread:.0%}; the machine is busy"
