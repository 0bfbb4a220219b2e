"""Code of the user's and of libraries: its failures become errors, and what it prints is kept away."""

from __future__ import annotations

import io
import logging
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from trtq.errors import ModelError, TrtqError

_MOST_LETTERS = 300
_IN_SCRIPT = "The following operation failed in the TorchScript interpreter."


@contextmanager
def explain_failures(what: str, advice: str) -> Iterator[None]:
    """Raises ModelError for whatever the code inside raises: what failed, why, in which line, what to do.

    Args:
        what: The first words of the message, such as "'nets:net' does not import".
        advice: Its last ones.
    """
    try:
        yield
    except TrtqError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{what}: {type(error).__name__}: {_reason(error)}{_place(error)}; {advice}"
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Keeps what a library logs, prints and warns of from the terminal: what matters is in its errors."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints whole graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """Returns the first line of the error's text; of TorchScript's, which begins with its code, the last."""
    lines = str(error).strip().splitlines() or ["it gives no reason"]
    line = lines[-1] if lines[0].startswith(_IN_SCRIPT) else lines[0]
    return line.strip()[:_MOST_LETTERS]


def _place(error: BaseException) -> str:
    """Returns the last line of the traceback that is neither ours, PyTorch's nor Python's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return f", at {error.filename}, line {error.lineno}: `{(error.text or '').strip()}`"
    modules = [sys.modules[name] for name in ("trtq", "torch") if name in sys.modules]
    foreign = ("<", *(str(Path(str(module.__file__)).parent) for module in modules))
    python = sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        is_python = frame.filename.startswith(python) and "-packages" not in frame.filename
        if not (is_python or frame.filename.startswith(foreign)):
            return f", at {frame.filename}, line {frame.lineno}: `{frame.line}`"
    return ""
