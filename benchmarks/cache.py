"""How long the calibration cache of a large network takes to read and to write.

    .venv/bin/python benchmarks/cache.py --output benchmarks/results/cache-2026-11-21.json

The bound of issue B: a cache of 5,000 tensors loads in less than 50 ms. The floor is a loop that only splits
the same text at its colons and turns the hex into floats: no header, no checks.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from trtq.calibrators.cache import format_cache, parse_cache, read_cache

BOUND_MS = 50.0


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tensors", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    content = generate(given.tensors)
    cache = parse_cache(content)
    assert format_cache(cache) == content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibration.cache"
        path.write_bytes(content)
        times_ms = measure(
            {
                "floor": lambda: floor(content),
                "read_cache": lambda: read_cache(path),
                "format_cache": lambda: format_cache(cache),
            },
            given.rounds,
        )
    median_ms = {name: statistics.median(times) for name, times in times_ms.items()}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu()},
        "trtq": version("trtq"),
        "tensors": given.tensors,
        "bytes": len(content),
        "rounds": given.rounds,
        "median_ms": {name: round(value, 3) for name, value in median_ms.items()},
        "min_ms": {name: round(min(times), 3) for name, times in times_ms.items()},
        "max_ms": {name: round(max(times), 3) for name, times in times_ms.items()},
        "read_cache_to_floor": round(median_ms["read_cache"] / median_ms["floor"], 2),
        "bound_ms": BOUND_MS,
        "bound_to_read_cache": round(BOUND_MS / median_ms["read_cache"], 1),
        "round_trip": "byte for byte",
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text)


def generate(num_tensors: int) -> bytes:
    """Returns a cache with names and scales as TensorRT writes them for an exported network."""
    generator = random.Random(0)
    names = (
        f"/model.{index // 40}/block.{index % 40}/conv/Conv_output_0"
        if index % 3
        else f"(Unnamed Layer* {index}) [Shuffle]_output"
        for index in range(num_tensors)
    )
    lines = [
        f"{name}: {generator.choice((0, generator.randint(0x38000000, 0x42000000))):x}" for name in names
    ]
    return "\n".join(["TRT-8601-EntropyCalibration2", *lines, ""]).encode()


def floor(content: bytes) -> dict[str, float]:
    """Returns the scales with nothing checked."""
    scales = {}
    for line in content.decode().split("\n")[1:-1]:
        name, _, digits = line.rpartition(": ")
        scales[name] = struct.unpack("!f", bytes.fromhex(digits.zfill(8)))[0]
    return scales


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the times in milliseconds; the calls take turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def cpu() -> str:
    """Returns the name of the processor; empty where Linux does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
