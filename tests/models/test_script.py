"""Functions of the user's own scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trtq.models.script import load_function


def test_a_script_that_is_edited_in_the_same_second_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    script = tmp_path / "metric.py"
    for number in (1, 2):
        script.write_text(f"def score(): return {number}\n")
        os.utime(script, (1e9, 1e9))
        assert load_function(script, "score")() == number
    assert [path.name for path in tmp_path.iterdir()] == ["metric.py"]
