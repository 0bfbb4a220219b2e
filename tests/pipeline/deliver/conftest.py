"""Where the folders of the tests lie."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The path of a build folder, in a folder that holds nothing else."""
    parent = tmp_path / "parent"
    parent.mkdir()
    return parent / "model.trtq"
