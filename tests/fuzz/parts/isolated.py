"""Reads files in a process of its own, so that a crash, a hang or a grab for memory is an answer too."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from trtq.errors import TrtqError

SECONDS = 30
"""What one call may take; the valid files take less than a second."""
_MEMORY_BYTES = 6 << 30  # of addresses: the libraries alone reserve some GB
_MOST_CALLS = 3000
"""Until a new process takes over, since some of what is read is kept."""
_LONGEST = 8100
Call = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one input: it was taken, refused as it should be, or is a fault.

    Attributes:
        kind: Which of the three.
        place: Of a fault: what was raised and where, to know it again.
        words: Of the refusal or the fault.
    """

    kind: Literal["taken", "refused", "fault"]
    place: str = ""
    words: str = ""


class Reader:
    """A process that reads; it is replaced when it dies."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._num_calls = 0

    def read(self, calls: Sequence[Call], folder: Path) -> Answer:
        """Returns what the calls make of a folder: the worst of their answers."""
        if self._num_calls >= _MOST_CALLS:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self._num_calls += 1
        try:
            self._connection.send((calls, folder))
            answer: Answer = self._connection.recv()
        except (EOFError, ConnectionError):
            return self._explain_end()
        return answer

    def close(self) -> int | None:
        """Ends the process, and returns its exit status; negative: the signal that killed it."""
        status = None
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.join()
            status = self._process.exitcode
        self._process = self._connection = None
        self._num_calls = 0
        return status

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._log), daemon=True)
        self._process.start()
        theirs.close()

    def _explain_end(self) -> Answer:
        status = self.close()
        how = f"took over {SECONDS} s" if status == -signal.SIGALRM else f"ended with status {status}"
        return Answer("fault", f"it {how}", self._log.read_text(errors="replace")[-2000:])


def _serve(connection: Connection, log: Path) -> None:
    """Answers until the other side hangs up; whatever else is printed goes to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever code it is in
    with contextlib.suppress(EOFError):
        while True:
            calls, folder = connection.recv()
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            answers = [_try(call, folder) for call in calls]
            order = ("fault", "refused", "taken")
            connection.send(min(answers, key=lambda answer: order.index(answer.kind)))


def _try(call: Call, folder: Path) -> Answer:
    signal.alarm(SECONDS)
    try:
        call(folder)
    except TrtqError as error:
        return _check_words(error, folder)
    except BaseException as error:  # noqa: BLE001 - what is being looked for
        return Answer("fault", _locate(error), "".join(traceback.format_exception(error))[-6000:])
    finally:
        signal.alarm(0)
    return Answer("taken")


def _check_words(error: TrtqError, folder: Path) -> Answer:
    words = str(error)
    longest = max(map(len, words.split("\n")))
    flaw = "is empty" if not words else "is too long" if longest > _LONGEST else ""
    if "\n" in words.replace("\n  ", ""):  # a list of what is wrong is indented
        flaw = "has several lines"
    if not flaw:
        return Answer("refused", words=words)
    text = "".join(traceback.format_exception(error))
    return Answer("fault", f"the message {flaw}: {_locate(error)}", text[-6000:])


def _locate(error: BaseException) -> str:
    """Returns the type of an error, where it left a library for our code, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/fuzz/" not in frame.filename]
    home = f"{os.sep}trtq{os.sep}"
    inside = [frame for frame in ours if home in frame.filename]
    shown = [*inside[-1:], *ours[-1:]]
    return f"{type(error).__name__} at " + ", ".join(
        f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}" for frame in shown
    )
