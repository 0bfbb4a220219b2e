"""How well `trtq bench` repeats: the demo model and its build, measured several times.

    .venv/bin/python benchmarks/repeat.py --output benchmarks/results/bench-2026-11-21.json

The bound of issue G: within 5 % on an idle machine. How idle it was stands in the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from trtq.models.demo import write_demo
from trtq.pipeline.bench.benchmark import Benchmark, bench
from trtq.pipeline.bench.runnables import Runs
from trtq.pipeline.bench.turns import Schedule
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target

BOUND = 0.05


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        write_demo(Path(place))
        folder = build(Path(place) / "model.onnx", target=Target(backend="onnxruntime")).output
        runs, schedule = Runs(device="cpu", num_threads=given.threads), Schedule(20, given.seconds)
        results = [bench(folder, runs=runs, schedule=schedule) for _ in range(given.times)]
    models = {item.name: model(results, index) for index, item in enumerate(results[0].measured)}
    document = {
        "command": " ".join(["python", *sys.argv]),
        "trtq": version("trtq"),
        "machine": asdict(results[0].machine),
        "schedule": asdict(schedule),
        "threads": given.threads,
        "others_share": [result.conditions.others_share for result in results],
        "models": models,
        "bound": BOUND,
        "holds": all(entry["differ_by"] <= BOUND for entry in models.values()),
    }
    text = json.dumps(document, indent=1) + "\n"
    sys.stdout.write(text)
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text)


def model(results: list[Benchmark], index: int) -> dict[str, list[float | None] | float]:
    """Returns what the times said of one model, and how far they lie apart as a share of their median."""
    medians = [result.measured[index].median_ms for result in results]
    return {
        "median_ms": [round(value, 4) for value in medians],
        "speedup": [result.measured[index].speedup for result in results],
        "differ_by": round((max(medians) - min(medians)) / statistics.median(medians), 4),
    }


if __name__ == "__main__":
    main()
