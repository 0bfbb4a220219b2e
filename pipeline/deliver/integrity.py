"""Whether a build folder is what was built: every byte of it, and who signed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtq.errors import ArtifactError
from trtq.files import hash_file
from trtq.pipeline.deliver.manifest import NAME, SIGNATURE, Manifest, is_whole, parse_manifest, read_content
from trtq.pipeline.deliver.signature import check_signature
from trtq.workers import Threads, count_cores

_MOST_THREADS = 8
_MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Integrity:
    """What is in a build folder, beside what its manifest says.

    Attributes:
        folder: That was looked at.
        num_files: Of the manifest and it itself.
        num_bytes: Of those that are there.
        missing: Names that the manifest has and the folder has not.
        changed: Names whose content is not that of the manifest, or which are no files.
        unknown: Names that the manifest has not.
        signature: "good" by the given key; "unchecked" without a key; "none" where there is none.
    """

    folder: str
    num_files: int
    num_bytes: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unknown: tuple[str, ...]
    signature: Literal["good", "unchecked", "none"]

    @property
    def is_intact(self) -> bool:
        """Whether everything is as the manifest says, and nothing else is there."""
        return not (self.missing or self.changed or self.unknown)

    @property
    def problems(self) -> str:
        """What is not as it should be, in one line."""
        groups = (("changed", self.changed), ("missing", self.missing), ("unknown", self.unknown))
        return "; ".join(f"{word}: {_listed(names)}" for word, names in groups if names)


def read_whole_manifest(folder: Path, *, key: Path | str | None = None) -> Manifest:
    """Returns the manifest of a build folder if it is the one that was written; no other file is looked at.

    Raises:
        ArtifactError: As of `verify`, or the manifest was changed since.
        UsageError, MissingDependency: As of `verify`.
    """
    content = read_signed_content(folder, key)
    manifest = parse_manifest(content, folder / NAME)
    if not is_whole(content):
        raise ArtifactError(
            f"{folder / NAME} is not the file that was written: its own SHA-256 does not match; build again"
        )
    return manifest


def read_intact_manifest(folder: Path, *, key: Path | str | None = None) -> Manifest:
    """Returns the manifest of a build folder in which every file is as it was built, and no other one is.

    Raises:
        ArtifactError: As of `verify`, or something was changed since; it is named.
        UsageError, MissingDependency: As of `verify`.
    """
    content = read_signed_content(folder, key)
    found = examine_folder(folder, content, is_checked=key is not None)
    if not found.is_intact:
        raise ArtifactError(f"{folder} is not what was built: {found.problems}; build again")
    return parse_manifest(content, folder / NAME)


def refuse_changed(folder: Path, manifest: Manifest, *names: str) -> None:
    """Refuses files of a build folder that are not those that were built: a plan can hold code.

    Raises:
        ArtifactError: One is missing, or has another digest.
    """
    for name in names:
        path = folder / name
        if not path.is_file() or hash_file(path) != manifest.outputs.get(name):
            raise ArtifactError(
                f"{path} is not the file that was built: its SHA-256 does not match the manifest; build again"
            )


def read_signed_content(folder: Path, key: Path | str | None) -> bytes:
    """Returns the bytes of the manifest, checked against its signature where a key is given.

    Raises:
        ArtifactError: The manifest cannot be read, or the key has not signed it.
    """
    content = read_content(folder)
    if key is not None:
        check_signature(folder, content, Path(key))
    return content


def examine_folder(folder: Path, content: bytes, *, is_checked: bool) -> Integrity:
    """Returns how the files of a build folder compare with the content of its manifest.

    Raises:
        ArtifactError: The manifest is broken, or a file cannot be read.
    """
    manifest = parse_manifest(content, folder / NAME)
    is_signed = (folder / SIGNATURE).is_file()
    try:
        missing = [name for name in manifest.outputs if not (folder / name).exists()]
        found = [name for name in manifest.outputs if name not in missing]
        changed = _changed(folder, manifest, found)
        num_bytes = len(content) + sum((folder / name).stat().st_size for name in found)
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}") from error
    if not is_whole(content):
        changed.append(NAME)
    return Integrity(
        folder=str(folder),
        num_files=len(manifest.outputs) + 1,
        num_bytes=num_bytes,
        missing=tuple(missing),
        changed=tuple(changed),
        unknown=tuple(_unknown(folder, {NAME, *manifest.outputs, *((SIGNATURE,) if is_signed else ())})),
        signature="good" if is_checked else "unchecked" if is_signed else "none",
    )


def _changed(folder: Path, manifest: Manifest, names: list[str]) -> list[str]:
    """Returns which files have another digest; they are hashed side by side, the largest first."""
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    files = sorted(sizes, key=lambda name: -sizes[name])
    hashes = Threads(min(_MOST_THREADS, count_cores())).map(lambda name: hash_file(folder / name), files)
    digests = dict(zip(files, hashes, strict=True))
    return [name for name in names if digests.get(name) != manifest.outputs[name]]


def _unknown(folder: Path, known: set[str]) -> Iterator[str]:
    """Yields, in order, what lies in the folder and is not known, folders that hold nothing known too."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_way = path.is_dir() and not path.is_symlink()
        if name not in known and not (is_way and any(item.startswith(f"{name}/") for item in known)):
            yield name


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
