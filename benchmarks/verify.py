"""How fast `trtq verify` hashes a build folder again.

    .venv/bin/python benchmarks/verify.py --output benchmarks/results/verify-2026-11-21.json

The bound of issue G: at least 1 GB/s. The floor is SHA-256 of the same bytes in memory, in one thread: what
the processor and OpenSSL allow. Files are in the page cache; a disk that reads slower is what counts there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from trtq.pipeline.deliver.manifest import NAME, Manifest, to_json
from trtq.pipeline.verify import verify

BOUND_GB_S = 1.0


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the whole folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    block = os.urandom(given.bytes // 8)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        one = write(Path(place) / "one", block, [8])
        several = write(Path(place) / "several", block, [4, 2, 1, 1])
        speeds = measure(
            {
                "floor, one thread": (len(block), lambda: hashlib.sha256(block).digest()),
                "verify, one file": (8 * len(block), lambda: check(one)),
                "verify, four files": (8 * len(block), lambda: check(several)),
            },
            given.rounds,
        )
    median = {name: round(statistics.median(values), 2) for name, values in speeds.items()}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu": cpu("model name"),
            "cores": os.cpu_count(),
            "sha_instructions": "sha_ni" in cpu("flags").split(),
            "load_before": round(load, 2),
        },
        "trtq": version("trtq"),
        "bytes": 8 * len(block),
        "rounds": given.rounds,
        "median_gb_s": median,
        "min_gb_s": {name: round(min(values), 2) for name, values in speeds.items()},
        "max_gb_s": {name: round(max(values), 2) for name, values in speeds.items()},
        "bound_gb_s": BOUND_GB_S,
        "holds": min(median["verify, one file"], median["verify, four files"]) >= BOUND_GB_S,
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text)


def write(folder: Path, block: bytes, counts: list[int]) -> Path:
    """Returns a build folder whose files are so many times the block."""
    folder.mkdir()
    outputs = {}
    for index, count in enumerate(counts):
        sha = hashlib.sha256()
        with (folder / f"{index}.onnx").open("wb") as stream:
            for _ in range(count):
                stream.write(block)
                sha.update(block)
        outputs[f"{index}.onnx"] = sha.hexdigest()
    (folder / NAME).write_bytes(to_json(Manifest({}, outputs, {}, {})))
    return folder


def check(folder: Path) -> None:
    """Verifies a folder that is intact."""
    assert verify(folder).is_intact


def measure(calls: dict[str, tuple[int, Callable[[], object]]], rounds: int) -> dict[str, list[float]]:
    """Returns the speeds in 10^9 bytes a second; the calls take turns, so a busy moment hits all of them."""
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (num_bytes, call) in calls.items():
            start = time.perf_counter()
            call()
            speeds[name].append(num_bytes / 1e9 / (time.perf_counter() - start))
    return speeds


def cpu(key: str) -> str:
    """Returns what Linux tells of the processor; empty where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith(key)), "")


if __name__ == "__main__":
    main()
