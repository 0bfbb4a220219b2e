"""A Triton model repository: what is in it, and how a version gets there whole or not at all.

A server looks into every folder of the repository, hidden ones too, takes it for a model, and takes a folder
in it for a version as soon as its name begins with a number; it does so at any time, whatever is just being
written. So everything is made ready outside, beside the repository, and comes in by renaming.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.files import hash_file, lock_file, sync_folder
from trtq.pipeline.deliver.triton.config import ModelConfig, is_edited, list_differences, validate
from trtq.pipeline.deliver.triton.pbtxt import parse

CONFIG = "config.pbtxt"
WARMUP = "warmup"
_VERSION = re.compile(r"[1-9]\d*")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file that is copied: where it is, and the SHA-256 that it must have."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """A model with a new version.

    Attributes:
        config: What Triton is told of it.
        files: What the version holds, by path in its folder.
        warmup: Raw inputs by file name.
    """

    config: ModelConfig
    files: Mapping[str, PackageSource | bytes]
    warmup: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model in the repository.

    Attributes:
        name: Of the model.
        version: The one that holds what was given.
        is_new: False if the newest version held the same already, so that there is nothing to add.
        keeps_config: Whether a configuration was kept that somebody has edited.
    """

    name: str
    version: int
    is_new: bool
    keeps_config: bool


def install(repository: Path, entries: tuple[RepositoryEntry, ...]) -> tuple[InstalledModel, ...]:
    """Returns what was added to a folder; all is made ready before the first is visible, the last one last.

    Each model appears, or gets its version, in one step; no version is ever replaced. Several processes may
    add to the same repository: one waits for the other.

    Raises:
        ArtifactError: It is no repository, a model there is another one, a file is not the one that it should
            be, or something cannot be written.
    """
    repository = repository.resolve()  # what a link stands for: the workplace must lie beside that
    _refuse_foreign(repository)
    try:
        with _make_folder(repository), lock_file(repository), _workplace(repository) as stage:
            ready = [_prepare(repository / entry.config.name, entry, stage) for entry in entries]
            return tuple(_switch(item) for item in ready)
    except OSError as error:
        raise ArtifactError(
            f"cannot write to {repository}: {error.strerror or error}; nothing of it is visible to a server"
        ) from error


@contextmanager
def _make_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes it again where what follows fails and leaves nothing in it."""
    made = [item for item in (folder, *folder.parents) if not item.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for item in made:
                item.rmdir()
        raise


def list_versions(model: Path) -> list[int]:
    """Returns the numbers of the versions in a model's folder, in order."""
    found = model.iterdir() if model.is_dir() else ()
    return sorted(int(path.name) for path in found if path.is_dir() and _VERSION.fullmatch(path.name))


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or bool(list_versions(folder))


def _refuse_foreign(repository: Path) -> None:
    """Refuses what is no model repository."""
    if re.search(r"(^|/)(gs|s3|as):/", str(repository)):
        raise ArtifactError(
            f"{repository} is in a cloud, which trtq does not write to; give a local folder, and copy it"
        )
    if not repository.exists():
        return
    if not repository.is_dir():
        raise ArtifactError(f"{repository} is a file; a Triton model repository is a folder")
    if _is_model(repository):
        raise ArtifactError(
            f"{repository} is a model of a Triton repository, not the repository; give {repository.parent}"
        )
    found = list(repository.iterdir())
    if found and not any(_is_model(path) for path in found if path.is_dir()):
        raise ArtifactError(
            f"{repository} is not empty and is not a Triton model repository: no folder in it has a "
            f"{CONFIG} or a numbered version; give an empty or a new folder"
        )


def check_name(name: str) -> None:
    """Refuses what cannot be a model's name.

    Raises:
        ArtifactError: It is no name of a folder, or one that Triton would take for something else.
    """
    if _NAME.fullmatch(name) is None:
        raise ArtifactError(
            f"{name!r} cannot be the name of a model: letters, digits, '_', '-' and '.', not first a dot; "
            f"give another with --name"
        )


@contextmanager
def _workplace(repository: Path) -> Iterator[Path]:
    """Yields an empty folder that no server looks into and from where a rename leads into the repository.

    It lies beside the repository; or in it, where that is a mount of its own: a server that looks meanwhile
    finds a folder without any version there, and says that it cannot load it. The repository is locked, so
    what is there of earlier runs was left by killed ones.
    """
    places = (repository.parent, repository)
    pattern = re.compile(rf"\.{re.escape(repository.name)}\.[0-9a-f]{{16}}\.(partial|probe)")
    for place in places:
        for left in place.glob(f".{glob.escape(repository.name)}.*"):
            if pattern.fullmatch(left.name) and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif pattern.fullmatch(left.name):
                left.unlink()
    place = next((place for place in places if _leads_to(place, repository)), repository)
    stage = place / f".{repository.name}.{secrets.token_hex(8)}.partial"
    try:
        stage.mkdir()
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _leads_to(place: Path, repository: Path) -> bool:
    """Returns whether a file can be renamed from one folder to the other: nothing else tells a bind mount."""
    probe = f".{repository.name}.{secrets.token_hex(8)}.probe"
    try:
        (place / probe).touch(exist_ok=False)
        try:
            (place / probe).rename(repository / probe)  # a server does not look at files there
            (repository / probe).unlink()
        finally:
            (place / probe).unlink(missing_ok=True)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Ready:
    """A model that is ready: its folder in the repository, and the one in the workplace with all that is new.

    `config_first` tells whether its configuration fits the older versions too.
    """

    model: Path
    stage: Path
    installed: InstalledModel
    config_first: bool


def _prepare(model: Path, entry: RepositoryEntry, stage: Path) -> _Ready:
    """Returns the model made ready, with every file on the disk and compared with its digest."""
    text = entry.config.text()
    validate(text)
    older, keeps, config_first = _earlier_config(model / CONFIG, entry.config)
    place = stage / model.name
    place.mkdir()
    versions = list_versions(model)
    is_new = not versions or not _holds(model / str(versions[-1]), entry.files)
    version = (versions[-1] if versions else 0) + int(is_new)
    if is_new:
        for name, content in entry.files.items():
            _write(place / str(version) / name, content)
    for name, content in entry.warmup.items():
        if not keeps and not (model / WARMUP / name).exists():  # a name tells its content
            _write(place / WARMUP / name, content)
    if not keeps and text != older:
        _write(place / CONFIG, text.encode())
    for folder, _, _ in os.walk(place):
        sync_folder(Path(folder))
    return _Ready(model, place, InstalledModel(model.name, version, is_new, keeps), config_first)


def _earlier_config(path: Path, config: ModelConfig) -> tuple[str, bool, bool]:
    """Returns the configuration there, whether it is kept, and whether ours may come before the new version.

    Raises:
        ArtifactError: It is of another model.
    """
    if not path.is_file():
        return "", False, True
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise ArtifactError(f"{path} is not text ({why}); fix or remove it") from error
    existing = parse(text, str(path))
    if found := list_differences(existing, config):
        raise ArtifactError(
            f"{path} is of another model: {'; '.join(found)}; its versions share one configuration, so give "
            f"this model another name with --name"
        )
    keeps, theirs, ours = is_edited(text), existing.max_batch_size, config.max_batch
    if keeps and theirs > ours:
        raise ArtifactError(
            f"{path} was edited, so it is kept, and its max_batch_size {theirs} is more than the {ours} of "
            f"this model; lower it there, or remove the file"
        )
    if config.serving.num_versions != 1 and theirs < ours:
        raise ArtifactError(
            f"{path} says max_batch_size {theirs}, and the versions there may take no more; to serve several "
            f"of them give --max-batch {theirs}"
        )
    return text, keeps, ours <= theirs


def _holds(version: Path, files: Mapping[str, PackageSource | bytes]) -> bool:
    """Returns whether a version has the same content already."""
    paths = {version / name: content for name, content in files.items()}
    return all(path.is_file() and hash_file(path) == _digest(content) for path, content in paths.items())


def _digest(content: PackageSource | bytes) -> str:
    return content.sha256 if isinstance(content, PackageSource) else hashlib.sha256(content).hexdigest()


def _write(path: Path, content: PackageSource | bytes) -> None:
    """Writes a file to the disk; a copy is compared with its digest, as read and as written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        sha = hashlib.sha256()
        for block in [content] if isinstance(content, bytes) else _read_blocks(content.path):
            sha.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    if isinstance(content, bytes):
        return
    if sha.hexdigest() != content.sha256:
        raise ArtifactError(
            f"{content.path} is not the file that was built: its SHA-256 does not match the manifest; "
            "build again"
        )
    if hash_file(path) != content.sha256:
        raise ArtifactError(
            f"the copy of {content.path} is damaged on its way to {path.parent}; look at the disk"
        )


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            yield block


def _switch(ready: _Ready) -> InstalledModel:
    """Makes a prepared model visible: a new one in one step, a version after all that it needs."""
    model, stage = ready.model, ready.stage
    if not model.is_dir() or not any(model.iterdir()):
        stage.rename(model)
        sync_folder(model.parent)
        return ready.installed
    if (stage / WARMUP).is_dir():
        (model / WARMUP).mkdir(exist_ok=True)
        for path in (stage / WARMUP).iterdir():
            path.replace(model / WARMUP / path.name)
    steps = [CONFIG, str(ready.installed.version)]
    for name in steps if ready.config_first else reversed(steps):
        if (stage / name).exists():
            (stage / name).replace(model / name)
    sync_folder(model)
    return ready.installed
