"""One candidate in a process of its own: its memory is its own, and its faults end it alone.

It reads `request.json` and `feed.npz`, and answers line by line in JSON: how it was loaded, then a turn for
each line that asks for so many seconds, and at the end, when no more lines come, what it took, and what its
kernels took if they were timed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.memory import find_peak_bytes
from trtq.errors import ArtifactError, MissingDependency, TrtqError
from trtq.pipeline.bench.profiled import ProfiledRun
from trtq.pipeline.bench.session import SessionRun
from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.kernel_times import Profiled
from trtq.pipeline.engine.plan_profile import ProfiledPlan
from trtq.pipeline.engine.plan_run import PlanRun


def main(folder: str) -> None:
    """Serves the request in a folder; what libraries print goes to stderr, so stdout has answers alone."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(Path(folder), sys.stdin, answers)


def serve(place: Path, asked: Iterable[str], answers: IO[str]) -> None:
    """Answers each line with a number of seconds by a line, with one before and one after all of them."""

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        base = find_peak_bytes()
        start = time.perf_counter()
        request = json.loads((place / "request.json").read_text())
        feed = _feed(place / "feed.npz", request["inputs"])
        candidate, facts = _open(request, feed, place)
        shapes = {name: list(shape) for name, shape in candidate.shapes.items()}
        answer(ready=True, load_s=time.perf_counter() - start, base_rss_bytes=base, shapes=shapes, **facts)
        for line in asked:
            times_ms, wall_s = candidate.measure(float(line))
            answer(times_ms=times_ms, wall_s=wall_s)
        timed = [] if isinstance(candidate, SessionRun | PlanRun) else candidate.list_kernels()
        kernels = [asdict(kernel) for kernel in timed]
        answer(peak_rss_bytes=find_peak_bytes(), gpu_bytes=candidate.gpu_bytes, kernels=kernels)
    except TrtqError as error:
        answer(error=type(error).__name__, text=str(error))


def _open(
    request: Mapping[str, Any], feed: Mapping[str, NDArray[Any]] | None, place: Path
) -> tuple[SessionRun | PlanRun | Profiled, dict[str, str]]:
    """Returns the candidate, and what runs it how; what is noted of its kernels goes to `place`."""
    path = Path(request["path"])
    if request["kind"] == "onnx":
        assert feed is not None
        onnxruntime = lazy.require("onnxruntime", None, "running the model")
        facts = {"runtime": f"ONNX Runtime {onnxruntime.__version__}", "graph": ""}
        how = (path, feed, request["device"], request["num_threads"])
        return ProfiledRun(*how, place) if request["profile"] else SessionRun(*how), facts
    plan = path.read_bytes()
    if request["sha256"] and hashlib.sha256(plan).hexdigest() != request["sha256"]:
        raise ArtifactError(f"{path} was changed while it was loaded")
    cuda, reasons = Cuda(), list[str]()
    kind: type[TrtqError] = MissingDependency
    for module in request["modules"]:
        try:
            trt = importlib.import_module(module)
            if request["profile"]:
                engine: PlanRun | ProfiledPlan = ProfiledPlan(trt, plan, feed, cuda)
            else:
                engine = PlanRun(trt, plan, feed, cuda, graph=request["graph"])
            return engine, {"runtime": f"{module} {trt.__version__}", "graph": engine.graph}
        except (ImportError, OSError) as error:
            reasons.append(f"{module} cannot be imported ({error})")
        except ArtifactError as error:
            kind = ArtifactError
            reasons.append(str(error))
    raise kind(f"{path} does not run here: {'; '.join(reasons)}")


def _feed(path: Path, names: list[str] | None) -> dict[str, NDArray[Any]] | None:
    if names is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:  # arr_0, arr_1 and so on: an input may have any name
        return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}
