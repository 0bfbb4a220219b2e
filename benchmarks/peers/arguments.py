"""The command line of every peer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feeds import read_feeds
from numpy.typing import NDArray


@dataclass(frozen=True)
class Given:
    """What a peer is asked to do; `output` is None if it is only to calibrate."""

    model: Path
    data: Path
    method: str
    output: Path | None
    batch_size: int


def given(methods: Sequence[str]) -> Given:
    """Returns the arguments of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["calibrate", "quantize"])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("method", choices=methods)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--batch-size", type=int, default=1)
    read = parser.parse_args()
    if (read.output is None) != (read.what == "calibrate"):
        parser.error("quantize needs an output, calibrate has none")
    return Given(read.model, read.data, read.method, read.output, read.batch_size)


@contextmanager
def timed() -> Iterator[None]:
    """Prints how long the work itself took, without the start of Python and the imports."""
    start = time.perf_counter()
    yield
    print(f"work_s {time.perf_counter() - start:.4f}")


class Reader:
    """The data as `onnxruntime.quantization.CalibrationDataReader` gives it."""

    def __init__(self, data: Path, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size
        self.rewind()

    def get_first(self) -> dict[str, NDArray[Any]]:
        """Returns the first feed again; Model Optimizer asks for it."""
        return next(read_feeds(self._data, self._batch_size))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Returns the next feed, None at the end."""
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Starts again."""
        self._feeds: Iterator[dict[str, NDArray[Any]]] = read_feeds(self._data, self._batch_size)
