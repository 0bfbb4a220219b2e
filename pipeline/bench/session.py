"""An ONNX model at work in ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.models.session import SessionOptions, open_session, run
from trtq.pipeline.engine.cuda import Cuda


class SessionRun:
    """A model in ONNX Runtime as in production: with all its optimizations.

    Attributes:
        shapes: Of the inputs.
        gpu_bytes: What loading it took of the GPU's memory; None on the CPU.
    """

    def __init__(self, model: Path, feed: Mapping[str, NDArray[Any]], device: str, num_threads: int) -> None:
        """Loads the ONNX file, and runs it once.

        Raises:
            ModelError: ONNX Runtime does not load or run it.
            MissingDependency: There is no GPU, or ONNX Runtime has no CUDA here.
        """
        cuda = Cuda() if device == "cuda" else None
        used = cuda.used_bytes() if cuda is not None else 0
        options = SessionOptions(device, num_threads, fuses_qdq=True)
        self._session = open_session(model, optimize=True, engine=options)
        self._feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self.shapes = {name: array.shape for name, array in feed.items()}
        run(self._session, self._outputs, self._feed)
        self.gpu_bytes = max(0, cuda.used_bytes() - used) if cuda is not None else None

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Returns the milliseconds of runs for about so many seconds, and how many seconds went by.

        The first one, which finds cold caches, is not counted.
        """
        session, outputs, feed = self._session, self._outputs, self._feed
        run(session, outputs, feed)
        times = list[float]()
        start = before = time.perf_counter()
        while not times or before - start < seconds:
            session.run(outputs, feed)
            after = time.perf_counter()
            times.append(1000 * (after - before))
            before = after
        return times, before - start
