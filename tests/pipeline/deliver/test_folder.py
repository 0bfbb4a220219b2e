"""Tests of the folder that appears whole or not at all, whatever happens on the way."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from whole_folder import assert_complete, create_folder, names, without_exchange, write

from trtq.errors import ArtifactError
from trtq.pipeline.deliver import folder as module
from trtq.pipeline.deliver.folder import stage_folder
from trtq.pipeline.deliver.manifest import Manifest, to_json

_EXCHANGE = pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])


def test_a_folder_appears_when_the_block_ends(target: Path) -> None:
    with stage_folder(target) as stage:
        assert stage.parent == target.parent
        assert list(stage.iterdir()) == []
        (stage / "manifest.json").write_text("new")
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert names(target) == ["model.trtq"]


def test_missing_parents_arecreate_folder(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "c", "new")
    assert_complete(tmp_path / "a" / "b" / "c", "new")


def test_a_relative_path_stays_where_it_was_when_the_block_changes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with stage_folder(Path("out")) as stage:
        (stage / "manifest.json").write_text("new")
        monkeypatch.chdir(tmp_path / "other")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_the_folder_has_the_rights_of_any_new_folder(target: Path) -> None:
    umask = os.umask(0o027)
    try:
        write(target, "new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


@_EXCHANGE
def test_an_older_build_is_replaced(target: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_exchange(monkeypatch, exchange=exchange)
    write(target, "old")
    (target / "of an older trtq").write_text("old")
    with stage_folder(target) as stage:
        assert (target / "manifest.json").read_text() == "old"
        for name in ("model.engine", "report.json", "manifest.json"):
            (stage / name).write_text("new")
    assert_complete(target, "new")
    assert names(target) == ["model.trtq"]


def test_an_older_build_is_never_absent_while_it_is_replaced(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not module._exchange(create_folder(target.parent / "a"), create_folder(target.parent / "b")):
        pytest.skip("this file system cannot swap two folders in one step")
    write(target, "old")
    renamed: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda path, to: renamed.append(path))
    write(target, "new")
    assert renamed == []
    assert_complete(target, "new")


def test_an_empty_folder_is_taken(target: Path) -> None:
    target.mkdir()
    write(target, "new")
    assert_complete(target, "new")


def test_a_link_stays_a_link_to_the_folder_that_is_replaced(target: Path, tmp_path: Path) -> None:
    write(tmp_path / "disk" / "build", "old")
    target.symlink_to(tmp_path / "disk" / "build")
    write(target, "new")
    assert target.is_symlink()
    assert_complete(tmp_path / "disk" / "build", "new")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["build"]
    assert names(target) == ["model.trtq"]


def test_a_link_to_nothing_gets_its_folder(target: Path, tmp_path: Path) -> None:
    target.symlink_to(tmp_path / "absent")
    write(target, "new")
    assert_complete(tmp_path / "absent", "new")


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("older", [True, False])
def test_an_error_in_the_block_leaves_everything_as_it_was(
    error: BaseException, older: bool, target: Path
) -> None:
    if older:
        write(target, "old")

    def fail() -> None:
        with stage_folder(target) as stage:
            (stage / "manifest.json").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail()
    if older:
        assert_complete(target, "old")
    assert names(target) == (["model.trtq"] if older else [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("the cable is out"), "the cable is out"),
    ],
)
def test_a_disk_that_fails_in_the_block_is_told(error: OSError, told: str, target: Path) -> None:
    write(target, "old")

    def fail() -> None:
        with stage_folder(target):
            raise error

    with pytest.raises(ArtifactError, match=rf"^cannot write {target}: {told}$"):
        fail()
    assert_complete(target, "old")
    assert names(target) == ["model.trtq"]


def test_a_disk_that_is_full_at_the_end_keeps_the_old_folder(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(target, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"^cannot write .*model\.trtq: No space left on device$"):
        write(target, "new")
    assert_complete(target, "old")
    assert names(target) == ["model.trtq"]


def test_everything_is_on_the_disk_before_it_is_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((path.name if path.is_file() or path == target.parent else "stage", target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(target, "new")
    assert sorted(synced[:3]) == [(name, False) for name in ("manifest.json", "model.engine", "report.json")]
    assert synced[3:] == [("stage", False), ("parent", True)]


def test_a_second_rename_that_fails_puts_the_old_folder_back(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(target, "old")
    without_exchange(monkeypatch, exchange=False)
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match=r"^cannot write .*model\.trtq: Input/output error$"):
        write(target, "new")
    assert_complete(target, "old")
    assert names(target) == ["model.trtq"]


def test_a_folder_that_trtq_did_not_write_is_refused(target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ArtifactError,
        match=rf"^{target} is not empty and was not written by trtq; choose another folder with --output$",
    ):
        write(target, "new")
    assert (target / "thesis.tex").read_text() == "years of work"
    assert names(target) == ["model.trtq"]


def test_a_file_is_refused(target: Path) -> None:
    target.write_text("a file")
    with pytest.raises(ArtifactError, match=rf"^{target} is a file; choose another folder with --output$"):
        write(target, "new")
    assert target.read_text() == "a file"


def test_a_parent_that_is_a_file_is_told(target: Path) -> None:
    target.parent.rmdir()
    target.parent.write_text("a file")
    with pytest.raises(ArtifactError, match=rf"^cannot write to {target.parent}: (Not a dir|File exists)"):
        write(target, "new")


def test_a_parent_that_cannot_be_written_is_told(target: Path) -> None:
    target.parent.chmod(0o500)
    try:
        if os.access(target.parent, os.W_OK):
            pytest.skip("root may write into every folder")
        with pytest.raises(ArtifactError, match=rf"^cannot write to {target.parent}: Permission denied$"):
            write(target, "new")
    finally:
        target.parent.chmod(0o700)


def test_a_file_of_the_user_in_the_folder_is_not_lost(target: Path) -> None:
    with stage_folder(target) as stage:
        contract = Manifest({}, {"model.engine": ""}, {}, {})
        (stage / "manifest.json").write_bytes(to_json(contract))
        (stage / "model.engine").write_bytes(b"")
    (target / "mine.npz").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"mine\.npz was not written by trtq and would be lost"):
        write(target, "newer")
    assert (target / "mine.npz").read_bytes() == b"mine"


def test_two_folders_swap_their_places(tmp_path: Path) -> None:
    first, second = create_folder(tmp_path / "a"), create_folder(tmp_path / "b")
    (first / "file").write_text("of the first")
    if not module._exchange(first, second):
        pytest.skip("this file system cannot swap two folders in one step")
    assert (second / "file").read_text() == "of the first"
    assert list(first.iterdir()) == []


def test_a_swap_that_goes_wrong_is_an_error(tmp_path: Path) -> None:
    if not module._exchange(create_folder(tmp_path / "a"), create_folder(tmp_path / "b")):
        pytest.skip("this file system cannot swap two folders in one step")
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        module._exchange(tmp_path / "a", tmp_path / "absent")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_swap_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(renameat2=lambda *arguments: -1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)
    assert not module._exchange(tmp_path / "a", tmp_path / "b")


def test_a_system_that_cannot_swap_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace())
    assert not module._exchange(tmp_path / "a", tmp_path / "b")
