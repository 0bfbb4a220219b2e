"""Runs trtq, and writes the processor seconds that went by inside ONNX Runtime to a file.

python inside.py seconds.txt build model.onnx ...
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CALLS = ("__init__", "run", "run_with_iobinding")
"""Of a session: what opens it, and what runs it."""


def main() -> None:
    """Runs the command that stands behind the name of the file."""
    import onnxruntime

    seconds = list[float]()
    for name in _CALLS:
        call = getattr(onnxruntime.InferenceSession, name)
        setattr(onnxruntime.InferenceSession, name, _time(call, seconds))
    path = Path(sys.argv.pop(1))
    sys.argv[0] = "trtq"
    try:
        runpy.run_module("trtq", run_name="__main__", alter_sys=True)
    finally:
        path.write_text(f"{sum(seconds)}\n")


def _time(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Returns a call that notes the processor seconds of its thread; other threads of a run do not count."""

    def timed(*given: Any, **named: Any) -> Any:
        before = time.thread_time()
        try:
            return call(*given, **named)
        finally:
            seconds.append(time.thread_time() - before)

    return timed


if __name__ == "__main__":
    main()
