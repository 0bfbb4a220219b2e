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


def test_the_verdict_the_choice_of_formats_and_the_codes_are_those_of_one_process(
    nodes: Any, demo_folder: Path, tmp_path: Path
) -> None:
    """The gate fails, so that layers are raised; workers compare a batch each, wherever they run."""
    data = {name: str(demo_folder / f"{name}.npz") for name in ("calibration", "evaluation")}
    options: dict[str, Any] = {
        "calib_data": data["calibration"],
        "eval_data": data["evaluation"],
        "labels": "labels",
        "eval_samples": 128,
        "backend": "onnxruntime",
    }
    for index, own in enumerate(
        ({"int8": True, "auto": True, "min_cosine": 0.9999999}, {"weight_method": "gptq"})
    ):
        found = []
        for number, workers in enumerate((None, Processes(2), Ray(nodes.address))):
            output = tmp_path / f"{index}{number}.trtq"
            report = trtq.build(demo_folder / "model.onnx", output=output, workers=workers, **options, **own)
            (model,) = output.glob("model.*.onnx") if index else output.glob("model.int8.onnx")
            found.append(
                (report.comparison, report.accuracy, report.auto, report.verdict, model.read_bytes())
            )
        assert found[0] == found[1] == found[2]


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
    words = r"^on the machine [\d.]+: there is no calibration data .*nothing\.npz; give "
    with pytest.raises(DataError, match=words):
        list(Ray(nodes.address).map(call, [str(tmp_path / "nothing.npz")]))


def test_tasks_are_cancelled_when_nobody_wants_them(nodes: Any, wait_until: Wait) -> None:
    results = Ray(nodes.address).map(time.sleep, [0.0, 60.0, 60.0])
    next(iter(results))
    results.close()
    wait_until(lambda: not _list_workers())
