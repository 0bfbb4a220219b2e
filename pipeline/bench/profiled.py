"""A model in ONNX Runtime whose kernels are timed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.models.session import SessionOptions, open_session, run, save
from trtq.pipeline.bench.owners import Owner, find_owners, name_node
from trtq.pipeline.engine.kernel_times import KernelTime, find_midmean

_KERNEL = "_kernel_time"
"""What the name of a kernel's event ends with."""
_MOST_EVENTS = 200_000
"""ONNX Runtime keeps a million events at most, and each takes some hundred bytes of memory."""


class ProfiledRun:
    """A model in ONNX Runtime as in production, but for the time that it takes to note the times.

    Attributes:
        shapes: Of the inputs.
        gpu_bytes: None: it is not asked.
    """

    def __init__(
        self, model: Path, feed: Mapping[str, NDArray[Any]], device: str, num_threads: int, folder: Path
    ) -> None:
        """Loads the ONNX file; writes what is noted to the folder.

        Raises:
            ModelError: ONNX Runtime does not load it.
            MissingDependency: ONNX Runtime has no CUDA here.
        """
        self._folder, path = folder, _name_nodes(model, folder)
        options = SessionOptions(device, num_threads, fuses_qdq=True, profile=folder)
        self._session = open_session(path, optimize=True, engine=options)
        self._owners = find_owners(ir.load(path), optimized := ir.load(folder / "optimized.onnx"))
        self._types = {str(kernel.name): kernel.op_type for kernel in optimized.graph}
        self._feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._runs_left = max(3, _MOST_EVENTS // max(1, len(self._types)))
        self.shapes = {name: array.shape for name, array in feed.items()}
        self.gpu_bytes: int | None = None

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Returns the milliseconds of runs for about so many seconds, none if enough is noted.

        With the seconds that went by.
        """
        start = time.perf_counter()
        times: list[float] = []
        while self._runs_left > 0 and (not times or time.perf_counter() - start < seconds):
            before = time.perf_counter()
            run(self._session, self._outputs, self._feed)
            times.append(1000 * (time.perf_counter() - before))
            self._runs_left -= 1
        return times, time.perf_counter() - start

    def list_kernels(self) -> list[KernelTime]:
        """Returns the kernels in the order of their first run, and ends the notes."""
        events = json.loads(Path(self._session.end_profiling()).read_bytes())
        return list(summarize_events(events, self._types, self._owners))


def summarize_events(
    events: Iterable[Mapping[str, Any]], types: Mapping[str, str], owners: Mapping[str, Owner]
) -> list[KernelTime]:
    """Returns what each kernel takes: the mean of the middle half of its runs, without the first.

    Args:
        events: As ONNX Runtime writes them, with times in microseconds.
        types: The operators of the kernels of the graph. Those in bodies are part of their If, Loop or Scan.
        owners: What each kernel works for.
    """
    times = defaultdict[str, list[float]](list)
    for event in events:
        name = str(event.get("name", "")).removesuffix(_KERNEL)
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL) and name in types:
            times[name].append(float(event["dur"]))
    return [
        KernelTime(
            name, types[name], owners[name].nodes, find_midmean(own[1:] or own) / 1000, owners[name].converts
        )
        for name, own in times.items()
    ]


def _name_nodes(model: Path, folder: Path) -> Path:
    """Returns the file, or a copy in which all nodes have names of their own."""
    loaded = ir.load(model)
    names = [node.name for node in loaded.graph]
    if all(names) and len({*names}) == len(names):
        return model
    taken = set[str]()
    for node in loaded.graph:
        wanted = name_node(node)
        node.name = wanted if wanted not in taken else f"{wanted} of {node.outputs[0].name}"
        taken.add(node.name)
    save(loaded, folder / "named.onnx")
    return folder / "named.onnx"
