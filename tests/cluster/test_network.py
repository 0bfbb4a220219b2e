"""A network that is cut for 20 seconds costs no result: two machines as network namespaces (needs root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import trtq
from trtq.calibrators.statistics_file import statistics_to_bytes

_HEAD = "10.77.0.1"
_LINKS = """
ip netns add {a}; ip netns add {b}
ip link add {a} type veth peer name {b}; ip link set {a} netns {a}; ip link set {b} netns {b}
ip -n {a} addr add 10.77.0.1/24 dev {a}; ip -n {b} addr add 10.77.0.2/24 dev {b}
ip -n {a} link set lo up; ip -n {b} link set lo up; ip -n {a} link set {a} up; ip -n {b} link set {b} up
"""
pytestmark = pytest.mark.slow


def _in(machine: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", machine, *command]


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two machines with a node of one cluster each."""
    pytest.importorskip("ray", reason="needs Ray: make test-ray")
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    place = tempfile.mkdtemp(prefix="ray")  # short: the names of sockets have 107 bytes
    names = f"trtqa{os.getpid() % 10000}", f"trtqb{os.getpid() % 10000}"
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--disable-usage-stats"]
    ray += ["--object-store-memory=200000000"]
    try:
        links = _LINKS.format(a=names[0], b=names[1])
        subprocess.run(["sh", "-ec", links], check=True, timeout=30)
        head = ["--head", f"--node-ip-address={_HEAD}", "--port=6399", "--include-dashboard=false"]
        head += [f"--temp-dir={place}/a"]
        second = [f"--address={_HEAD}:6399", "--node-ip-address=10.77.0.2", f"--temp-dir={place}/b"]
        for name, options in zip(names, (head, second), strict=True):
            subprocess.run(_in(name, *ray, *options), check=True, timeout=60, capture_output=True)
        yield names
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            subprocess.run(["kill", "-9", *found.stdout.split()], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def test_a_network_that_is_cut_for_20_seconds_costs_no_result(
    machines: tuple[str, str], demo_folder: Path, slow_data: str, tmp_path: Path
) -> None:
    head, _ = machines
    output = tmp_path / "s.npz"
    command = [sys.executable, "-m", "trtq", "calibrate", str(demo_folder / "model.onnx"), "--workers", "ray"]
    command += ["--calib-data", slow_data, "--calib-method", "minmax", "-o", str(tmp_path / "r.json")]
    environment = {**os.environ, "RAY_ADDRESS": f"{_HEAD}:6399"}
    driver = subprocess.Popen(_in(head, *command, "--save-statistics", str(output), "-q"), env=environment)
    time.sleep(8)
    assert driver.poll() is None  # it is at work
    subprocess.run(["ip", "-n", head, "link", "set", head, "down"], check=True)
    time.sleep(20)
    subprocess.run(["ip", "-n", head, "link", "set", head, "up"], check=True)
    assert driver.wait(timeout=120) == 0
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=slow_data))
    assert output.read_bytes() == statistics_to_bytes(trtq.observe(demo_folder / "model.onnx", spec=spec))
