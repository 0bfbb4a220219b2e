"""Functions of the user's own scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trtq.models.script import load_function, run_in_place


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Python keep what it compiles, as it does outside of tests."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


def test_a_script_that_is_edited_in_the_same_second_is_read_again(tmp_path: Path) -> None:
    script = tmp_path / "metric.py"
    for number in (1, 2):
        script.write_text(f"def score(): return {number}\n")
        os.utime(script, (1e9, 1e9))
        assert load_function(script, "score")() == number
    assert [path.name for path in tmp_path.iterdir()] == ["metric.py"]


@pytest.mark.parametrize(
    "text",
    [
        "import metric_parts\ndef score(): return metric_parts.VALUE\n",
        "from . import metric_parts\ndef score(): return metric_parts.VALUE\n",
        "def score():\n    import metric_parts\n    return metric_parts.VALUE\n",
    ],
    ids=["early", "relative", "late"],
)
def test_what_a_script_imports_from_its_folder_is_read_again(tmp_path: Path, text: str) -> None:
    script, parts = tmp_path / "metric.py", tmp_path / "metric_parts.py"
    script.write_text(text)
    for number in (1, 2):
        parts.write_text(f"VALUE = {number}\n")
        os.utime(parts, (1e9, 1e9))
        with run_in_place(script):
            assert load_function(script, "score")() == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metric.py", "metric_parts.py"]


def test_scripts_of_two_folders_may_import_modules_of_the_same_name(tmp_path: Path) -> None:
    for number, folder in enumerate((tmp_path / "data", tmp_path / "metric")):
        folder.mkdir()
        (folder / "own_parts.py").write_text(f"VALUE = {number}\n")
        (folder / "script.py").write_text(
            "from own_parts import VALUE\n"
            "def find():\n    import own_parts\n    return VALUE, own_parts.VALUE\n"
        )
    scripts = [tmp_path / name / "script.py" for name in ("data", "metric")]
    calls = [load_function(script, "find") for script in scripts]
    for number in (0, 1, 0):
        with run_in_place(scripts[number]):
            assert calls[number]() == (number, number)
