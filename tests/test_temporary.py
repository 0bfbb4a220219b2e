"""Temporary files and folders: gone at the end, and after a kill cleared by the next run, if ours."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtq import temporary
from trtq.errors import ArtifactError
from trtq.files import check_output, write_atomically
from trtq.locks import lock_new, release
from trtq.temporary import make_locked, open_temporary_file, open_temporary_folder, remove_if_dead

_CHILD = """
import os, signal, sys
from pathlib import Path
from trtq.temporary import open_temporary_file, open_temporary_folder
output = Path(sys.argv[1])
with open_temporary_folder() as a, open_temporary_folder(output) as b, open_temporary_file(output) as c:
    (a / "x").touch()
    print(a, b, c, sep="\\n", flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in a folder; temporary folders lie in another one."""
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    temporary._clear_once.cache_clear()  # as in a new process
    yield tmp_path / "out" / "m.onnx"
    temporary._clear_once.cache_clear()


def list_all(output: Path) -> list[str]:
    return sorted(path.name for name in ("out", "tmp") for path in (output.parents[1] / name).iterdir())


def start(output: Path, what: str) -> tuple[subprocess.Popen[str], list[Path]]:
    command = [sys.executable, "-c", _CHILD, str(output), what]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [Path(process.stdout.readline().strip()) for _ in range(3)]


def test_all_is_gone_at_the_end(output: Path) -> None:
    with open_temporary_folder() as first, open_temporary_folder(output) as second:
        (second / "x").touch()
        assert (first.parent.name, second.parent.name) == ("tmp", "out")
        with open_temporary_file(output) as third:
            assert (first.is_dir(), second.is_dir(), third.is_file()) == (True, True, True)
    assert list_all(output) == []


def test_what_a_killed_process_left_is_cleared_by_the_next_one(output: Path) -> None:
    process, left = start(output, "kill")
    with process:
        assert process.wait() == -signal.SIGKILL
    assert all(path.exists() for path in left)
    write_atomically(output, b"new")
    with open_temporary_folder():
        pass
    assert list_all(output) == ["m.onnx"]


def test_a_check_of_the_output_clears_too(output: Path) -> None:
    process, _ = start(output, "kill")
    with process:
        process.wait()
    check_output(output)
    assert list(output.parent.iterdir()) == []


def test_what_a_running_process_has_is_left_alone(output: Path) -> None:
    process, theirs = start(output, "wait")
    with process:
        with open_temporary_folder(), open_temporary_folder(output), open_temporary_file(output):
            assert all(path.exists() for path in theirs)
            for path in theirs:
                remove_if_dead(path)
            assert all(path.exists() for path in theirs)
        process.communicate("", timeout=60)
    assert list_all(output) == []


def test_what_is_not_ours_is_left_alone(output: Path) -> None:
    tmp, names = (
        output.parents[1] / "tmp",
        ("trtq.tmp", "trtq.01234567", "trtq.0123456.tmp", "trtq-01234567.tmp"),
    )
    for name in names:
        (tmp / name).mkdir()
    (tmp / "trtq.00000001.tmp").symlink_to(output.parent)
    os.mkfifo(tmp / "trtq.00000002.tmp")
    (output.parent / ".other.onnx.01234567.tmp").touch()
    before = list_all(output)
    with open_temporary_folder(), open_temporary_file(output):
        pass
    assert list_all(output) == before


def test_files_of_other_users_are_left_alone(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = output.parents[1] / "tmp" / "trtq.01234567.tmp"
    left.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    with open_temporary_folder():
        assert left.is_dir()


def test_a_file_that_another_process_took_for_dead_is_made_again(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, hold, removed = lock_new, fcntl.flock, list[Path]()

    def remove_before(path: Path) -> int | None:
        if not removed:
            path.unlink()
            removed.append(path)
        return lock(path)

    def remove_while(descriptor: int, how: int) -> None:
        hold(descriptor, how)
        if len(removed) == 1:
            removed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
            removed[1].unlink()

    monkeypatch.setattr(temporary, "lock_new", remove_before)
    monkeypatch.setattr(fcntl, "flock", remove_while)
    with open_temporary_file(output) as path:
        assert path.is_file()
        assert path not in removed
        assert len(removed) == 2


def test_without_locks_nothing_is_removed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = output.parents[1] / "tmp" / "trtq.01234567.tmp"
    left.mkdir()

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open_temporary_folder() as folder:
        assert folder.is_dir()
    assert left.is_dir()


def test_what_is_gone_needs_no_removal(tmp_path: Path) -> None:
    remove_if_dead(tmp_path / "gone")


def test_what_is_taken_for_dead_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    names = iter([tmp_path / "first", tmp_path / "second"])

    def make(path: Path) -> None:
        path.mkdir()
        if path.name == "first":
            remove_if_dead(path)  # as another run may, that sees it without a lock

    made, held = make_locked(lambda: next(names), make)
    release(held)
    assert made == tmp_path / "second"
    assert made.is_dir()
    assert not (tmp_path / "first").exists()


def test_a_place_that_cannot_be_written_is_told(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    message = r"cannot write to /proc: .*; make room, or set TMPDIR to another"
    with pytest.raises(ArtifactError, match=message), open_temporary_folder():
        pass
    message = r"cannot write to .*absent: No such file .*; make it writable"
    absent = output.parent / "absent" / "m.onnx"
    with pytest.raises(ArtifactError, match=message), open_temporary_folder(absent):
        pass
