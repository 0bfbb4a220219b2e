"""A build folder as the tests of it write and read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.pipeline.deliver import folder as module
from trtq.pipeline.deliver.folder import stage_folder

_NAMES = ("model.engine", "report.json", "manifest.json")


def write(target: Path, content: str) -> None:
    """Writes a folder in which every file holds this."""
    with stage_folder(target) as stage:
        for name in _NAMES:
            (stage / name).write_text(content)


def assert_complete(target: Path, content: str) -> None:
    """Checks that every file holds this, and that there is no other."""
    assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys(_NAMES, content)


def create_folder(folder: Path) -> Path:
    """Returns the folder, which is made."""
    folder.mkdir()
    return folder


def names(target: Path) -> list[str]:
    """Returns what lies beside the folder, with itself."""
    return [path.name for path in target.parent.iterdir()]


def without_exchange(monkeypatch: pytest.MonkeyPatch, *, exchange: bool) -> None:
    """Takes the system call away that exchanges two folders, unless it is to stay."""
    if not exchange:
        monkeypatch.setattr(module, "_exchange", lambda first, second: False)
