r"""What sharing work over a Ray cluster costs a task, and how far it scales: measured, then simulated.

    pip install -e '.[ray]'
    .venv/bin/python benchmarks/scale.py model.onnx calibration.npz --output benchmarks/results/scale.json

A cluster of one node with one core is started here for the measurement, and ended. One pass over the data
by this process, and one by a worker of the cluster, tell what a worker needs longer than this process. Passes
in few and in many parts tell what a part costs beside its samples, and a pass over one feed what a worker
needs before its first part (fetching the model, looking at the first feed, opening a session). Empty tasks
and a merge tell what the driver does for each part (handing it out, taking and adding its counts).

Then a pass of an hour on one core is simulated for 1 to 256 workers: parts are handed out in order, each to
the first worker that is free; the driver does one thing at a time. Where the driver saturates is the number
of workers at which it works all the time.

The layers of a net of 60 MatMul are measured by one process of one core, by two and by four: `trtq
sensitivity`. Seconds are told of one and two. What four need if each had a core of its own follows from
processor seconds: those of the driver, then a quarter of those of the four, which get as many layers each.
What the driver holds is the largest resident memory of processes of their own that take and add the counts of
4 to 256 parts.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tools import circumstances

import trtq
from trtq.calibrators.observe import PassControl
from trtq.calibrators.parts import Checkpoint, SharedPass, observe_parts
from trtq.calibrators.statistics_file import merge_statistics, statistics_to_bytes
from trtq.cluster import Ray
from trtq.models.packed import pack
from trtq.pipeline.calibrate import CalibrationSetup, open_calibration
from trtq.pipeline.calibrate.data import ObserveOptions
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.progress import Silent
from trtq.workers import Processes, limit_cores

_MEASURED = ("pass", "sensitivity", "driver")
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PASS_SECONDS = 3600.0
_PARTS_EACH = 4
_ROUNDS = 3
_FEW, _MANY = 4, 16
_LAYERS, _WIDTH, _SAMPLES = 60, 256, 256
_PARTS = (4, 16, 64, 256)
_DRIVER = """
import sys
from dataclasses import replace
from trtq.calibrators.memory import find_peak_bytes
from trtq.calibrators.statistics_file import merge_statistics, read_statistics
merged, count = None, int(sys.argv[2])
for part in range(1, count + 1):
    seen = read_statistics(sys.argv[1])
    seen = replace(seen, source=replace(seen.source, num_shards=count), shards=frozenset({part}))
    merged = seen if merged is None else merge_statistics([merged, seen], ["before", "this"])
print(find_peak_bytes())
"""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: of the driver for a part, of a worker once, and of a worker for a part beside its samples."""

    driver_s: float
    start_s: float
    part_s: float


def main() -> None:
    """Measures, simulates and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", nargs="*", choices=_MEASURED, default=_MEASURED)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"circumstances": circumstances(("trtq",))}
    if "pass" in arguments.measure:
        measured = measure(arguments.model, arguments.data)
        costs = Costs(measured["driver_s"], measured["start_s"], measured["part_s"])
        result["measured"] = measured
        result["saturates_at_workers"] = (_PASS_SECONDS / _PARTS_EACH) / costs.driver_s
        result["simulated"] = [simulate(costs, count) for count in WORKERS]
    if "sensitivity" in arguments.measure:
        result["sensitivity"] = measure_sensitivity()
    if "driver" in arguments.measure:
        result["driver_mb"] = measure_driver(arguments.model, arguments.data)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in result.get("simulated", ()):
        print(f"{row['workers']:4} workers: {row['seconds']:8.1f} s, {row['speedup']:6.1f}x")


def simulate(costs: Costs, count: int) -> dict[str, Any]:
    """Returns how long a pass takes with so many workers, and how many times faster than with one process."""
    parts = _PARTS_EACH * count
    each = _PASS_SECONDS / parts + costs.part_s
    free, driver, ends = [costs.start_s] * count, 0.0, list[float]()
    for _ in range(parts):
        driver += costs.driver_s / 2  # handing out
        start = max(driver, heapq.heappop(free))
        heapq.heappush(free, start + each)
        ends.append(start + each)
    finished = driver
    for end in ends:  # in order, as results are taken
        finished = max(finished, end) + costs.driver_s / 2
    return {"workers": count, "seconds": finished, "speedup": _PASS_SECONDS / finished}


def measure(model: Path, data: Path) -> dict[str, Any]:
    """Returns what was measured on a cluster of one core."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        workers = Ray(str(cluster.address))
        list(workers.map(abs, range(4)))  # the worker starts, and imports trtq
        empty = _median(lambda: list(workers.map(abs, range(64)))) / 64
        spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(data)))
        limit_cores(1)
        observe = partial(trtq.observe, model, spec=spec)
        parts = [observe(how=ObserveOptions(shard=(index, 2))) for index in (1, 2)]
        merge = _median(lambda: merge_statistics(parts, ["one", "two"]))
        here, there = [], []
        for _ in range(_ROUNDS):
            here.append(_time(observe))
            there.append(_time(lambda: observe(how=ObserveOptions(workers=workers))))
        subject = open_calibration(model, spec=spec)
        one = subject.batches.first(1)
        few, many, start = (
            _median(partial(_observe_in_parts, replace(subject, batches=batches), workers, number))
            for batches, number in ((subject.batches, _FEW), (subject.batches, _MANY), (one, 1))
        )
        return {
            "pass_here_s": here,
            "pass_by_worker_s": there,
            "worker_to_here": statistics.median(b / a for a, b in zip(here, there, strict=True)),
            "empty_task_s": empty,
            "merge_s": merge,
            "driver_s": empty + merge,
            "start_s": start,
            "part_s": max(0.0, (many - few) / (_MANY - _FEW)),
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def _observe_in_parts(subject: CalibrationSetup, workers: Ray, number: int) -> None:
    tensors = tuple(subject.placement.activations)
    packed = pack(without_fp4(subject.graph.model))
    work = SharedPass(packed, subject.graph.sha256, tensors, subject.batches, PassControl(), number)
    observe_parts(work, workers, Checkpoint(), Silent())


def measure_sensitivity() -> dict[str, Any]:
    """Returns what one process, two and four take, of a core each."""
    limit_cores(1)
    with tempfile.TemporaryDirectory() as place:
        model, data = Path(place, "net.onnx"), Path(place, "data.npz")
        onnx.save(_make_net(), model)
        rng = np.random.default_rng(0)
        np.savez(data, x=rng.normal(size=(_SAMPLES, _WIDTH)).astype(np.float32))
        spec = trtq.ModelSpec(
            calibration=trtq.CalibrationSpec(data=str(data), method="minmax", batch_size=8),
            quantization=trtq.QuantizationSpec(repair=("none",)),
        )

        def take(number: int) -> float:
            output = Path(place, "found.json")
            output.unlink(missing_ok=True)
            workers = Processes(number) if number > 1 else None
            return _time(lambda: trtq.sensitivity(model, spec=spec, output=output, workers=workers))

        def spend(number: int) -> tuple[float, float]:
            """Returns the processor seconds of the driver, and of the processes together."""
            before, driver = _read_processes(), time.process_time()
            take(number)
            driver = time.process_time() - driver
            after = _read_processes()
            return driver, sum(after.values()) - sum(before[pid] for pid in after)

        take(2)  # the processes start
        rounds = [(take(1), take(2)) for _ in range(_ROUNDS)]
        take(4)
        spent = [(*spend(1), *spend(4)) for _ in range(_ROUNDS)]
    one, two = (statistics.median(each) for each in zip(*rounds, strict=True))
    fours = [{"one": alone, "driver": driver, "four": four} for alone, _, driver, four in spent]
    return {
        "layers": _LAYERS,
        "rounds_s": rounds,
        "two_times": one / two,
        "processor_s": fours,
        "four_times": statistics.median(each["one"] / (each["driver"] + each["four"] / 4) for each in fours),
    }


def _read_processes() -> dict[int, float]:
    """Returns the processor seconds of the processes that do the work, by their number."""
    found = dict[int, float]()
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        found[int(process.pid or 0)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _make_net() -> onnx.ModelProto:
    rng, nodes, weights = np.random.default_rng(0), list[onnx.NodeProto](), list[onnx.TensorProto]()
    last = "x"
    for index in range(_LAYERS):
        weight = rng.normal(0, (2 / _WIDTH) ** 0.5, (_WIDTH, _WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], name=f"layer{index}"))
        last = f"r{index}"
        nodes.append(helper.make_node("Relu", [f"m{index}"], [last], name=f"relu{index}"))
    ends = [helper.make_tensor_value_info(name, 1, ["N", _WIDTH]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure_driver(model: Path, data: Path) -> dict[str, float]:
    """Returns what a process holds that merges so many parts, in 10^6 bytes."""
    with tempfile.TemporaryDirectory() as place:
        part = Path(place, "part.npz")
        spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(data)))
        part.write_bytes(
            statistics_to_bytes(trtq.observe(model, spec=spec, how=ObserveOptions(shard=(1, 16))))
        )
        held = {}
        for count in _PARTS:
            command = [sys.executable, "-c", _DRIVER, str(part), str(count)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            held[str(count)] = int(found.stdout) / 1e6
    return held


def _time(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(work: Callable[[], Any]) -> float:
    return statistics.median(_time(work) for _ in range(_ROUNDS))


if __name__ == "__main__":
    main()
