"""The processes that candidates run in, as the one that measures sees them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.bench.turns import Turn
from trtq.pipeline.engine.kernel_times import KernelTime
from trtq.pipeline.engine.process import child_command, describe_exit, raise_error
from trtq.temporary import open_temporary_folder

_CHILD = "trtq.pipeline.bench.child"


@dataclass(frozen=True, slots=True)
class Request:
    """What a process runs: an ONNX model on a device with so many threads (0: all cores), or a plan.

    Attributes:
        modules: For a plan: the Python modules to try, `tensorrt` and `tensorrt_rtx`.
        graph: For a plan: whether it is launched as a CUDA graph, where that is possible.
        sha256: That the plan must have; empty: any.
        profile: Whether each kernel is timed, which takes longer.
    """

    kind: Literal["onnx", "plan"]
    path: Path
    device: str = "cpu"
    num_threads: int = 0
    modules: tuple[str, ...] = ()
    graph: bool = True
    sha256: str = ""
    profile: bool = False


@dataclass(frozen=True, slots=True)
class Costs:
    """The most that a process held, what it held before it loaded anything, and what it took of a GPU."""

    peak_rss_bytes: int
    base_rss_bytes: int
    gpu_bytes: int | None


class TimedProcess:
    """A process with a model or engine that is loaded; a context manager that ends it.

    Attributes:
        runtime: What runs it, with its version.
        graph: Of an engine: "yes" where it runs as a CUDA graph, else why not; empty for a model.
        shapes: Of the inputs.
        load_s: What loading and the first run took.
    """

    def __init__(self, request: Request, feed: Mapping[str, NDArray[Any]] | None) -> None:
        """Starts the process and waits until it has run once; without a feed an engine makes up its inputs.

        Raises:
            TrtqError: What the process raised: the model or plan does not run here.
            ArtifactError: The process crashed, or there is no room for its request.
        """
        with ExitStack() as stack:
            try:
                place = stack.enter_context(open_temporary_folder())
                _write(place, request, feed)
                self._errors = stack.enter_context((place / "stderr").open("w+"))
            except OSError as error:
                raise ArtifactError(
                    f"cannot write temporary files of bench: {error.strerror}; make room, or set TMPDIR to "
                    f"another folder"
                ) from error
            self._path = request.path
            pipe, command = subprocess.PIPE, child_command(_CHILD, place)
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
            stack.callback(self._stop)
            self.pid = self._process.pid
            answer = self._read_answer()
            self.runtime, self.graph = str(answer["runtime"]), str(answer["graph"])
            self.shapes = {name: tuple(shape) for name, shape in answer["shapes"].items()}
            self.load_s, self._base = float(answer["load_s"]), int(answer["base_rss_bytes"])
            self._stack = stack.pop_all()

    def __enter__(self) -> TimedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turn(self, seconds: float) -> Turn:
        """Returns runs for about so many seconds.

        Raises:
            TrtqError: It fails, or the process crashed.
        """
        with suppress(BrokenPipeError):  # the missing answer says why
            self._input.write(f"{seconds}\n")
            self._input.flush()
        answer = self._read_answer()
        return Turn(tuple(answer["times_ms"]), float(answer["wall_s"]))

    def finish(self) -> Costs:
        """Returns what it took, and ends the process."""
        answer = self._end()
        return Costs(answer["peak_rss_bytes"], self._base, answer["gpu_bytes"])

    def list_kernels(self) -> list[KernelTime]:
        """Returns what its kernels took, if they were timed, and ends the process."""
        return [
            KernelTime(**{**kernel, "nodes": tuple(kernel["nodes"])}) for kernel in self._end()["kernels"]
        ]

    def _end(self) -> dict[str, Any]:
        self._input.close()
        return self._read_answer()

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _stop(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):  # a question that a dead process never read
            self._input.close()
        with self._process:  # which closes the pipes and waits
            pass

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            how = describe_exit(self._process.wait())
            self._errors.seek(0)
            words = " ".join(self._errors.read().split())[-600:] or "none"
            raise ArtifactError(
                f"{self._path} cannot be measured, its process {how}; its last output: {words}"
            )
        answer: dict[str, Any] = json.loads(line)
        raise_error(answer)
        return answer


def _write(place: Path, request: Request, feed: Mapping[str, NDArray[Any]] | None) -> None:
    """Writes what the process reads."""
    names = list(feed) if feed is not None else None
    (place / "request.json").write_text(json.dumps({**asdict(request), "inputs": names}, default=str))
    if feed is not None:
        np.savez(place / "feed.npz", *feed.values())
