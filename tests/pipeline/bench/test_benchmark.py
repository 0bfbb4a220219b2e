"""Tests of measuring models and engines beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recording_watcher import RecordingWatcher

from trtq.errors import ModelError, UsageError
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.bench import benchmark as module
from trtq.pipeline.bench.benchmark import Int8Layers, Timing, bench, to_json
from trtq.pipeline.bench.machine import Conditions, Machine
from trtq.pipeline.bench.process import Costs, Request
from trtq.pipeline.bench.runnables import Inputs, Runnable, RunOptions
from trtq.pipeline.bench.turns import Latency, Schedule
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target

QUICK = Schedule(rounds=2, seconds=0.02, warmup_s=0.0)
QUIET = Conditions(0.1, 0.0, 0.0, (), (), None, (), ())
HERE = Machine("CPU", 2, ("avx2",), "", "", "", "Linux")
LATENCY = Latency(1.0, 1.0, 1.0, 1.0, 1.0)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(tmp_path / "c.npz")))
    target = Target(backend="onnxruntime", high_precision="fp16")
    return Path(build(model, spec=spec, target=target).output)


def test_a_build_is_measured_beside_its_float_model(folder: Path, model: Path) -> None:
    told = RecordingWatcher()
    result = bench(folder, options=RunOptions(num_threads=1, batch=4), schedule=QUICK, watcher=told)
    assert [item.name for item in result.measured] == ["fp32", "fp16", "int8"]
    fp32, _, int8 = result.measured
    assert (fp32.against, fp32.speedup, fp32.layers) == ("fp32", None, None)
    assert (int8.against, int8.path) == ("fp32", str(folder / "model.int8.onnx"))
    assert int8.speedup is not None
    assert int8.speedup > 0
    assert int8.layers is not None
    assert int8.layers.quantized == 1
    assert fp32.path == str(model)
    for item in result.measured:
        assert item.num_runs >= 2
        assert item.samples_per_s > 0
        assert item.latency.min_ms <= item.median_ms <= item.latency.p99_ms
        assert item.costs.peak_rss_bytes > item.costs.base_rss_bytes > 0
    assert (result.num_samples, dict(result.shapes)) == (4, {"x": (4, 4)})
    assert not any("placed for TensorRT" in note for note in result.notes)  # it is a build for the CPU
    assert told.stages[-1] == ("Measuring", 6)
    assert sum(told.samples["Measuring"]) == 6
    document = json.loads(to_json(result))
    assert (document["schema_version"], document["kind"]) == (1, "bench")
    assert document["measured"][2]["layers"]["quantized"] == 1
    assert document["machine"]["cores"] >= 1


def test_what_does_not_run_is_left_out_and_told(folder: Path, model: Path) -> None:
    broken = model.with_name("broken.onnx")
    broken.write_bytes((folder / "model.fp16.onnx").read_bytes())
    options = RunOptions(device="cpu")
    runnables = (
        Runnable("good", "fp32", "cpu", Request("onnx", model)),
        Runnable("bad", "fp16", "cpu", Request("onnx", model.with_name("gone.onnx"))),
    )
    feed = {"x": np.ones((1, 4), np.float32)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "list_runnables", lambda *_: (runnables, (), Inputs(feed, "ones", 1)))
        result = bench(model, options=options, schedule=QUICK)
        assert [item.name for item in result.measured] == ["good"]
        assert [item.name for item in result.skipped] == ["bad"]
        assert "ONNX Runtime cannot load the model" in result.skipped[0].reason
        patch.setattr(module, "list_runnables", lambda *_: (runnables[1:], (), Inputs(feed, "ones", 1)))
        with pytest.raises(ModelError, match="ONNX Runtime cannot load the model"):
            bench(model, options=options, schedule=QUICK)


def test_an_engine_alone_tells_its_own_shapes(
    driver_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_file.parent))
    monkeypatch.setattr("trtq.pipeline.bench.runnables.explain_missing_gpu", lambda: "")
    monkeypatch.setattr("trtq.pipeline.bench.runnables.MODULES", {"tensorrt": "running_tensorrt"})
    plan = {"inputs": {"x": [-1, 4]}, "outputs": {"y": [-1, 4]}, "profile": {"x": [[1, 4], [3, 4], [9, 4]]}}
    (tmp_path / "model.engine").write_text(json.dumps(plan))
    result = bench(tmp_path / "model.engine", schedule=QUICK)
    (item,) = result.measured
    assert (item.runtime, item.graph, item.device) == ("running_tensorrt 10.3.0", "yes", "cuda")
    assert (item.costs.gpu_bytes is not None, item.layers) == (True, None)
    assert (result.num_samples, dict(result.shapes), result.inputs) == (3, {"x": (3, 4)}, "ones")
    assert "engines: the time is that of the GPU, by CUDA events, without copies of" in result.notes[0]


# what is compared with what


def contender(
    name: str, precision: str, device: str, kind: str = "onnx", high: str = "", source: str = ""
) -> Runnable:
    return Runnable(name, precision, device, Request(kind, Path(name), device), high, source)  # type: ignore[arg-type]


def test_the_reference_is_fp32_on_the_same_device_else_anywhere_else_the_first() -> None:
    on_cpu, on_gpu = contender("a", "fp32", "cpu"), contender("b", "fp32", "cuda")
    engine, int8 = contender("c", "int8", "cuda", "plan"), contender("d", "int8", "cpu")
    assert module._reference(engine, [on_cpu, on_gpu, engine, int8]) is on_gpu
    assert module._reference(int8, [on_cpu, on_gpu, engine, int8]) is on_cpu
    assert module._reference(engine, [int8, on_cpu, engine]) is on_cpu
    assert module._reference(engine, [int8, engine]) is int8


def test_the_reference_is_of_the_same_model_where_that_is_there() -> None:
    big, small = (contender(name, "fp32", "cpu", source=name) for name in ("r50", "r18"))
    int8, engine = (contender(f"r18 {kind}", "int8", "cuda", kind, "", "r18") for kind in ("onnx", "plan"))
    assert [module._reference(item, [big, small, int8, engine]) for item in (int8, engine)] == [small] * 2


def test_engines_that_run_on_other_shapes_are_not_compared() -> None:
    module._refuse_other_shapes({"a": {"x": (1, 4)}, "b": {"x": (1, 4)}})
    with pytest.raises(
        UsageError, match=r"^a runs on x 1x4, b on x 8x4: their times are not of the same work; g"
    ):
        module._refuse_other_shapes({"a": {"x": (1, 4)}, "b": {"x": (8, 4)}})


# what the figures mean


def measured(name: str, **changes: object) -> Timing:
    plain = Timing(
        name, "fp32", "cpu", "ONNX Runtime", name, 1.0, LATENCY, 1.0, 1000, None, name, 0.0, 1.0,
        Costs(1, 1, None), "", None,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def notes(items: list[Runnable], results: list[Timing], here: Machine = HERE) -> list[str]:
    return list(module._notes(items, results, here))


def test_what_int8_is_on_a_cpu_is_told() -> None:
    item, result = contender("int8", "int8", "cpu", high="fp16"), measured("int8", layers=Int8Layers(2, 11))
    assert notes([item], [result]) == [
        "int8: ONNX Runtime runs 2 of 11 quantized layers in INT8 on this CPU, which has no INT8 "
        "dot-product instructions; the rest of it is FP16: trtq build --backend onnxruntime makes a "
        "model for the CPU",
        "Q/DQ pairs are placed for TensorRT: only its engine on a GPU shows what INT8 gives there",
    ]
    with_vnni = replace(HERE, features=("avx512_vnni",))
    plain = contender("q", "quantized", "cpu")
    assert notes([plain], [measured("q", layers=Int8Layers(11, 11))], with_vnni) == [
        "q: ONNX Runtime runs 11 of 11 quantized layers in INT8 on this CPU, which has avx512_vnni",
    ]


def test_what_fp16_is_on_a_cpu_is_told() -> None:
    item = contender("fp16", "fp16", "cpu")
    told = "fp16: this CPU has no FP16 arithmetic, so ONNX Runtime converts to FP32 and back"
    assert notes([item], [measured("fp16")]) == [told]
    assert notes([item], [measured("fp16")], replace(HERE, features=("asimdhp",))) == []


def test_a_ratio_between_processor_and_gpu_is_told() -> None:
    items = [contender("fp32", "fp32", "cpu"), contender("engine", "int8", "cuda", "plan")]
    results = [measured("fp32"), measured("engine", against="fp32", device="cuda")]
    assert notes(items, results)[1:] == [
        "engine: its speed is relative to fp32 on the CPU; onnxruntime-gpu gives FP32 on the GPU"
    ]


def test_an_engine_without_a_graph_and_few_runs_are_told() -> None:
    item = contender("engine", "int8", "cuda", "plan")
    result = measured("engine", graph="no: CUDA says no", num_runs=9)
    assert notes([item], [result]) == [
        "engine: not run as a CUDA graph, no: CUDA says no",
        "engines: the time is that of the GPU, by CUDA events, without copies of inputs and outputs",
        "engine: p90 and p99 are of 9 runs alone; --seconds makes more",
    ]


def test_a_machine_that_is_not_at_rest_is_told() -> None:
    during = replace(
        QUIET, others_share=0.31, stolen_share=0.05, throttled=("the CPU was throttled 5 times",)
    )
    assert list(module._warnings([measured("int8", spread=0.2)], during)) == [
        "other processes used 31% of the CPU meanwhile; stop them and measure again",
        "other virtual machines took 5% of the CPU meanwhile",
        "throttled: the CPU was throttled 5 times",
        "int8: its rounds differ by 20%; the machine is busy",
    ]
    unknown = replace(QUIET, others_share=None, stolen_share=None)
    assert list(module._warnings([measured("int8")], unknown)) == []
