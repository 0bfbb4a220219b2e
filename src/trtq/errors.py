"""The errors that trtq raises, each with the exit code of the command line.

    TrtqError                     never raised itself
    ├── UsageError           2    an option or a settings file is wrong
    ├── ModelError           2    the ONNX file cannot be used
    ├── DataError            2    calibration or evaluation data does not fit
    ├── ArtifactError        2    a file written by trtq is broken, foreign or in the way
    ├── GateError            3    the model was built, and is less accurate or slower than was asked
    ├── BuildError           4    TensorRT did not build the engine
    ├── MissingDependency    5    something that the work needs is not installed
    └── WorkerError          5    the processes or machines that share the work cannot be reached, or died

A message says what is wrong with the name and the value, what was expected, and what to do.
"""

from __future__ import annotations

import re
from typing import ClassVar

_STRAY = re.compile(r"\n(?!  )")
_LONGEST_LINE = 8000
_MOST_WORDS = 300


class TrtqError(Exception):
    """An expected failure, with the exit code of the command that meets it.

    The message has one line; further ones are indented. Names from files may hold anything: the ends of lines
    in them are shown, and very long lines are shortened in the middle.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        lines = _STRAY.sub(r"\\n", message).split("\n")
        super().__init__("\n".join(_shorten(line, _LONGEST_LINE) for line in lines))


class UsageError(TrtqError):
    """An option or a settings file is wrong."""

    exit_code = 2


class ModelError(TrtqError):
    """The ONNX file cannot be used."""

    exit_code = 2


class DataError(TrtqError):
    """Calibration or evaluation data does not fit the model."""

    exit_code = 2


class ArtifactError(TrtqError):
    """A file written by trtq is broken, foreign or in the way."""

    exit_code = 2


class GateError(TrtqError):
    """The model was built, and is less accurate or slower than was asked or runs in other formats."""

    exit_code = 3


class BuildError(TrtqError):
    """TensorRT did not build the engine; the message keeps its own lines."""

    exit_code = 4


class MissingDependency(TrtqError):  # noqa: N818 - reads as what it is
    """Something that the work needs is not installed."""

    exit_code = 5


class WorkerError(TrtqError):
    """The processes or machines that share the work cannot be reached, or died."""

    exit_code = 5


def quote(error: BaseException) -> str:
    """Returns the words of a library's error in one short line, with its type where they say little."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    words = " ".join((getattr(error, "strerror", None) or str(error)).split())
    says_little = not words or isinstance(error, LookupError | AttributeError | TypeError | AssertionError)
    return _shorten(f"{type(error).__name__}: {words}" if says_little else words, _MOST_WORDS)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
