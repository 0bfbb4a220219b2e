"""The speed gate: what was built, in turns with what it must beat, until the ratio is known well enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from trtq.errors import TrtqError
from trtq.pipeline.bench.layers import LayerTable, compare_layers, rename_nodes
from trtq.pipeline.bench.machine import (
    Machine,
    compare_samples,
    describe_machine,
    list_disturbances,
    sample_machine,
)
from trtq.pipeline.bench.owners import match_nodes
from trtq.pipeline.bench.process import TimedProcess
from trtq.pipeline.bench.runnables import ENGINE_OF_UNKNOWN, Inputs, Runnable, Skipped
from trtq.pipeline.bench.turns import Schedule, Turn, find_ratios, take_turns
from trtq.pipeline.judge.speed import LOOKS, SpeedVerdict, blame_layers, judge_speed, refuse_to_judge
from trtq.progress import Watcher

Turns = Mapping[str, tuple[Turn, ...]]
_FLOATS = ("fp16", "fp32")
_NO_ENGINE = "no float engine of its model was measured with it; give that of --fp16 as a target too"
_NO_MODEL = "its float model was not measured with it on the same device; give that as a target too"


@dataclass(frozen=True, slots=True)
class Pair:
    """What is judged, and what it is measured against; None if there is nothing."""

    candidate: Runnable
    reference: Runnable | None


def find_pairs(items: Sequence[Runnable], skipped: Sequence[Skipped] = ()) -> tuple[Pair, ...]:
    """Returns what the speed gate judges, each with what it is measured against.

    What was built from each model is judged: engines if there are any, also if they could not be run here,
    else models; of these the quantized ones, else those in FP16. An engine is measured against the FP16
    engine, else FP32; a model against the FP32 model on the same device, in both cases of the model that it
    was built from. Where nobody knows that, it is the only float one that is not of another that is judged.
    Of engines without their builds, whose precisions are not known, the first is what the others are measured
    against.

    Args:
        items: What was measured.
        skipped: What was not.
    """
    judged = _find_judged(items, skipped)
    own = [item for item in items if (item.source, item.request.kind == "plan", item.precision) in judged]
    taken = {item.source for item in own}
    free = [item for item in items if item.source not in taken or not item.source]
    pairs = [Pair(item, _find_reference(item, items if item.source else free)) for item in own]
    used = [pair.reference for pair in pairs if pair.reference is not pair.candidate]
    return tuple(pair for pair in pairs if pair.candidate not in used)


def _find_judged(items: Sequence[Runnable], skipped: Sequence[Skipped]) -> set[tuple[str, bool, str]]:
    """Returns what is judged: the source, whether it is an engine, and the precision."""
    known = {(item.source, item.request.kind == "plan", item.precision) for item in items}
    known |= {(item.source, item.is_engine, item.precision) for item in skipped if item.precision}
    engines = {source for source, is_engine, _ in known if is_engine}
    built = {item for item in known if item[1] is (item[0] in engines) and item[2] != "fp32"}
    quantized = {source for source, _, precision in built if precision != "fp16"}
    return {item for item in built if item[2] != "fp16" or item[0] not in quantized}


def take_decisive_turns(
    candidates: Mapping[str, Callable[[float], Turn]],
    schedule: Schedule,
    is_decided: Callable[[Turns], bool],
    watcher: Watcher,
) -> dict[str, tuple[Turn, ...]]:
    """Returns the turns of each candidate: as many rounds again, and once more, while nothing is decided."""
    turns: dict[str, tuple[Turn, ...]] = dict.fromkeys(candidates, ())
    for look in range(LOOKS):
        more = schedule if look == 0 else _as_long_as(schedule, 2 ** (look - 1))
        watcher.stage("Measuring", more.rounds * len(candidates))
        taken = take_turns(candidates, more, lambda name: watcher.advance(1))
        turns = {name: own + taken[name] for name, own in turns.items()}
        if is_decided(turns):
            break
    return turns


def judge_pairs(
    pairs: Sequence[Pair], turns: Turns, wanted: float, runtimes: Mapping[str, str], here: Machine
) -> tuple[SpeedVerdict, ...]:
    """Returns the verdicts on what was measured."""
    return tuple(_judge(pair, turns, wanted, runtimes[pair.candidate.name], here) for pair in pairs)


def judge_skipped(
    items: Sequence[Runnable], skipped: Sequence[Skipped], wanted: float
) -> tuple[SpeedVerdict, ...]:
    """Returns the verdicts on what would be judged if it could be measured."""
    judged = _find_judged(items, skipped)
    own = [item for item in skipped if (item.source, item.is_engine, item.precision) in judged]
    return tuple(refuse_to_judge(item.reason, wanted, item.name) for item in own)


def measure_speed(
    pair: Pair, inputs: Inputs, schedule: Schedule, wanted: float, watcher: Watcher
) -> SpeedVerdict:
    """Returns the verdict on a pair, which is run now, each in a process of its own.

    Raises:
        TrtqError: One of them does not run here.
    """
    here, items = describe_machine(), [item for item in (pair.reference, pair.candidate) if item is not None]
    with ExitStack() as stack:
        running = {item.name: stack.enter_context(TimedProcess(item.request, inputs.feed)) for item in items}
        for process in running.values():
            process.turn(schedule.warmup_s)
        runtimes = {name: process.runtime for name, process in running.items()}

        def judge(turns: Turns) -> SpeedVerdict:
            return judge_pairs([pair], turns, wanted, runtimes, here)[0]

        pids = [process.pid for process in running.values()]
        before = sample_machine(pids)
        turns = take_decisive_turns(
            {name: process.turn for name, process in running.items()},
            schedule,
            lambda turns: judge(turns).verdict != "unverified",
            watcher,
        )
        for reason in list_disturbances(compare_samples(before, sample_machine(pids))):
            watcher.warn(f"speed: {reason}")
        found = judge(turns)
    slow = [found.candidate] if found.verdict == "fail" else []
    return blame_all([found], compare_pairs([pair], slow, inputs, schedule, watcher))[0]


def _judge(pair: Pair, turns: Turns, wanted: float, runtime: str, here: Machine) -> SpeedVerdict:
    item, reference = pair.candidate, pair.reference
    if reference is None or reference is item:
        reason = _NO_ENGINE if item.request.kind == "plan" else _NO_MODEL
        found = refuse_to_judge(reason, wanted, item.name)
    else:
        ratios = find_ratios(turns[item.name], turns[reference.name])
        found = judge_speed(ratios, wanted, item.name, reference.name)
    return replace(found, runtime=runtime, machine=here.gpu if item.device == "cuda" else here.cpu)


def _find_reference(item: Runnable, others: Sequence[Runnable]) -> Runnable | None:
    """Returns what an item is measured against, among the others of its kind: engines or models.

    That is of its own model; of none if there are several models, and its own is not known.
    """
    kind = [other for other in others if other.request.kind == item.request.kind]
    beside = [other for other in kind if other.device == item.device]
    floats = ("fp32",) if item.precision == "fp16" or item.request.kind == "onnx" else _FLOATS
    known = [other for name in floats for other in beside if other.precision == name]
    if item.source:
        return next((other for other in known if other.source == item.source), None)
    if known:
        models = {other.source or str(other.request.path) for other in known}
        return known[0] if len(models) == 1 else None
    unknown = [other for other in beside if other.precision == ENGINE_OF_UNKNOWN]
    return next(iter(unknown), None) if item.precision == ENGINE_OF_UNKNOWN else None


def _as_long_as(schedule: Schedule, times: int) -> Schedule:
    return replace(schedule, rounds=times * schedule.rounds, seconds=times * schedule.seconds)


def compare_pair(pair: Pair, inputs: Inputs, schedule: Schedule, watcher: Watcher) -> LayerTable | None:
    """Returns the times of a pair by layers, both run anew with their kernels timed; None without a pair.

    Raises:
        TrtqError: One of them does not run here.
    """
    if pair.reference is None or pair.reference is pair.candidate:
        return None
    items = (pair.reference, pair.candidate)
    with ExitStack() as stack:
        requests = [replace(item.request, profile=True) for item in items]
        running = [stack.enter_context(TimedProcess(request, inputs.feed)) for request in requests]
        watcher.stage("Timing layers", schedule.rounds * len(items))
        turns = {item.name: process.turn for item, process in zip(items, running, strict=True)}
        take_turns(turns, schedule, lambda name: watcher.advance(1))
        floats, others = (process.list_kernels() for process in running)
    names = match_nodes(*(item.request.path for item in items))
    rows = compare_layers(floats, [*rename_nodes(others, names)])
    return LayerTable(pair.candidate.name, pair.reference.name, rows)


def compare_pairs(
    pairs: Sequence[Pair], names: Collection[str], inputs: Inputs, schedule: Schedule, watcher: Watcher
) -> tuple[LayerTable, ...]:
    """Returns the times by layers of the pairs with these candidates; warns of what cannot be timed so."""
    tables = []
    for pair in pairs:
        try:
            table = compare_pair(pair, inputs, schedule, watcher) if pair.candidate.name in names else None
        except TrtqError as error:
            watcher.warn(f"{pair.candidate.name}: its layers could not be timed: {error}")
            continue
        tables += [] if table is None else [table]
    return tuple(tables)


def blame_all(verdicts: Sequence[SpeedVerdict], tables: Sequence[LayerTable]) -> tuple[SpeedVerdict, ...]:
    """Returns the verdicts, those that fail with the layers that cost most."""
    rows = {table.candidate: table.rows for table in tables}
    return tuple(
        blame_layers(item, rows.get(item.candidate, ())) if item.verdict == "fail" else item
        for item in verdicts
    )
