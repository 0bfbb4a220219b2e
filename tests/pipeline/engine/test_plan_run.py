"""Tests of an engine at work, over a TensorRT whose engines double their input."""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import running_tensorrt
from running_tensorrt import IExecutionContext, read_floats

from trtq.errors import ArtifactError
from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.plan_run import PlanRun

STATIC = {"inputs": {"x": [2, 4]}, "outputs": {"y": [2, 4]}}
DYNAMIC = {**STATIC, "inputs": {"x": [-1, 4]}, "profile": {"x": [[1, 4], [3, 4], [8, 4]]}}
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def opened(driver: Any, record: dict[str, Any], feed: Any = None, *, graph: bool = False) -> PlanRun:
    plan = json.dumps(record).encode()
    return PlanRun(running_tensorrt, plan, feed, Cuda(driver.path), graph=graph)


def context() -> IExecutionContext:
    return IExecutionContext.made[0]


def test_an_engine_reads_its_input_and_writes_its_output(driver: Any) -> None:
    engine = opened(driver, STATIC, {"x": X})
    np.testing.assert_array_equal(read_floats(context().addresses["y"], (2, 4)), 2 * X)
    assert (engine.shapes, engine.graph) == ({"x": (2, 4)}, "not asked for")
    assert engine.gpu_bytes >= 0


def test_every_run_is_timed_but_the_first_of_a_turn(driver: Any) -> None:
    engine = opened(driver, STATIC, {"x": X})
    before = context().runs
    times_ms, wall_s = engine.measure(0.05)
    assert len(times_ms) == context().runs - before - 2 >= 1
    assert wall_s >= 0.05
    assert 1000 * wall_s >= sum(times_ms)
    assert len(engine.measure(0.0)[0]) == 1


def test_a_graph_is_captured_once_and_launched(driver: Any) -> None:
    before = driver.count("launches")
    engine = opened(driver, STATIC, {"x": X}, graph=True)
    assert engine.graph == "yes"
    runs = context().runs
    times_ms, _ = engine.measure(0.01)
    assert (context().runs, driver.count("launches") - before) == (runs, len(times_ms) + 2)


def test_an_engine_that_cannot_be_captured_runs_without(driver: Any) -> None:
    driver.fail("cuStreamEndCapture")
    engine = opened(driver, STATIC, {"x": X}, graph=True)
    assert engine.graph == "no: CUDA says CUDA_ERROR_UNKNOWN (999) in cuStreamEndCapture"
    runs = context().runs
    engine.measure(0.0)
    assert context().runs == runs + 3


def test_without_a_feed_the_usual_shapes_are_taken(driver: Any) -> None:
    assert opened(driver, DYNAMIC).shapes == {"x": (3, 4)}
    np.testing.assert_array_equal(read_floats(context().addresses["y"], (3, 4)), 2.0)
    assert opened(driver, STATIC).shapes == {"x": (2, 4)}


def test_what_is_read_on_the_host_stays_there(driver: Any) -> None:
    record = {**STATIC, "inputs": {"x": [2, 4], "sizes": [2]}, "host": ["sizes"]}
    engine = opened(driver, record, {"x": X, "sizes": np.array([5.0, 7.0], np.float32)})
    np.testing.assert_array_equal(read_floats(context().addresses["sizes"], (2,)), [5, 7])
    assert engine._kept[0].ctypes.data == context().addresses["sizes"]


def test_kernels_of_tensorrt_rtx_are_compiled_before_they_are_timed(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace()
    strategies = SimpleNamespace(EAGER="eager")
    monkeypatch.setattr(
        running_tensorrt, "DynamicShapesKernelSpecializationStrategy", strategies, raising=False
    )
    monkeypatch.setattr(
        running_tensorrt.ICudaEngine, "create_runtime_config", lambda _: config, raising=False
    )
    opened(driver, STATIC, {"x": X})
    assert context().config == (config,)
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"


OURS = (
    running_tensorrt.Runtime,
    running_tensorrt.ICudaEngine,
    running_tensorrt.EngineInspector,
    running_tensorrt.IProfiler,
    IExecutionContext,
)


def test_the_names_of_tensorrt_rtx_are_those_of_its_bindings() -> None:
    trt: ModuleType = pytest.importorskip("tensorrt_rtx")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert trt.IProfiler.report_layer_time
    assert trt.LayerInformationFormat.JSON
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    for ours in OURS:
        names = {name for name in vars(ours) if not name.startswith("_")} - {"made"}
        assert {name for name in names if not hasattr(getattr(trt, ours.__name__), name)} == set()
    assert hasattr(trt.ICudaEngine, "create_runtime_config")
    assert hasattr(trt.Runtime, "engine_host_code_allowed")
    assert trt.nptype(trt.DataType.FLOAT) is np.float32
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert set(trt.TensorLocation.__members__) == {"DEVICE", "HOST"}


def test_inputs_are_converted_to_the_engines_types(driver: Any) -> None:
    opened(driver, STATIC, {"x": X.astype(np.int64)})
    np.testing.assert_array_equal(read_floats(context().addresses["x"], (2, 4)), X)
    opened(driver, {**STATIC, "bf16": ["x"]}, {"x": X})
    np.testing.assert_array_equal(read_floats(context().addresses["x"], (2, 4)), X)


@pytest.mark.parametrize(
    ("record", "feed", "told"),
    [
        ("x", None, r"^running_tensorrt 10\.3\.0 does not load it: not a plan$"),
        ({"fails": "context"}, None, r"^running_tensorrt 10\.3\.0 gives it no context: it gave no reason$"),
        ({"fails": "shapes"}, None, r"^the engine's shapes do not follow from the inputs without y$"),
        ({"fails": "run"}, None, r"^the engine does not run: out of memory$"),
        ({"bf16": ["x"]}, None, r"^input x of the engine cannot be generated: .*; give its model too$"),
        ({}, {"z": X}, r"^the engine takes x, it was given z$"),
        (
            DYNAMIC,
            {"x": np.ones((9, 4), np.float32)},
            r"^the engine has no profile for x \(9, 4\): \(9, 4\) is outside of the profile$",
        ),
    ],
)
def test_what_an_engine_does_not_do_is_told(record: Any, feed: Any, told: str, driver: Any) -> None:
    plan = b"{" if record == "x" else json.dumps({**STATIC, **record}).encode()
    with pytest.raises(ArtifactError, match=told):
        PlanRun(running_tensorrt, plan, feed, Cuda(driver.path), graph=False)
