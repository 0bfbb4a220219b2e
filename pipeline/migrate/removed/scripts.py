"""`trtq migrate --check`: what a script uses that TensorRT 10 and 11 removed, and what to do instead.

Read are Python scripts, and the command lines of trtexec and Polygraphy in shell scripts, Makefiles,
Dockerfiles and YAML files. Nothing is run, imported or written.
"""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtq.errors import UsageError
from trtq.pipeline.migrate.removed.calls import find_uses
from trtq.pipeline.migrate.removed.commands import Use, search_text

FindingKind = Literal["removed", "unreadable", "skipped"]

_MOST_BYTES = 2 << 20
_MOST_CODE = 120
_OUTSIDE = frozenset({"node_modules", "site-packages", "dist-packages"})
_HIDDEN_BUT_READ = frozenset({".github", ".gitlab", ".circleci", ".buildkite", ".ci", ".devcontainer"})
_PYTHON = (".py", ".pyw")
_TEXT = (".sh", ".bash", ".zsh", ".yaml", ".yml", ".mk", ".dockerfile")
_TEXT_NAMES = re.compile(r"(GNU)?[Mm]akefile(\..*)?|(Docker|Container)file(\..*)?|.*\.(Docker|Container)file")
_OUR_WORDS = re.compile(rb"trt|tensorrt|polygraphy", re.IGNORECASE)
_SHEBANG = re.compile(rb"#!.*\b(?:(python)|(?:ba|da|z|k)?sh)")


@dataclass(frozen=True, slots=True)
class ScriptFinding:
    """One place in a script, or one file or folder that was not read.

    Attributes:
        path: The file or folder.
        line: From 1; 0 for what was not read, unless its syntax was wrong there.
        column: From 1, in characters; 0 as the line.
        code: The line, without its indentation; shortened where it is very long.
        name: What was removed, as "BuilderFlag.INT8"; of what was not read: the reason.
        since: The first release without it: "10.0" or "11.0"; "" for what was not read.
        advice: What trtq and TensorRT 11 offer instead, or what to do about the file.
        guarded: It runs only on a TensorRT that still has it: behind hasattr, a version check or an except.
        kind: "removed"; "unreadable" for a file that should have been read; "skipped" for what is left out.
    """

    path: Path
    line: int
    column: int
    code: str
    name: str
    since: str = ""
    advice: str = ""
    guarded: bool = False
    kind: FindingKind = "removed"


class _NotReadError(Exception):
    """A file is not read; the message is the reason."""

    def __init__(self, reason: str, *, line: int = 0, kind: FindingKind = "unreadable") -> None:
        super().__init__(reason)
        self.line = line
        self.kind = kind


def check_scripts(path: Path) -> tuple[ScriptFinding, ...]:
    """Returns what a script, or every script below a folder, uses that TensorRT 10 or 11 removed.

    In a folder, files that cannot be read become findings of the kind "unreadable", and what is left out
    becomes findings of the kind "skipped": hidden folders, virtual environments, installed packages, links to
    folders, notebooks, binary files, files of more than 2 MiB.

    Args:
        path: A file or a folder.

    Returns:
        In the order of the paths, and in a file in the order of the lines.

    Raises:
        UsageError: There is no such path, or it is a file that cannot be read or is not of a kind to check.
    """
    try:
        if path.is_dir():
            return tuple(finding for file in _below(path) for finding in _listed(file))
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}")
        language = _language(path)
        if language == "none":
            raise _NotReadError(
                "expected a script of Python or a shell, a Makefile, a Dockerfile, a YAML file, or a folder"
            )
        return tuple(_findings(path, language, _content(path)))
    except _NotReadError as error:
        place = f", line {error.line}" if error.line else ""
        raise UsageError(f"cannot check {path}{place}: {error}") from error
    except OSError as error:  # of the path itself: a folder above it is closed, its name is too long
        raise UsageError(f"cannot check {path}: {error.strerror or error}") from error


def _listed(found: Path | ScriptFinding) -> Iterator[ScriptFinding]:
    """Yields the findings of one file of a folder."""
    if isinstance(found, ScriptFinding):
        yield found
        return
    try:
        language = _language(found)
        content = _content(found) if language != "none" else b""
        if _OUR_WORDS.search(content):  # most files of a folder are of no interest, and need not be parsed
            yield from _findings(found, language, content)
    except _NotReadError as error:
        yield _not_read(found, str(error), error.kind, line=error.line)


def _below(folder: Path) -> Iterator[Path | ScriptFinding]:
    """Yields the files below a folder, in the order of their paths, and what is skipped."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield _not_read(folder, error.strerror or str(error), "unreadable")
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name == "__pycache__":
            continue
        if entry.is_dir(follow_symlinks=False):
            reason = _reason_to_skip(path)
            if reason is None:
                yield from _below(path)
            else:
                yield _not_read(path, reason)
        elif entry.is_symlink() and (reason := _reason_to_skip_link(path)):
            yield _not_read(path, reason)
        elif path.suffix == ".ipynb":
            yield _not_read(
                path, "a notebook", advice="write it as a script: `jupyter nbconvert --to script`"
            )
        else:
            yield path


def _reason_to_skip(folder: Path) -> str | None:
    if (folder / "pyvenv.cfg").is_file():
        return "a virtual environment"
    if folder.name in _OUTSIDE or folder.name.endswith(".egg-info"):
        return "installed or generated files"
    if folder.name.startswith(".") and folder.name not in _HIDDEN_BUT_READ:
        return "a hidden folder"
    return None


def _reason_to_skip_link(link: Path) -> str | None:
    try:
        mode = link.stat().st_mode
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    return "a link to a folder" if stat.S_ISDIR(mode) else None


def _not_read(
    path: Path,
    reason: str,
    kind: FindingKind = "skipped",
    *,
    line: int = 0,
    advice: str = "it was not checked",
) -> ScriptFinding:
    return ScriptFinding(path, line, int(line > 0), "", reason, advice=advice, kind=kind)


_Language = Literal["python", "text", "none"]


def _language(path: Path) -> _Language:
    """Returns how a file is read: by its name, or by its first line where it has no suffix."""
    if path.suffix in _PYTHON:
        return "python"
    if path.suffix in _TEXT or _TEXT_NAMES.fullmatch(path.name):
        return "text"
    if path.suffix or not path.is_file():
        return "none"
    try:
        with path.open("rb") as stream:
            shebang = _SHEBANG.match(stream.readline(200))
    except OSError as error:
        raise _NotReadError(error.strerror or str(error)) from error
    if shebang is None:
        return "none"
    return "python" if shebang[1] else "text"


def _findings(path: Path, language: _Language, content: bytes) -> Iterator[ScriptFinding]:
    uses, lines = _python(content) if language == "python" else _text(content)
    for use in sorted(uses, key=lambda use: (use.line, use.column, use.removed.name)):
        code = lines[use.line - 1].strip()
        code = code if len(code) <= _MOST_CODE else f"{code[: _MOST_CODE - 3]}..."
        removed = use.removed
        yield ScriptFinding(
            path, use.line, use.column, code, removed.name, removed.since, removed.advice, use.guarded
        )


def _content(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device would be waited for
        raise _NotReadError("it is not a regular file", kind="skipped")
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MOST_BYTES:
            reason = f"it has {num_bytes} bytes, and scripts of up to {_MOST_BYTES} are read"
            raise _NotReadError(reason, kind="skipped")
        content = path.read_bytes()
    except OSError as error:
        raise _NotReadError(error.strerror or str(error)) from error
    if b"\0" in content:
        raise _NotReadError("it is a binary file", kind="skipped")
    return content


def _text(content: bytes) -> tuple[list[Use], list[str]]:
    lines = _lines(content.decode("utf-8-sig", errors="replace"))
    return search_text(lines), lines


def _python(content: bytes) -> tuple[list[Use], list[str]]:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        source = content.decode(encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the script's own escapes and comparisons
            tree = ast.parse(source)
        lines = _lines(source)
        return find_uses(tree, lines), lines
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        reason = f"it is not Python {version}: {error.msg}"
        raise _NotReadError(reason, line=error.lineno or 0) from error
    except UnicodeDecodeError as error:
        raise _NotReadError(f"its text is not {error.encoding}") from error
    except (RecursionError, MemoryError) as error:
        raise _NotReadError("its expressions are nested too deeply") from error


def _lines(text: str) -> list[str]:
    """Returns the lines as Python counts them: other line ends of Unicode do not end one."""
    return re.split(r"\r\n|\r|\n", text)
