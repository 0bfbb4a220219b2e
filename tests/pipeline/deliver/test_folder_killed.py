"""Tests of the folder when a build is killed on the way, or is not the only one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from whole_folder import assert_complete, create_folder, names, without_exchange, write

from trtq.errors import ArtifactError
from trtq.pipeline.deliver import folder as module
from trtq.pipeline.deliver.folder import stage_folder

_CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from trtq.pipeline.deliver import folder

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def counted(function, count):
    def call(*arguments):
        nonlocal count
        if count == 0:
            die()
        count -= 1
        return function(*arguments)
    return call

target, where = Path(sys.argv[1]), sys.argv[2]
if where != "after the exchange":
    folder._exchange = lambda first, second: False
with folder.stage_folder(target) as stage:
    (stage / "model.engine").write_text("new")
    if where == "in the block":
        die()
    (stage / "report.json").write_text("new")
    (stage / "manifest.json").write_text("new")
    if where == "before the renames":
        Path.rename = counted(Path.rename, 0)
    elif where == "between the renames":
        Path.rename = counted(Path.rename, 1)
    else:
        folder.sync_folder = counted(folder.sync_folder, 1)
        shutil.rmtree = die if where == "before the old one is cleared" else shutil.rmtree
"""


def _kill(target: Path, where: str) -> int:
    """Runs a build that kills itself; gives its process id."""
    with subprocess.Popen([sys.executable, "-c", _CHILD, str(target), where]) as process:
        assert process.wait() == -signal.SIGKILL
        return process.pid


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("in the block", "old"),
        ("before the renames", "old"),
        ("between the renames", "old"),
        ("before the old one is cleared", "new"),
        ("after the exchange", "new"),
    ],
)
def test_after_a_kill_a_complete_folder_is_there_and_the_next_run_clears_the_rest(
    where: str, left: str, target: Path
) -> None:
    write(target, "old")
    _kill(target, where)
    assert len(names(target)) > 1
    with stage_folder(target) as stage:
        assert_complete(target, left)
        assert sorted(names(target)) == sorted([target.name, stage.name])
        (stage / "manifest.json").write_text("next")
    assert (target / "manifest.json").read_text() == "next"
    assert names(target) == ["model.trtq"]


def test_a_kill_without_an_older_build_leaves_no_folder(target: Path) -> None:
    _kill(target, "in the block")
    assert not target.exists()
    assert len(names(target)) == 1
    write(target, "new")
    assert names(target) == ["model.trtq"]


def test_what_a_running_process_writes_is_left_alone(target: Path) -> None:
    child = (
        "import sys\nfrom pathlib import Path\nfrom trtq.pipeline.deliver.folder import stage_folder\n"
        "with stage_folder(Path(sys.argv[1])) as stage:\n"
        "    print(stage, flush=True)\n"
        "    sys.stdin.read()\n"
        "    (stage / 'manifest.json').write_text('of the child')\n"
    )
    command = [sys.executable, "-c", child, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        write(target, "new")
        assert theirs.is_dir()
        assert_complete(target, "new")
        process.communicate("", timeout=60)
        assert process.returncode == 0
    assert (target / "manifest.json").read_text() == "of the child"
    assert names(target) == ["model.trtq"]


def test_two_builds_in_one_process_do_not_clear_each_other(target: Path) -> None:
    with stage_folder(target) as first:
        write(target, "second")
        (first / "manifest.json").write_text("first")
    assert (target / "manifest.json").read_text() == "first"


@pytest.mark.parametrize("suffix", [".partial", ".old"])
def test_what_is_locked_is_kept_and_what_is_not_is_cleared(suffix: str, target: Path) -> None:
    write(target, "new")
    locked, stale = (target.with_name(f".{target.name}.1.{name}{suffix}") for name in ("locked", "stale"))
    locked.mkdir()
    stale.mkdir()
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as another container would, where no process has this number
    write(target, "newer")
    os.close(descriptor)
    assert locked.is_dir()
    assert not stale.exists()


def _another_build_is_first(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets another build publish its folder in the moment before the first rename."""
    rename = Path.rename

    def late(path: Path, to: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write(target, "of another build")
        return path.rename(to)

    monkeypatch.setattr(Path, "rename", late)


def test_the_later_of_two_builds_that_end_together_replaces_the_other(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not module._exchange(create_folder(target.parent / "a"), create_folder(target.parent / "b")):
        pytest.skip("this file system cannot swap two folders in one step")
    _another_build_is_first(target, monkeypatch)
    write(target, "new")
    assert_complete(target, "new")


def test_without_a_swap_the_later_of_two_builds_that_end_together_fails(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _another_build_is_first(target, monkeypatch)
    without_exchange(monkeypatch, exchange=False)
    with pytest.raises(ArtifactError, match=r"^cannot write .*model\.trtq: Directory not empty$"):
        write(target, "new")
    assert_complete(target, "of another build")
    assert names(target) == ["model.trtq"]


def test_what_another_target_left_behind_is_not_touched(target: Path) -> None:
    dead = _kill(target, "in the block")
    others = [
        target.with_name(name)
        for name in (
            f".{target.name}.v2.{dead}.abcdefgh.old",
            f".{target.name}.5.{dead}.abcdefgh.partial",
            f".{target.name}.mine.old",
            f".x{target.name}.{dead}.abcdefgh.partial",
        )
    ]
    for other in others:
        other.mkdir()
    write(target, "new")
    assert_complete(target, "new")
    assert sorted(names(target)) == sorted([target.name, *(other.name for other in others)])


def test_a_name_with_marks_of_patterns_is_cleared_too(target: Path) -> None:
    target = target.with_name("model[1]*?.trtq")
    write(target, "old")
    _kill(target, "between the renames")
    assert not target.exists()
    with stage_folder(target) as stage:
        assert_complete(target, "old")
        (stage / "manifest.json").write_text("new")
    assert names(target) == [target.name]
