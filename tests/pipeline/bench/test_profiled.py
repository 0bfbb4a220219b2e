"""Tests of models whose kernels are timed, in ONNX Runtime itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trtq.pipeline.bench.owners import Owner
from trtq.pipeline.bench.process import Request, TimedProcess
from trtq.pipeline.bench.profiled import ProfiledRun, summarize_events
from trtq.pipeline.engine.kernel_times import KernelTime

X = np.ones((2, 4), np.float32)


def test_every_node_of_a_model_has_its_time(path_of: Callable[..., Path], tmp_path: Path) -> None:
    weights = np.eye(4, dtype=np.float32)
    path = path_of(
        "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) [soft] b = Softmax (a) y = Softmax (b) }",
        w=weights,
    )
    profiled = ProfiledRun(path, {"x": X}, "cpu", 1, tmp_path)
    times, _ = profiled.measure(0.01)
    assert (profiled.shapes, profiled.gpu_bytes) == ({"x": (2, 4)}, None)
    assert times
    kernels = profiled.list_kernels()
    assert [kernel.nodes for kernel in kernels] == [("a",), ("soft",), ("y",)]
    assert all(kernel.ms >= 0 and not kernel.converts for kernel in kernels)


def test_a_process_tells_the_times_of_its_kernels(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N, 4] x) => (float[N, 4] y) { [one] a = Softmax (x) [two] y = Softmax (a) }")
    with TimedProcess(Request("onnx", path, num_threads=1, profile=True), {"x": X}) as process:
        assert process.turn(0.0).times_ms
        assert [kernel.nodes for kernel in process.list_kernels()] == [("one",), ("two",)]


def test_the_first_run_and_bodies_do_not_count() -> None:
    def event(name: str, dur: int, kind: str = "Node") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": dur}

    events = [
        event("conv_kernel_time", 900),
        event("model_run", 5000, "Session"),
        event("conv_kernel_time", 10),
        event("in_a_body_kernel_time", 3),
        event("conv_fence_before", 7),
        event("conv_kernel_time", 20),
        event("once_kernel_time", 4),
    ]
    owners = {"conv": Owner(("conv", "relu"), converts=False), "once": Owner((), converts=True)}
    assert summarize_events(events, {"conv": "Conv", "once": "Cast"}, owners) == [
        KernelTime("conv", "Conv", ("conv", "relu"), 0.015),
        KernelTime("once", "Cast", (), 0.004, converts=True),
    ]


def test_nodes_of_the_same_name_are_told_apart(path_of: Callable[..., Path], tmp_path: Path) -> None:
    path = path_of("g (float[N, 4] x) => (float[N, 4] y) { [same] a = Softmax (x) [same] y = Softmax (a) }")
    profiled = ProfiledRun(path, {"x": X}, "cpu", 1, tmp_path)
    profiled.measure(0.0)
    assert [kernel.nodes for kernel in profiled.list_kernels()] == [("same",), ("same of y",)]
