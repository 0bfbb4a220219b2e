"""What feeding TensorRT's calibrators costs over the bare copies, in memory of the host.

    .venv/bin/python benchmarks/feeding.py --output benchmarks/results/feeding-2026-11-21.json

The bound of issue B: less than 5 % over the copy itself at sizes of real models. The floor is `numpy.copyto`
of the same arrays; `Feeder.next` also iterates the data and checks every name, shape and dtype. The buffers
of both were written once before. The two take turns, also in who is first, so that a change of the machine's
speed meets both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.tensorrt import Feeder

sys.path.append(str(Path(__file__).parents[1].joinpath("tests", "pipeline", "doubles")))
from host_memory import HostMemory

BOUND = 1.05
CASES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "classifier": {"image": (8, 3, 224, 224)},
    "detector": {"images": (1, 3, 640, 640)},
    "two inputs": {"image": (8, 3, 224, 224), "mask": (8, 1, 224, 224)},
    "digits of trtq demo": {"image": (32, 1, 8, 8)},  # tiny: here only the microseconds tell
}
NUM_BATCHES = 32


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu()},
        "trtq": version("trtq"),
        "numpy": np.__version__,
        "rounds": given.rounds,
        "batches_per_round": NUM_BATCHES,
        "bound": BOUND,
        "cases": {name: measure(shapes, given.rounds) for name, shapes in CASES.items()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


def measure(shapes: Mapping[str, tuple[int, ...]], num_rounds: int) -> dict[str, Any]:
    """Returns the time of a batch on both sides, and the median of their ratios in one round."""
    random = np.random.default_rng(0)
    feeds = [
        Feed({name: random.random(shape, np.float32) for name, shape in shapes.items()}, "random", 1)
        for _ in range(NUM_BATCHES + 1)  # the first makes the buffers
    ]
    batches = Batches(lambda: iter(feeds), "random", None)
    floor_us, feeder_us = [], []
    for number in range(num_rounds + 1):  # the first warms up
        times = dict.fromkeys((floor, feeder) if number % 2 else (feeder, floor), 0.0)
        for side in times:
            times[side] = side(batches, shapes) / NUM_BATCHES * 1e6
        floor_us.append(times[floor])
        feeder_us.append(times[feeder])
    ratios = [b / a for a, b in zip(floor_us[1:], feeder_us[1:], strict=True)]
    return {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "floor_us_per_batch": round(statistics.median(floor_us[1:]), 2),
        "feeder_us_per_batch": round(statistics.median(feeder_us[1:]), 2),
        "median_ratio": round(statistics.median(ratios), 4),
    }


def floor(batches: Batches, _: Mapping[str, tuple[int, ...]]) -> float:
    """Returns the seconds of copying every array to a buffer of its input, and nothing else."""
    feeds = iter(batches)
    buffers = {name: array.copy() for name, array in next(feeds).arrays.items()}

    def copy() -> None:
        for feed in feeds:
            for name, buffer in buffers.items():
                np.copyto(buffer, feed.arrays[name])

    return _seconds(copy)


def feeder(batches: Batches, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Returns the seconds of handing every batch to TensorRT."""
    names = list(shapes)
    with HostMemory() as memory:
        fed = Feeder(batches, memory, shapes)
        fed.next(names)

        def feed() -> None:
            while fed.next(names):
                pass

        seconds = _seconds(feed)
        fed.raise_if_wrong()
        assert fed.num_batches == NUM_BATCHES + 1
    return seconds


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
