"""`trtq migrate --check`: what a script uses that TensorRT 10 and 11 removed, and what to do instead.

Python scripts are read, and the command lines of trtexec and Polygraphy in shell scripts, Makefiles,
Dockerfiles and YAML files. Nothing is run, imported or written.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtq.errors import UsageError
from trtq.pipeline.migrate.removed.calls import find_uses
from trtq.pipeline.migrate.removed.commands import Source, Use, search_text

FindingKind = Literal["removed", "unreadable", "skipped"]

_MOST_BYTES = 2 << 20
_MOST_CODE = 120
_INSTALLED = re.compile(r"node_modules|(site|dist)-packages|.*\.egg-info")
_HIDDEN = re.compile(r"\.(?!(github|gitlab|circleci|buildkite|ci|devcontainer)$).*")
_PYTHON = re.compile(r".*\.pyw?")
_TEXT = re.compile(
    r".*\.(sh|bash|zsh|yaml|yml|mk|dockerfile)|(GNU)?[Mm]akefile(\..*)?"
    r"|(Docker|Container)file(\..*)?|.*\.(Docker|Container)file"
)
_NOTEBOOK, _NOTEBOOK_ADVICE = "a notebook", "write it as a script: `jupyter nbconvert --to script`"
_EXPECTED = (
    "expected a script of Python or a shell, a Makefile, a Dockerfile, a YAML file, or a folder of them"
)
_OUR_WORDS = re.compile(rb"trt|tensorrt|polygraphy", re.IGNORECASE)
_SHEBANG = re.compile(rb"#!.*\b(?:(python)|(?:ba|da|z|k)?sh)")


@dataclass(frozen=True, slots=True)
class ScriptFinding:
    """One place in a script, or one file or folder that was not read.

    Attributes:
        line: From 1, as the column; 0 for what was not read, unless its syntax was wrong there.
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
    """A file or folder is not read; the message is the reason."""

    def __init__(self, reason: str, kind: FindingKind = "skipped", line: int = 0) -> None:
        super().__init__(reason)
        self.kind, self.line = kind, line


_Search = Callable[[bytes], tuple[list[Use], Source]]


def check_scripts(path: str | Path) -> tuple[ScriptFinding, ...]:
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
    path = Path(path)
    try:
        if path.is_dir():
            read: list[Path] = []
            found = tuple(_check_folder(path, read))
            if not (read or found):
                raise _NotReadError(f"it holds nothing to check: {_EXPECTED}")
            return found
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}")
        search = _choose_search(path)
        if search is None:
            raise _NotReadError(_EXPECTED)
        content = _read(path)
        if not content.strip():
            raise _NotReadError(f"it is empty: {_EXPECTED}")
        return tuple(_search_file(path, search, content))
    except _NotReadError as error:
        place = f", line {error.line}" if error.line else ""
        raise UsageError(f"cannot check {path}{place}: {error}") from error
    except OSError as error:  # a folder above it is closed, its name is too long, it may not be read
        raise UsageError(f"cannot check {path}: {error.strerror or error}") from error


def _check_folder(folder: Path, read: list[Path]) -> Iterator[ScriptFinding]:
    """Yields what is found below a folder, in the order of the paths; `read` gets what was read."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        try:
            if entry.name == "__pycache__":
                continue
            _refuse_to_read(path)
            if path.is_dir():
                yield from _check_folder(path, read)
            elif search := _choose_search(path):
                content = _read(path)
                read.append(path)
                if _OUR_WORDS.search(content):  # most files need not be parsed
                    yield from _search_file(path, search, content)
        except _NotReadError as error:
            yield _not_read(path, str(error), error.kind, error.line)
        except OSError as error:
            yield _not_read(path, error.strerror or str(error), "unreadable", 0)


def _not_read(path: Path, reason: str, kind: FindingKind, line: int) -> ScriptFinding:
    advice = _NOTEBOOK_ADVICE if reason == _NOTEBOOK else "it was not checked"
    return ScriptFinding(path, line, min(line, 1), "", reason, advice=advice, kind=kind)


def _refuse_to_read(path: Path) -> None:
    """Refuses what is skipped in a folder."""
    if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 - a loop of links raises in Path.exists
        raise _NotReadError("a link that leads nowhere")
    if path.suffix == ".ipynb":
        raise _NotReadError(_NOTEBOOK)
    if not path.is_dir():
        return
    for reason, holds in (
        ("a link to a folder", path.is_symlink()),
        ("a virtual environment", (path / "pyvenv.cfg").is_file()),
        ("installed or generated files", _INSTALLED.fullmatch(path.name)),
        ("a hidden folder", _HIDDEN.fullmatch(path.name)),
    ):
        if holds:
            raise _NotReadError(reason)


def _choose_search(path: Path) -> _Search | None:
    """Returns how a file is read: by its name, or by its first line where it has no suffix."""
    if _PYTHON.fullmatch(path.name):
        return _search_python
    if _TEXT.fullmatch(path.name):
        return _search_text
    if path.suffix or not path.is_file():
        return None
    with path.open("rb") as stream:
        shebang = _SHEBANG.match(stream.readline(200))
    return shebang and (_search_python if shebang[1] else _search_text)


def _search_file(path: Path, search: _Search, content: bytes) -> Iterator[ScriptFinding]:
    uses, source = search(content)
    for use in sorted(uses, key=lambda use: (use.line, use.column, use.removed.name)):
        code = source.lines[use.line - 1].strip()
        code = code if len(code) <= _MOST_CODE else f"{code[: _MOST_CODE - 3]}..."
        removed = use.removed
        yield ScriptFinding(
            path, use.line, use.column, code, removed.name, removed.since, removed.advice, use.guarded
        )


def _read(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device would be waited for
        raise _NotReadError("it is not a regular file")
    if (num_bytes := path.stat().st_size) > _MOST_BYTES:
        raise _NotReadError(f"it has {num_bytes} bytes, and scripts of up to {_MOST_BYTES} are read")
    content = path.read_bytes()
    if b"\0" in content:
        raise _NotReadError("it is a binary file")
    return content


def _search_text(content: bytes) -> tuple[list[Use], Source]:
    source = Source(content.decode("utf-8-sig", errors="replace"))
    return search_text(source), source


def _search_python(content: bytes) -> tuple[list[Use], Source]:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        source = Source(content.decode(encoding))
        return find_uses(source), source
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        reason = f"it is not Python {version}: {error.msg}"
        raise _NotReadError(reason, "unreadable", error.lineno or 0) from error
    except UnicodeDecodeError as error:
        raise _NotReadError(f"its text is not {error.encoding}", "unreadable") from error
    except (RecursionError, MemoryError) as error:
        raise _NotReadError("its expressions are nested too deeply", "unreadable") from error
