"""What gets into a model repository, and what a server sees of it at any moment."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton import repository as module
from trtq.pipeline.deliver.triton.config import ModelConfig, Serving, TritonPort
from trtq.pipeline.deliver.triton.pbtxt import parse
from trtq.pipeline.deliver.triton.repository import (
    PackageSource,
    RepositoryEntry,
    check_name,
    install,
    list_versions,
)

CONFIG = ModelConfig(
    "net", "tensorrt", 8, (TritonPort("x", "TYPE_FP32", (4,)),), (TritonPort("y", "TYPE_FP32", (2,)),)
)


@pytest.fixture
def entry_of(tmp_path: Path) -> Callable[..., RepositoryEntry]:
    """Makes an entry with an engine of this content."""

    def make(content: bytes, config: ModelConfig = CONFIG, **warmup: bytes) -> RepositoryEntry:
        path = tmp_path / f"{hashlib.sha256(content).hexdigest()}.engine"
        path.write_bytes(content)
        return RepositoryEntry(
            config, {"model.plan": PackageSource(path, hashlib.sha256(content).hexdigest())}, warmup
        )

    return make


def entry_file(entry: RepositoryEntry) -> Path:
    """Returns where the engine of an entry is."""
    source = entry.files["model.plan"]
    assert isinstance(source, PackageSource)
    return source.path


def seen_by_a_server(repository: Path, workplaces: Collection[Path] = ()) -> dict[str, dict[int, bytes]]:
    """Returns the versions by model, as Triton lists them: every folder counts, hidden ones too."""
    found: dict[str, dict[int, bytes]] = {}
    for model in repository.iterdir() if repository.is_dir() else ():
        folders = [path for path in model.iterdir() if path.is_dir()] if model.is_dir() else []
        versions = [path for path in folders if path.name[0].isdigit()]
        if model in workplaces:
            assert not versions  # so there is nothing that could be loaded
        elif model.is_dir():
            config = parse((model / "config.pbtxt").read_text(), str(model))
            assert config.name == model.name
            assert versions, f"{model} has no version"
            found[model.name] = {int(path.name): (path / "model.plan").read_bytes() for path in versions}
    return found


def test_a_new_model_appears_with_all_that_it_needs(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    (installed,) = install(tmp_path / "deep" / "models", (entry_of(b"one", x=b"raw"),))
    assert (installed.name, installed.version, installed.is_new) == ("net", 1, True)
    model = tmp_path / "deep" / "models" / "net"
    assert sorted(str(path.relative_to(model)) for path in model.rglob("*")) == [
        "1", "1/model.plan", "config.pbtxt", "warmup", "warmup/x",
    ]  # fmt: skip
    assert (model / "config.pbtxt").read_text() == CONFIG.text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["models"]


def test_a_failure_leaves_no_folder_that_was_not_there(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    entry = entry_of(b"one")
    changed = replace(entry, files={"model.plan": PackageSource(entry_file(entry), "0" * 64)})
    (tmp_path / "there").mkdir()
    for repository in (tmp_path / "deep" / "models", tmp_path / "there"):
        with pytest.raises(ArtifactError, match="is not the file that was built"):
            install(repository, (changed,))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["there"]


def test_a_version_is_added_and_replaces_none(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    (tmp_path / "models" / "net" / "7").mkdir()
    (tmp_path / "models" / "net" / "7" / "model.plan").write_bytes(b"seven")
    (installed,) = install(tmp_path / "models", (entry_of(b"two", x=b"raw"),))
    assert installed.version == 8
    assert seen_by_a_server(tmp_path / "models") == {"net": {1: b"one", 7: b"seven", 8: b"two"}}
    assert (tmp_path / "models" / "net" / "warmup" / "x").read_bytes() == b"raw"


def test_the_same_again_adds_nothing_and_touches_nothing(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one", x=b"raw"),))
    before = {path: path.stat().st_ctime_ns for path in (tmp_path / "models" / "net").rglob("*")}
    (installed,) = install(tmp_path / "models", (entry_of(b"one", x=b"raw"),))
    assert (installed.version, installed.is_new) == (1, False)
    assert {path: path.stat().st_ctime_ns for path in (tmp_path / "models" / "net").rglob("*")} == before


def test_the_configuration_follows_the_newest_version(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    for content, batch in ((b"one", 4), (b"two", 8), (b"three", 2)):
        install(tmp_path / "models", (entry_of(content, replace(CONFIG, max_batch=batch)),))
        text = (tmp_path / "models" / "net" / "config.pbtxt").read_text()
        assert parse(text, "x").max_batch_size == batch


def test_an_edited_configuration_is_kept(tmp_path: Path, entry_of: Callable[..., RepositoryEntry]) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    path = tmp_path / "models" / "net" / "config.pbtxt"
    edited = path.read_text().replace("count: 1", "count: 4")
    path.write_text(edited)
    (installed,) = install(tmp_path / "models", (entry_of(b"two", x=b"raw"),))
    assert (installed.version, installed.keeps_config) == (2, True)
    assert path.read_text() == edited
    assert not (tmp_path / "models" / "net" / "warmup").exists()


def test_an_edited_configuration_that_asks_too_much_of_the_engine_is_told(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    path = tmp_path / "models" / "net" / "config.pbtxt"
    path.write_text(path.read_text() + "# edited\n")
    with pytest.raises(ArtifactError, match=r"its max_batch_size 8 is more than the 4 of this model"):
        install(tmp_path / "models", (entry_of(b"two", replace(CONFIG, max_batch=4)),))
    assert seen_by_a_server(tmp_path / "models") == {"net": {1: b"one"}}


def test_versions_that_are_served_together_share_the_batch(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one", replace(CONFIG, max_batch=4)),))
    several = replace(CONFIG, serving=Serving(num_versions=2))
    with pytest.raises(ArtifactError, match=r"says max_batch_size 4.*give --max-batch 4"):
        install(tmp_path / "models", (entry_of(b"two", several),))
    install(tmp_path / "models", (entry_of(b"two", replace(several, max_batch=4)),))


def test_a_configuration_that_is_no_text_is_told(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    (path,) = (tmp_path / "models").glob("*/config.pbtxt")
    path.write_bytes(b"a: \xff")
    with pytest.raises(ArtifactError, match=r"config\.pbtxt is not text \(.* at byte 3\); fix or remove it$"):
        install(tmp_path / "models", (entry_of(b"two"),))


def test_another_model_of_the_same_name_is_refused_with_what_differs(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    other = replace(CONFIG, outputs=(TritonPort("y", "TYPE_FP32", (3,)),))
    with pytest.raises(
        ArtifactError, match=r"is of another model: output 'y' is TYPE_FP32 \[2\], not TYPE_FP32 \[3\]"
    ):
        install(tmp_path / "models", (entry_of(b"two", other),))
    assert seen_by_a_server(tmp_path / "models") == {"net": {1: b"one"}}


def test_a_model_folder_without_a_configuration_gets_one(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    (tmp_path / "models" / "net" / "1").mkdir(parents=True)
    (tmp_path / "models" / "net" / "1" / "model.plan").write_bytes(b"one")
    install(tmp_path / "models", (entry_of(b"two"),))
    assert seen_by_a_server(tmp_path / "models") == {"net": {1: b"one", 2: b"two"}}


def test_nothing_of_several_models_is_visible_where_one_cannot_be(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    other = entry_of(b"two", replace(CONFIG, name="other"))
    assert isinstance(other.files["model.plan"], PackageSource)
    other.files["model.plan"].path.write_bytes(b"three")
    with pytest.raises(ArtifactError, match="is not the file that was built: its SHA-256"):
        install(tmp_path / "models", (entry_of(b"one"), other))
    assert seen_by_a_server(tmp_path / "models") == {}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_copy_that_is_damaged_on_its_way_is_seen(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hash_file", lambda path: "other")
    with pytest.raises(ArtifactError, match="is damaged on its way"):
        install(tmp_path / "models", (entry_of(b"one"),))


# What is no repository


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    (tmp_path / "photos" / "summer").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="is not empty and is not a Triton model repository"):
        install(tmp_path / "photos", (entry_of(b"one"),))
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file; a Triton model repository is a folder"):
        install(tmp_path / "file", (entry_of(b"one"),))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".engine") == [
        "file",
        "photos",
        "summer",
    ]


def test_a_model_is_not_taken_for_the_repository(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry]
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    with pytest.raises(ArtifactError, match=rf"not the repository; give {tmp_path / 'models'}"):
        install(tmp_path / "models" / "net", (entry_of(b"one"),))


def test_a_cloud_is_not_written_to(entry_of: Callable[..., RepositoryEntry]) -> None:
    with pytest.raises(ArtifactError, match="is in a cloud"):
        install(Path("s3://bucket/models"), (entry_of(b"one"),))


@pytest.mark.parametrize("name", ["", ".net", "a/b", "a b", "-net"])
def test_a_name_that_is_no_models_name_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be the name of a model"):
        check_name(name)
    check_name("net-2.v1_b")


# Interruptions


def _old_and_new(
    entry_of: Callable[..., RepositoryEntry],
) -> tuple[RepositoryEntry, tuple[RepositoryEntry, ...]]:
    """Returns a model that is there, and its next version with less batch, before a new model."""
    new = entry_of(b"two", replace(CONFIG, max_batch=4), x=b"raw")
    return entry_of(b"one"), (new, entry_of(b"B", replace(CONFIG, name="net_b"), x=b"raw"))


def _killed_at(step: int, repository: Path, entries: tuple[RepositoryEntry, ...]) -> bool:
    """Returns whether a process that adds models was killed at its n-th step on the disk."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def run(*arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return run

        os.fsync, os.rename, os.mkdir = counted(os.fsync), counted(os.rename), counted(os.mkdir)  # type: ignore[assignment]
        Path.rename = counted(Path.rename)  # type: ignore[method-assign, assignment]
        try:
            install(repository, entries)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("is_mount", [False, True])
def test_a_kill_at_any_moment_loses_nothing_and_shows_nothing_half(
    is_mount: bool, tmp_path: Path, entry_of: Callable[..., RepositoryEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # slow, and no help against a kill
    if is_mount:
        monkeypatch.setattr(module, "_leads_to", lambda place, repository: False)
    old, new = _old_and_new(entry_of)
    states = []
    for step in range(100):
        repository = tmp_path / str(step) / "models"
        install(repository, (old,))
        if not _killed_at(step, repository, new):
            break
        left = set(repository.glob(".models.*.partial"))
        assert is_mount or not left
        seen = seen_by_a_server(repository, left)
        assert seen["net"][1] == b"one"
        assert seen["net"].get(2, b"two") == b"two"
        assert seen.get("net_b", {1: b"B"}) == {1: b"B"}
        states.append(tuple(sorted((name, *versions) for name, versions in seen.items())))
        install(repository, new)  # the next run finishes the work and clears up
        assert seen_by_a_server(repository) == {"net": {1: b"one", 2: b"two"}, "net_b": {1: b"B"}}
        assert list(tmp_path.rglob("*.partial")) == []
    assert len(states) > 10
    assert len(set(states)) >= 2  # some kills came before the version was visible, some after


def _add(repository: str, number: int, folder: str) -> None:
    path = Path(folder) / f"{number}.engine"
    path.write_bytes(str(number).encode() * 1000)
    source = PackageSource(path, hashlib.sha256(path.read_bytes()).hexdigest())
    install(Path(repository), (RepositoryEntry(CONFIG, {"model.plan": source}),))


def test_packagers_at_the_same_time_get_versions_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_add, args=(str(tmp_path / "models"), number, str(tmp_path)))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    found = seen_by_a_server(tmp_path / "models")["net"]
    assert sorted(found) == [1, 2, 3, 4] == list_versions(tmp_path / "models" / "net")
    assert {content[:1] for content in found.values()} == {b"0", b"1", b"2", b"3"}


def test_no_room_on_the_disk_is_told_and_leaves_nothing(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "models", (entry_of(b"one"),))
    before = sorted(tmp_path.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    entry = entry_of(b"two")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match=r"No space left on device; nothing of it is visible to a server"):
        install(tmp_path / "models", (entry,))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_that_cannot_be_reached_by_renaming_is_its_own_workplace(
    tmp_path: Path, entry_of: Callable[..., RepositoryEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.suffix == ".probe":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        assert self.is_relative_to(tmp_path / "models")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    install(tmp_path / "models", (entry_of(b"one"),))
    assert seen_by_a_server(tmp_path / "models") == {"net": {1: b"one"}}
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []
