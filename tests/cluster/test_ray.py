"""Work on a real Ray cluster: the bytes are those of one process, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtq
from trtq.calibrators.ranges import ranges_to_json
from trtq.calibrators.sources import open_batches
from trtq.calibrators.statistics_file import statistics_to_bytes
from trtq.cluster import Ray
from trtq.errors import DataError
from trtq.workers import Processes, Workers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]  # of Ray's own processes and sockets
Wait = Callable[[Callable[[], bool]], None]


def _observe(folder: Path, data: str, workers: Workers | None, **how: Any) -> bytes:
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=data))
    seen = trtq.observe(folder / "model.onnx", spec=spec, how=trtq.ObserveOptions(workers=workers, **how))
    return statistics_to_bytes(seen)


def _list_workers() -> list[int]:
    """Returns the processes of Ray that do a part of the work now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_run"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def _meanwhile(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_statistics_choices_and_sensitivities_are_those_of_one_process(
    nodes: Any, demo_folder: Path, tmp_path: Path
) -> None:
    model, cluster = demo_folder / "model.onnx", Ray(nodes.address)
    assert cluster.count() == 3
    data = str(demo_folder / "calibration.npz")
    assert _observe(demo_folder, data, cluster) == _observe(demo_folder, data, None)
    assert _observe(demo_folder, data, Processes(2)) == _observe(demo_folder, data, None)
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=data, samples=64),
        evaluation=trtq.EvaluationSpec(data=str(demo_folder / "evaluation.npz"), labels="labels", samples=32),
    )
    found = [
        ranges_to_json(trtq.calibrate(model, spec=spec, how=trtq.ObserveOptions(workers=workers)))
        for workers in (None, cluster)
    ]
    assert found[0] == found[1]
    others: tuple[Workers, ...] = (Processes(2), cluster)
    layers = [
        trtq.sensitivity(model, spec=spec, output=tmp_path / f"{index}.json", workers=workers).layers
        for index, workers in enumerate(others)
    ]
    assert layers[0] == layers[1]


def _builds(model: Path, folder: Path, cluster: Ray, **options: Any) -> list[tuple[Any, ...]]:
    """Returns what one process, two processes and a cluster build."""
    found: list[tuple[Any, ...]] = []
    workers: tuple[Workers | None, ...] = (None, Processes(2), cluster)
    for index, item in enumerate(workers):
        output = folder / f"{index}.trtq"
        seen = trtq.build(model, output=output, workers=item, backend="onnxruntime", **options)
        files = [path.read_bytes() for path in sorted(output.glob("model.*.onnx"))]
        found.append((seen.comparison, seen.accuracy, seen.auto, seen.verdict, files))
    return found


def test_the_verdict_and_the_choice_of_formats_are_those_of_one_process(
    nodes: Any, demo_folder: Path, tmp_path: Path
) -> None:
    """The gate fails with every layer in INT8, so that some are raised; workers compare a batch each."""
    one, two, three = _builds(
        demo_folder / "model.onnx",
        tmp_path,
        Ray(nodes.address),
        int8=True,
        auto=True,
        min_cosine=0.99999,
        calib_data=str(demo_folder / "calibration.npz"),
        eval_data=str(demo_folder / "evaluation.npz"),
        labels="labels",
        eval_samples=128,
    )
    assert one[2].kept
    assert one == two == three


def test_codes_of_gptq_are_those_of_one_process(
    nodes: Any, path_of: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((128, 128)).astype(np.float32) for name in ("w", "v")}
    text = "g (float[N, 128] x) => (float[N, 128] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }"
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 128)).astype(np.float32))
    one, two, three = _builds(
        path_of(text, opset=21, **weights),
        tmp_path,
        Ray(nodes.address),
        weights="int4",
        weight_method="gptq",
        calib_data=str(tmp_path / "x.npz"),
    )
    assert one[0][0].cosine < 1
    assert one == two == three


def test_a_worker_and_a_node_that_are_killed_cost_no_result(
    nodes: Any, demo_folder: Path, slow_data: str, wait_until: Wait
) -> None:
    more = nodes.add()

    def kill() -> None:
        wait_until(lambda: len(_list_workers()) >= 3)
        os.kill(_list_workers()[0], signal.SIGKILL)
        time.sleep(1.5)  # so that the node holds results too
        nodes.kill(more)

    killer = _meanwhile(kill)
    found = _observe(demo_folder, slow_data, Ray(nodes.address))
    killer.join()
    assert found == _observe(demo_folder, slow_data, None)


def test_a_driver_that_is_killed_goes_on_from_its_checkpoint(
    nodes: Any, demo_folder: Path, slow_data: str, tmp_path: Path, wait_until: Wait
) -> None:
    checkpoint, output = tmp_path / "c.npz", tmp_path / "s.npz"
    command = [sys.executable, "-m", "trtq", "calibrate", str(demo_folder / "model.onnx"), "--workers", "ray"]
    command += ["--calib-data", slow_data, "--calib-method", "minmax", "-o", str(tmp_path / "r.json")]
    command += [
        "--save-statistics",
        str(output),
        "--checkpoint",
        str(checkpoint),
        "--checkpoint-seconds",
        "0",
    ]
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(checkpoint.exists)
    driver.kill()
    driver.wait()
    assert not output.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"going on from {checkpoint}: " in again.stderr
    assert output.read_bytes() == _observe(demo_folder, slow_data, None)


def test_an_error_on_a_worker_names_its_machine(nodes: Any, tmp_path: Path) -> None:
    call = partial(open_batches, inputs=(), batch_size=1)
    words = r"^on the machine [\d.]+: there is no data .*nothing\.npz; give "
    with pytest.raises(DataError, match=words):
        list(Ray(nodes.address).map(call, [str(tmp_path / "nothing.npz")]))


def test_tasks_are_cancelled_when_nobody_wants_them(nodes: Any, wait_until: Wait) -> None:
    results = Ray(nodes.address).map(time.sleep, [0.0, 60.0, 60.0])
    next(iter(results))
    results.close()
    wait_until(lambda: not _list_workers())
