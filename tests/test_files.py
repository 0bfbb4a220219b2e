"""Tests of writing files whole."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

import trtq.files
from trtq.calibrators.cache import read_cache
from trtq.calibrators.ranges import read_ranges
from trtq.calibrators.settings import read_toml
from trtq.calibrators.statistics_file import read_statistics
from trtq.cli.ci import CiFiles
from trtq.errors import ArtifactError, TrtqError, UsageError
from trtq.files import (
    check_output,
    check_outputs,
    copy_atomically,
    is_there,
    lock_file,
    move_atomically,
    read_file,
    refuse_name,
    resolve_name,
    write_atomically,
)
from trtq.models.session import open_session
from trtq.pipeline.deliver.index import read_index
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.inspect import inspect
from trtq.pipeline.judge.generate import read_prompts


def _full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_content_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_atomically(tmp_path / "plan", b"")
    usual, ours = ((tmp_path / name).stat().st_mode for name in ("usual", "plan"))
    assert stat.filemode(ours) == stat.filemode(usual)


def test_a_full_disk_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(
        ArtifactError, match=r"cannot write .*plan: No space left on device; .* room for 3 bytes"
    ):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "plan", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"cannot write .*absent/plan: No such file .*; its folder must exist"
    ):
        write_atomically(tmp_path / "absent" / "plan", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*plan: Is a directory"):
        write_atomically(tmp_path / "plan", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write into every folder")
        with pytest.raises(ArtifactError, match=r"cannot write .*plan: Permission denied; .* be writable"):
            write_atomically(tmp_path / "plan", b"new")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/plan: Not a directory"):
        write_atomically(tmp_path / "file" / "plan", b"new")


def test_what_could_not_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")
    check_output(kept)
    check_output(tmp_path / "new")
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "old"
    with pytest.raises(
        ArtifactError, match=r"no-folder/x: there is no folder .*no-folder; make it, or choose another"
    ):
        check_output(tmp_path / "no-folder" / "x")
    with pytest.raises(ArtifactError, match="it is a folder; name a file in it"):
        check_output(tmp_path)


def test_an_input_is_not_overwritten(tmp_path: Path) -> None:
    source, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    source.write_bytes(b"model")
    link.symlink_to(source)
    check_output(tmp_path / "new.onnx", source, None, tmp_path / "script.py:function")
    for output in (source, link):
        with pytest.raises(ArtifactError, match=r"onnx is read by this command; choose another file with -o"):
            check_output(output, None, source, option="-o")
    (tmp_path / "script.py").touch()
    with pytest.raises(ArtifactError, match=r"script\.py is read by this command"):
        check_output(tmp_path / "script.py", f"{tmp_path}/script.py:feeds")


def test_nothing_is_written_into_a_folder_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "feeds" / "more").mkdir(parents=True)
    for place in ("feeds", "feeds/more"):
        with pytest.raises(
            ArtifactError, match=r"would be inside .*feeds, which is read by this command; choose"
        ):
            check_output(tmp_path / place / "a.npz", tmp_path / "feeds")
    check_output(tmp_path / "feeds.npz", tmp_path / "feeds")


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    check_outputs({"--output": tmp_path / "a", "--chart": tmp_path / "b", "--other": None})
    with pytest.raises(UsageError, match=r"a is given as --output and as --chart; give each its own file"):
        check_outputs({"--output": tmp_path / "a", "--chart": tmp_path / "more" / ".." / "a"})
    (tmp_path / "b").touch()
    with pytest.raises(ArtifactError, match=r"b is read by this command; choose another file with --chart"):
        check_outputs({"--output": tmp_path / "a", "--chart": tmp_path / "b"}, tmp_path / "b")


_ADDING = """
import sys
from pathlib import Path
from trtq.files import lock_file

path = Path(sys.argv[1])
for _ in range(200):
    with lock_file(path.with_name(".lock")):
        path.write_text(str(int(path.read_text()) + 1))
"""
_HOLDING = """
import sys
from pathlib import Path
from trtq.files import lock_file

with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
_IS_FREE = """
import fcntl, sys
with open(sys.argv[1]) as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(1)
"""


def test_two_processes_under_a_lock_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    adding = [subprocess.Popen([sys.executable, "-c", _ADDING, str(path)]) for _ in range(2)]
    assert [process.wait() for process in adding] == [0, 0]
    assert path.read_text() == "400"


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holding = subprocess.Popen(
        [sys.executable, "-c", _HOLDING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holding.stdout is not None
    assert holding.stdout.readline() == b"held\n"
    assert not _is_free(path)
    holding.kill()
    holding.communicate()
    assert _is_free(path)


def test_a_lock_ends_with_its_block_and_holds_folders_too(tmp_path: Path) -> None:
    for path in (tmp_path / "new file", tmp_path):
        with lock_file(path):
            assert path.exists()
        with lock_file(path):
            pass
    with pytest.raises(ZeroDivisionError), lock_file(tmp_path / "new file"):
        raise ZeroDivisionError
    assert _is_free(tmp_path / "new file")


def test_a_lock_in_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock_file(tmp_path / "absent" / "lock"):
        pass


def _is_free(path: Path) -> bool:
    return subprocess.run([sys.executable, "-c", _IS_FREE, str(path)], check=False).returncode == 0


def test_an_output_in_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ArtifactError, match=r"r\.json: Permission denied; its folder must be writable$"):
        check_output(tmp_path / "r.json")


def test_checking_an_output_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    refuse_name(Path("мо дель.onnx"))
    name = Path(os.fsdecode(b"m\xe9.onnx"))
    told = r"^the name of m.\.onnx is not UTF-8, .* rename it, or set a UTF-8 locale"
    with pytest.raises(UsageError, match=told):
        refuse_name(name)
    with pytest.raises(UsageError, match=told):
        open_session(name, optimize=False)


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    told = "cannot write .*pipe: it is a device or pipe, not a regular file"
    with pytest.raises(ArtifactError, match=f"{told}; name a file"):
        check_output(pipe)
    with pytest.raises(ArtifactError, match=told):
        write_atomically(pipe, b"new")
    CiFiles("build", summary=pipe).check()  # which is only appended to
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [item.name for item in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_that_cannot_be_searched_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_there(tmp_path / "no")
    assert not is_there(tmp_path / ("n" * 300))

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PermissionError):
        is_there(tmp_path / "no")


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, real, source = tmp_path / "link", tmp_path / "disk" / "real", tmp_path / "source"
    link.symlink_to("disk/real")  # dangling at first
    source.write_bytes(b"copied")
    check_output(link)
    write_atomically(link, b"new")
    assert real.read_bytes() == b"new"
    copy_atomically(source, link)
    assert real.read_bytes() == b"copied"
    assert link.is_symlink()
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["disk", "link", "real", "source"]


def test_the_parts_of_a_model_go_where_links_of_their_names_lead(tmp_path: Path) -> None:
    for name in ("stage", "out", "disk"):
        (tmp_path / name).mkdir()
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "stage" / name).write_text(name)
    (tmp_path / "out" / "m.onnx").symlink_to(tmp_path / "disk" / "real.onnx")
    move_atomically(tmp_path / "stage", tmp_path / "out")
    assert (tmp_path / "out" / "m.onnx").is_symlink()
    assert (tmp_path / "disk" / "real.onnx").read_text() == "m.onnx"
    assert (tmp_path / "out" / "m.onnx.data").read_text() == "m.onnx.data"


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("absent/d")
    told = r"cannot write .*a: Too many levels of symbolic links"
    with pytest.raises(ArtifactError, match=told):
        check_output(tmp_path / "a", tmp_path)
    with pytest.raises(ArtifactError, match=told):
        write_atomically(tmp_path / "a", b"")
    with pytest.raises(ArtifactError, match=r"cannot write .*c: there is no folder .*absent; make it"):
        check_output(tmp_path / "c")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_bytes, b"content")
        assert read_file(pipe) == b"content"
        assert written.result() == len(b"content")
    assert read_file(Path(os.devnull)) == b""


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("ranges.json", read_ranges),
        ("index.json", read_index),
        ("x.cache", read_cache),
        ("x.toml", lambda path: read_toml(path, "settings")),
        ("x.npz", read_statistics),
        ("prompts.txt", read_prompts),
        ("prompts.npy", read_prompts),
        ("x.cache", inspect),
        ("manifest.json", lambda path: read_manifest(path.parent)),
        ("x.pem", read_private_key),
    ],
)
def test_no_reader_takes_a_device_that_does_not_end(
    name: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtq.files, "_MOST_PIPED", 1 << 20)
    (tmp_path / name).symlink_to("/dev/zero")
    told = "it is a pipe or device with more than 1 MiB, not a regular file"
    with pytest.raises(TrtqError, match=told):
        read(tmp_path / name)


def test_the_folder_that_one_is_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.trtq" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a.trtq")
    assert resolve_name(Path("b.trtq")) == Path("b.trtq")
    for path in (".", "in/.."):
        assert resolve_name(Path(path)) == tmp_path / "a.trtq"
    with pytest.raises(UsageError, match=r"^/ has no name for the output; name it with --output$"):
        resolve_name(Path("/"))
