"""How failures of the code of others are told, and that its chatter is not heard."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from trtq.errors import ModelError, UsageError
from trtq.models.foreign import explain_failures, silence


def run(code: str, folder: Path) -> Any:
    path = folder / "users.py"
    path.write_text(code)
    return compile(code, str(path), "exec")


def test_a_failure_is_told_with_its_line(tmp_path: Path) -> None:
    code = run("def deep(): return {}['key']\ndeep()\n", tmp_path)
    message = r"^it fails: KeyError: 'key', at .*users.py, line 1: `def deep.*`; mend it$"
    with pytest.raises(ModelError, match=message), explain_failures("it fails", "mend it"):
        exec(code, {})


def test_the_line_of_pythons_own_library_is_not_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"at .*users.py, line 2: `json"),
        explain_failures("it fails", "mend it"),
    ):
        exec(run("import json\njson.loads('{')\n", tmp_path), {})


def test_a_failure_without_words_or_an_exit_is_told() -> None:
    with (
        pytest.raises(ModelError, match="ValueError: it gives no reason"),
        explain_failures("it fails", "mend it"),
    ):
        raise ValueError
    with pytest.raises(ModelError, match="SystemExit: 3"), explain_failures("it fails", "mend it"):
        sys.exit(3)


def test_a_syntax_error_tells_its_own_line(tmp_path: Path) -> None:
    message = r"SyntaxError: .*, at .*users.py, line 2: `def f\(:`"
    with pytest.raises(ModelError, match=message), explain_failures("it fails", "mend it"):
        run("\ndef f(:\n", tmp_path)


def test_the_last_line_of_torchscript_is_the_reason() -> None:
    text = (
        "The following operation failed in the TorchScript interpreter.\nTraceback:\nRuntimeError: too long\n"
    )
    with (
        pytest.raises(ModelError, match="RuntimeError: RuntimeError: too long, at"),
        explain_failures("x", "mend it"),
    ):
        raise RuntimeError(text)


def test_our_own_errors_stay_as_they_are() -> None:
    with pytest.raises(UsageError, match=r"^ours$"), explain_failures("it fails", "mend it"):
        raise UsageError("ours")


def test_nothing_is_heard_and_everything_afterwards(capfd: Any, caplog: Any) -> None:
    before = logging.root.manager.disable
    with silence():
        warnings.warn("no", stacklevel=1)
        logging.getLogger("torch").critical("no")
        sys.stderr.write("no")
    assert capfd.readouterr().err == ""
    assert caplog.messages == []
    assert logging.root.manager.disable == before
