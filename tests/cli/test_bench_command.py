"""`trtq bench` as a user sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import lines_of, trtq

from trtq.cli import bench as module
from trtq.pipeline.bench.benchmark import Benchmark, Timing
from trtq.pipeline.bench.layers import LayerTable
from trtq.pipeline.bench.machine import Conditions, Machine
from trtq.pipeline.bench.process import Costs
from trtq.pipeline.bench.runnables import Skipped
from trtq.pipeline.bench.turns import Latency, Schedule
from trtq.pipeline.judge.speed import LayerTime, judge_speed

QUICK = ("--rounds", "2", "--seconds", "0.02", "--warmup", "0", "--threads", "1")
LATENCY = Latency(0.1234, 0.25, 17.8, 1234.5, 0.1)


def measured(name: str, **changes: Any) -> Timing:
    runtime = "tensorrt 10.3.0" if changes.get("device") == "cuda" else "ONNX Runtime 1.31"
    plain = Timing(
        name, "fp32", "cpu", runtime, name, 1.0, LATENCY, 12.34, 1000, None, "fp32", 0.0, 1.0,
        Costs(1, 1, None), "", None,
    )  # fmt: skip
    return replace(plain, **changes)


RESULT = Benchmark(
    Machine("Some CPU", 8, ("avx2", "avx512_vnni"), "powersave", "NVIDIA L4", "555.42", "Linux"),
    Conditions(0.5, 0.07, 0.0, (2000.0, 2500.0), (300.0, 1950.0), 2040.0, (41.0, 62.0), ("too hot",)),
    Schedule(), 0, "random numbers", {"x": (8, 3), "rate": ()}, 8,
    (
        measured("fp32", costs=Costs(123_300_000, 1, None), samples_per_s=9010.4),
        measured("[bold]", device="cuda", costs=Costs(1, 1, 2_500_000), speedup=2.5),
        measured("other", device="cuda", speedup=2.5),
    ),
    (Skipped("int8 engine", "it needs a GPU"),), ("a note",), ("a warning",),
)  # fmt: skip


def test_a_result_is_a_table_and_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bench", lambda *targets, **rest: RESULT)
    result = trtq("bench", "m.trtq")
    assert result.exit_code == 0
    assert lines_of(result.stdout) == [
        "model runs in p50 ms p90 ms p99 ms mean ms per second memory speed",
        "fp32 ONNX Runtime 1.31 0.123 0.250 17.8 1,234 9,010 123.3 MB 1",
        "[bold] tensorrt 10.3.0 0.123 0.250 17.8 1,234 12.3 2.5 MB 2.50x",
        "other tensorrt 10.3.0 0.123 0.250 17.8 1,234 12.3 - 2.50x",
        "speed: relative to fp32, median of 10 rounds",
        "inputs: x 8x3, rate scalar of random numbers",
        "Some CPU 8 cores avx2 avx512_vnni 2500 MHz (powersave) load 0.5 before, others used 7%",
        "NVIDIA L4 driver 555.42 300 -> 1950 of 2040 MHz 41 -> 62 C",
        "not measured: int8 engine: it needs a GPU",
        "a note",
    ]
    assert result.stderr == "warning: a warning\n"


def test_the_speed_gate_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def judge(ratios: list[float]) -> Any:
        found = replace(RESULT, speed=(judge_speed(ratios, 1.05, "int8", "fp32"),))

        def measure(*targets: Path, min_speedup: float, **rest: object) -> Benchmark:
            asked.append(min_speedup)
            return found

        monkeypatch.setattr(module, "bench", measure)
        return trtq("bench", "m.trtq", "--min-speedup", "1.05")

    good, open_, bad = judge([1.2] * 10), judge([1.2] * 3), judge([0.8] * 10)
    assert [result.exit_code for result in (good, open_, bad)] == [0, 0, 3]
    measured = "0.80 times as fast as fp32 (0.80 to 0.80 with 95% confidence, 10 rounds)"
    told = f"int8 is {measured}, the gate requires 1.05"
    assert f"speed: FAIL: {told}" in bad.stdout
    assert bad.stderr == f"warning: a warning\nerror: the speed gate failed: {told}\n"
    assert "speed: PASS: int8 is 1.20 times as fast as fp32 (1.20 to 1.20 with 95%" in good.stdout
    assert "speed: UNVERIFIED: int8 is 1.20 times as fast as fp32 (3 rounds, too few" in open_.stdout
    assert asked == [1.05] * 3


def test_layers_are_a_table_with_both_ends_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        LayerTime("[conv]", ("relu",), 1.0, 1.5, 0.25, ("Conv",), ("QLinearConv", "QuantizeLinear")),
        LayerTime("conversions", (), 0.0, 0.125, 0.125, (), ("Mul",)),
        LayerTime("pool", (), 2.0, 1.0, 0.0, ("MaxPool",), ("MaxPool",)),
    ]
    asked: list[bool] = []

    def show(rows: Sequence[LayerTime]) -> list[str]:
        table = LayerTable("int8", "fp32", tuple(rows))

        def measure(*targets: Path, layers: bool, **rest: object) -> Benchmark:
            asked.append(layers)
            return replace(RESULT, layers=(table,))

        monkeypatch.setattr(module, "bench", measure)
        return lines_of(trtq("bench", "m.trtq", "--dumpProfile").stdout)

    shown = show(rows)
    start = shown.index("layer fp32 kernels int8 kernels fp32 ms int8 ms of it converts costs ms") + 1
    assert shown[start : start + 4] == [
        "[conv] +1 Conv QLinearConv, QuantizeLinear 1 1.5 0.250 +0.500",
        "conversions Mul 0.000 0.125 0.125 +0.125",
        "pool MaxPool MaxPool 2 1 0.000 -1.000",
        "all layers 3 2.62 0.375 -0.375",
    ]
    many = [LayerTime(f"n{index}", (), 1.0, 1.0, 0.0, (), ()) for index in range(40)]
    names = [line.split()[0] for line in show(many)]
    assert [name for name in names if re.fullmatch(r"n\d+", name)] == [
        *(f"n{index}" for index in range(20)), *(f"n{index}" for index in range(30, 40)),
    ]  # fmt: skip
    assert any(line.startswith("... 10 layers between (--json has all) 10 10") for line in show(many))
    assert asked == [True] * 3


def test_a_speed_says_beside_what_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    items = (measured("fp32"), measured("int8", speedup=0.5), measured("engine", against="b", speedup=3.0))
    monkeypatch.setattr(module, "bench", lambda *targets, **rest: replace(RESULT, measured=items))
    lines = lines_of(trtq("bench", "m.trtq").stdout)
    assert [line.split(" byte ")[1] for line in lines[1:4]] == ["1", "0.50x of fp32", "3.00x of b"]
    assert lines[4] == "speed: relative to fp32, b, median of 10 rounds"


def test_what_is_not_known_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(
        RESULT,
        machine=Machine("CPU", 2, (), "", "", "", "Linux"),
        conditions=Conditions(0.5, None, None, (), (), None, (), ()),
    )
    monkeypatch.setattr(module, "bench", lambda *targets, **rest: bare)
    assert "CPU 2 cores load 0.5 before" in lines_of(trtq("bench", "m.trtq").stdout)


def test_a_model_is_measured_and_written_as_json(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    result = trtq("bench", model, *QUICK, "--batch", "3", "-o", output, "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.endswith(f"written to {output}\n")
    document = json.loads(output.read_bytes())
    assert document["shapes"] == {"image": [3, 1, 8, 8]}
    assert re.fullmatch(r"the first 3 samples of .*calibration\.npz", document["inputs"])
    assert (document["num_threads"], document["schedule"]["rounds"]) == (1, 2)
    (measured,) = document["measured"]
    assert (measured["name"], measured["precision"], measured["num_runs"] >= 2) == (
        "model.onnx",
        "fp32",
        True,
    )


def test_json_is_one_document_and_quiet_is_quiet(model: Path, tmp_path: Path) -> None:
    shown = json.loads(trtq("bench", model, *QUICK, "--json", "--shapes", "image:2x1x8x8").stdout)
    assert (shown["kind"], shown["num_samples"], shown["inputs"]) == ("bench", 2, "random numbers")
    result = trtq("bench", model, *QUICK, "-q", "-o", tmp_path / "bench.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "bench.json").exists()


def test_an_engine_alone_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trtq.pipeline.bench.runnables.explain_missing_gpu", lambda: "there is no NVIDIA driver"
    )
    (tmp_path / "model.engine").write_bytes(b"plan")
    result = trtq("bench", tmp_path / "model.engine")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr == (
        f"error: {tmp_path / 'model.engine'} needs an NVIDIA GPU to run, and there is no NVIDIA driver here\n"
    )


def test_there_must_be_a_target() -> None:
    result = trtq("bench")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: Missing argument 'TARGETS...'; `trtq bench --help` lists what there is\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("MODEL", "MODEL"), 2, "error: a target is given twice; give each once\n"),
        (("MODEL", "--rounds", "0"), 2, "error: bench takes at least one round, got 0\n"),
        (
            ("MODEL", "--min-speedup", "0"),
            2,
            "error: min_speedup is a ratio above 0 and at most 1000, such as",
        ),
        (("MODEL", "--shapes", "x"), 2, "error: 'x' gives no shapes; write name:1x3x224x224"),
        (("MODEL", "--device", "cuda"), 5, "error: running the model on CUDA needs ONNX Runtime's CUDA"),
        (("MODEL", "-o", "absent/b.json"), 2, "error: cannot write absent/b.json: there is no folder"),
        (("MODEL", "-o", "MODEL"), 2, "is read by this command; choose another file with --output\n"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], code: int, told: str, model: Path) -> None:
    words = [model if word == "MODEL" else word for word in arguments]
    result = trtq("bench", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
