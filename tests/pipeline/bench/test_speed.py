"""Tests of the speed gate: what is judged against what, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from recording_watcher import RecordingWatcher

from trtq.errors import ModelError, UsageError
from trtq.pipeline.bench.benchmark import bench
from trtq.pipeline.bench.machine import Machine
from trtq.pipeline.bench.process import Request
from trtq.pipeline.bench.runnables import Inputs, Runnable, RunOptions, Skipped
from trtq.pipeline.bench.speed import (
    Pair,
    compare_pairs,
    find_pairs,
    judge_pairs,
    judge_skipped,
    measure_speed,
    take_decisive_turns,
)
from trtq.pipeline.bench.turns import Schedule, Turn

HERE = Machine("CPU", 2, (), "", "GPU", "", "Linux")
QUICK = Schedule(rounds=2, seconds=0.004, warmup_s=0.0)


def contender(
    name: str, precision: str, kind: str = "onnx", device: str = "cpu", source: str = ""
) -> Runnable:
    return Runnable(name, precision, device, Request(kind, Path(name), device), "", source)  # type: ignore[arg-type]


FP32, FP16, INT8 = (contender(name, name) for name in ("fp32", "fp16", "int8"))
HALF, CODES = (contender(f"{name} engine", name, "plan", "cuda") for name in ("fp16", "int8"))


def names(items: Sequence[Runnable], skipped: Sequence[Skipped] = ()) -> list[tuple[str, str | None]]:
    pairs = find_pairs(items, skipped)
    return [(pair.candidate.name, pair.reference.name if pair.reference else None) for pair in pairs]


# what is judged against what


def test_a_quantized_model_is_measured_against_fp32_on_the_same_device() -> None:
    on_gpu = contender("int8 cuda", "int8", device="cuda")
    assert names([FP32, FP16, INT8]) == [("int8", "fp32")]
    assert names([FP32, INT8, on_gpu]) == [("int8", "fp32"), ("int8 cuda", None)]


def test_an_engine_is_judged_instead_of_models_and_against_an_fp16_engine() -> None:
    assert names([FP32, FP16, INT8, HALF, CODES]) == [("int8 engine", "fp16 engine")]
    whole = contender("fp32 engine", "fp32", "plan", "cuda")
    assert names([whole, HALF]) == [("fp16 engine", "fp32 engine")]


def test_an_engine_that_cannot_run_is_still_what_is_judged() -> None:
    skipped = [Skipped("int8 engine", "no GPU", "int8", is_engine=True)]
    assert names([FP32, FP16, INT8], skipped) == []
    (found,) = judge_skipped([FP32, FP16, INT8], skipped, 1.05)
    assert (found.verdict, found.reasons) == (
        "unverified",
        ("the speed of int8 engine is not known: no GPU",),
    )
    assert judge_skipped([FP32, INT8], [Skipped("fp16", "it is broken", "fp16")], 1.05) == ()


def test_fp16_is_judged_where_nothing_is_quantized() -> None:
    assert names([FP32, FP16]) == [("fp16", "fp32")]


def test_of_engines_whose_precision_is_not_known_the_first_is_the_reference() -> None:
    first, second = (contender(f"{name}.engine", "engine", "plan", "cuda") for name in "ab")
    assert names([first, second]) == [("b.engine", "a.engine")]


def test_of_each_model_what_was_built_is_judged() -> None:
    big, codes = contender("r50 fp32", "fp32", source="r50"), contender("r50 int8", "int8", source="r50")
    half = contender("r18 fp16 engine", "fp16", "plan", "cuda", "r18")
    plan = contender("r18 int8 engine", "int8", "plan", "cuda", "r18")
    assert names([big, codes, half, plan]) == [
        ("r50 int8", "r50 fp32"),
        ("r18 int8 engine", "r18 fp16 engine"),
    ]
    skipped = Skipped("r18 int8 engine", "no GPU", "int8", is_engine=True, source="r18")
    assert names([big, codes], [skipped]) == [("r50 int8", "r50 fp32")]
    assert [item.candidate for item in judge_skipped([big, codes], [skipped], 1.0)] == ["r18 int8 engine"]


def test_only_the_float_one_of_the_same_model_is_a_reference() -> None:
    big, small = (contender(f"{name} fp32", "fp32", source=name) for name in ("r50", "r18"))
    codes = [contender(f"{name} int8", "int8", source=name) for name in ("r50", "r18")]
    assert names([big, codes[0], small, codes[1]]) == [("r50 int8", "r50 fp32"), ("r18 int8", "r18 fp32")]
    assert names([big, *codes]) == [("r50 int8", "r50 fp32"), ("r18 int8", None)]
    assert names([small, codes[0]]) == [("r50 int8", None)]
    half = contender("r18 fp16 engine", "fp16", "plan", "cuda", "r18")
    plans = [contender(f"{name} int8 engine", "int8", "plan", "cuda", name) for name in ("r50", "r18")]
    assert names([half, *plans]) == [("r50 int8 engine", None), ("r18 int8 engine", "r18 fp16 engine")]
    alone = contender("x.engine", "engine", "plan", "cuda")
    assert names([alone, plans[0]])[1:] == [("r50 int8 engine", None)]


def test_what_has_no_build_is_measured_against_the_only_float_one_that_is_not_of_another() -> None:
    big, small = (contender(f"{name} fp32", "fp32", source=name) for name in ("r50", "r18"))
    alone, other = contender("q.onnx", "quantized"), contender("r18 int8", "int8", source="r18")
    assert names([big, alone]) == [("q.onnx", "r50 fp32")]
    assert names([big, small, alone]) == [("q.onnx", None)]
    assert names([small, other, alone]) == [("r18 int8", "r18 fp32"), ("q.onnx", None)]


def test_without_a_float_one_nothing_is_decided() -> None:
    turns = {"int8 engine": (Turn((1.0,), 1.0),), "int8": (Turn((1.0,), 1.0),)}
    runtimes = {"int8 engine": "tensorrt 10", "int8": "ONNX Runtime 1"}
    (engine,) = judge_pairs(find_pairs([FP32, INT8, CODES]), turns, 1.05, runtimes, HERE)
    assert (engine.verdict, engine.machine, engine.runtime) == ("unverified", "GPU", "tensorrt 10")
    assert engine.reasons == (
        "the speed of int8 engine is not known: no float engine of its model was measured with it; "
        "give that of --fp16 as a target too",
    )
    (model,) = judge_pairs(find_pairs([INT8]), turns, 1.05, runtimes, HERE)
    assert model.reasons == (
        "the speed of int8 is not known: its float model was not measured with it on the same device; "
        "give that as a target too",
    )


def test_there_must_be_something_to_judge(model: Path) -> None:
    with pytest.raises(UsageError, match=r"^--min-speedup judges quantized and FP16 models and engines, and"):
        bench(model, options=RunOptions(device="cpu"), schedule=QUICK, min_speedup=1.05)


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan"), float("inf"), 1001.0])
def test_a_speed_that_cannot_be_is_refused(wanted: float, model: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^min_speedup is a ratio above 0 and at most 1000, such as 1\.05, got"
    ):
        bench(model, min_speedup=wanted)


# for how long


def play(ratios: Sequence[float]) -> tuple[dict[str, Callable[[float], Turn]], list[float]]:
    """Returns two candidates of which the second is so many times as fast, and what was asked of it."""
    asked: list[float] = []

    def run(seconds: float) -> Turn:
        asked.append(seconds)
        return Turn((1 / ratios[len(asked) - 1],), 1.0)

    return {"fp32": lambda seconds: Turn((1.0,), 1.0), "int8": run}, asked


def judge(ratios: Sequence[float], wanted: float) -> tuple[str, int]:
    candidates, asked = play(ratios)
    pairs = find_pairs([FP32, INT8])

    def decided(turns: dict[str, tuple[Turn, ...]]) -> bool:
        return judge_pairs(pairs, turns, wanted, {"int8": ""}, HERE)[0].verdict != "unverified"

    told = RecordingWatcher()
    turns = take_decisive_turns(candidates, Schedule(rounds=10, seconds=1.0), decided, told)  # type: ignore[arg-type]
    assert asked == [pytest.approx(0.1)] * len(asked)
    assert sum(sum(counts) for counts in told.samples.values()) == 2 * len(asked)
    return judge_pairs(pairs, turns, wanted, {"int8": ""}, HERE)[0].verdict, len(asked)


def test_what_is_clear_is_measured_once() -> None:
    assert judge([2.0] * 10, 1.05) == ("pass", 10)
    assert judge([0.5] * 10, 1.05) == ("fail", 10)


def test_what_is_not_clear_is_measured_longer_and_then_given_up() -> None:
    assert judge([1.0] * 2 + [1.1] * 18, 1.05) == ("pass", 20)
    assert judge([1.0] * 5 + [1.1] * 5 + [1.0] * 30, 1.05) == ("fail", 40)
    assert judge([1.0, 1.1] * 20, 1.05) == ("unverified", 40)


# with real processes


@pytest.fixture
def pair(model: Path) -> Pair:
    return Pair(
        *(Runnable(name, name, "cpu", Request("onnx", model, num_threads=1)) for name in ("int8", "fp32"))
    )


def test_models_are_run_and_judged(pair: Pair) -> None:
    inputs, told = Inputs({"x": np.ones((2, 4), np.float32)}, "ones", 2), RecordingWatcher()
    found = measure_speed(pair, inputs, Schedule(7, 0.007, 0.0), 0.001, told)
    assert (found.verdict, found.rounds, found.candidate, found.against) == ("pass", 7, "int8", "fp32")
    assert found.runtime.startswith("ONNX Runtime ")
    assert found.machine
    assert told.stages == [("Measuring", 14)]
    assert measure_speed(pair, inputs, Schedule(7, 0.007, 0.0), 1000.0, told).verdict == "fail"


def test_a_model_that_does_not_run_is_told(pair: Pair) -> None:
    inputs = Inputs({"x": np.ones((3, 3), np.float32)}, "ones", 1)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model"):
        measure_speed(pair, inputs, QUICK, 1.05, RecordingWatcher())


def test_bench_judges_what_was_built(path_of: Callable[..., Path], model: Path) -> None:
    nodes = "c = Cast <to = 10> (x) m = MatMul (c, w) y = Cast <to = 1> (m)"
    weights = np.eye(4, dtype=np.float16)
    half = path_of(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}", w=weights)
    found = bench(model, half, options=RunOptions(device="cpu"), schedule=QUICK, min_speedup=0.001)
    (speed,) = found.speed
    assert (speed.verdict, speed.rounds, found.schedule.rounds) == ("pass", 8, 8)
    assert (speed.candidate, speed.against) == (half.name, model.name)
    assert [item.verdict for item in bench(half, schedule=QUICK, min_speedup=1.0).speed] == ["unverified"]


def test_the_layers_of_a_pair_stand_beside_each_other(path_of: Callable[..., Path], model: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float16)
    nodes = "c = Cast <to = 10> (x) [mm] m = MatMul (c, w) y = Cast <to = 1> (m)"
    half = path_of(f"g (float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}", w=weights)
    found = bench(
        model, half, options=RunOptions(device="cpu"), schedule=QUICK, min_speedup=1000, layers=True
    )
    (table,), (speed,) = found.layers, found.speed
    assert (table.candidate, table.against) == (half.name, model.name)
    assert table.rows[0].name == "mm"
    assert table.rows[0].float_ms > 0
    assert speed.verdict == "fail"
    assert {row.name for row in speed.costliest} <= {row.name for row in table.rows}


def test_layers_need_a_float_one_beside(model: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^--layers compares a quantized or FP16 model or engine with a float"
    ):
        bench(model, options=RunOptions(device="cpu"), schedule=QUICK, layers=True)


def test_a_verdict_stands_where_its_layers_cannot_be_timed(pair: Pair) -> None:
    told = RecordingWatcher()
    inputs = Inputs({"x": np.ones((3, 3), np.float32)}, "ones", 1)
    assert compare_pairs([pair], ["int8"], inputs, QUICK, told) == ()
    assert compare_pairs([pair], [], inputs, QUICK, told) == ()
    (warning,) = told.warnings
    assert warning.startswith("int8: its layers could not be timed: ONNX Runtime cannot run the model: ")
