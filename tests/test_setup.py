"""What setup.py fetches for the page, where that goes wrong: the installation goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        ("touch $4/other.tgz", "its SHA-512 is another"),
        ("exit 1", "returned non-zero exit status 1"),
        ("", "No such file or directory: 'npm'"),
    ],
)
def test_what_cannot_be_fetched_is_told_and_left_out(npm: str, reason: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "src/trtq/pipeline/deliver/html").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    if npm:
        (tmp_path / "bin/npm").write_text(f"#!/bin/sh\n{npm}\n")
        (tmp_path / "bin/npm").chmod(0o755)
    (tmp_path / "bin/touch").symlink_to(shutil.which("touch") or "")
    process = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py"],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in process.stdout.splitlines() if "draw no graph" in line)
    assert line.startswith("the page of a build will draw no graph: @dagrejs/dagre@")
    assert reason in line
    assert list((tmp_path / "src/trtq/pipeline/deliver/html").iterdir()) == []
