"""One file for the engines of several builds: which model, for which kind of machine, in which folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.errors import ArtifactError, quote
from trtq.files import read_file, write_atomically
from trtq.json import FileKind
from trtq.pipeline.deliver.integrity import Integrity, examine_folder
from trtq.pipeline.deliver.manifest import NAME, parse_manifest, read_content
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.signature import check_file_signature, is_signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class IndexedEngine:
    """One engine of one model.

    Attributes:
        name: Of the build in the file of `trtq build-all`.
        kind: Of machine that it was built on; empty: the build says none.
        gpu: The GPU that it was built on, as its driver calls it; empty: none, or it is not known.
        compute_capabilities: That it was built for; empty: the default of the backend, or it runs on the CPU.
        backend: That built it; `version` is that of the backend.
        folder: Relative to that of the index, with slashes.
        engine: The file in the folder that runs.
        engine_sha256: Its digest.
        manifest_sha256: That of the manifest of the folder, which holds those of all other files.
        verdict: Of the gate: "pass", "unverified" or "fail".
    """

    name: str
    kind: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    backend: str
    version: str
    folder: str
    engine: str
    engine_sha256: str
    manifest_sha256: str
    verdict: str

    @property
    def title(self) -> str:
        """The name, and the kind if it has one."""
        return f"{self.name} on {self.kind}" if self.kind else self.name


@dataclass(frozen=True, slots=True)
class Index:
    """The engines that one file of `trtq build-all` names, in its order."""

    engines: tuple[IndexedEngine, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the builds, each once."""
        return tuple(dict.fromkeys(item.name for item in self.engines))


FILE = FileKind(Index, "trtq index", "trtq build-all", "engines")


def is_index(path: Path) -> bool:
    """Returns whether a file says that it is an index."""
    try:
        document = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("kind") == FILE.name


def read_index(path: Path, key: Path | str | None = None) -> Index:
    """Returns an index, checked against the signature beside it where a key is given.

    Raises:
        ArtifactError: It cannot be read, is none, or the key is given and has not signed it.
        UsageError: The key cannot be used.
        MissingDependency: A key is given and `cryptography` is not installed.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise ArtifactError(f"cannot read the index {path}: {error.strerror}") from error
    if key is not None:
        check_file_signature(path, content, Path(key))
    return FILE.decode(content, path)


def write_index(path: Path, engines: Sequence[IndexedEngine], private: Ed25519PrivateKey | None) -> None:
    """Writes an index, and its signature beside it; without a key, an older signature is removed.

    Raises:
        ArtifactError: It cannot be written.
    """
    content, signature = FILE.encode(Index(tuple(engines))), path.with_suffix(".sig")
    try:
        signature.unlink(missing_ok=True)  # of the older one: a reader finds none rather than a wrong one
    except OSError as error:
        raise ArtifactError(f"cannot remove {signature}: {error.strerror}") from error
    write_atomically(path, content)
    if private is not None:
        write_atomically(signature, private.sign(content))


def index_folder(
    index: Path,
    name: str,
    kind: str,
    folder: Path,
    *,
    gpu: str = "",
    private: Ed25519PrivateKey | None = None,
) -> IndexedEngine | None:
    """Returns what an index says of a build folder; None if there is no such folder to vouch for.

    Args:
        index: The path of the index.
        name: Of the build.
        kind: Of machine.
        folder: Of the build.
        gpu: That built it.
        private: The key that will sign the index; a folder that passed its gate must be signed by it.
    """
    try:
        content = read_content(folder)
        manifest, report = parse_manifest(content, folder / NAME), read_report(folder / REPORT)
    except ArtifactError:
        return None
    if private is not None and report.verdict != "fail" and not is_signed(folder, content, private):
        return None
    backend, _, version = report.backend.partition(" ")
    return IndexedEngine(
        name=name,
        kind=kind,
        gpu=gpu,
        compute_capabilities=report.engine.targets,
        backend=backend,
        version=version,
        folder=Path(os.path.relpath(folder.resolve(), index.resolve().parent)).as_posix(),
        engine=report.engine.path,
        engine_sha256=manifest.outputs.get(report.engine.path, ""),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        verdict=report.verdict,
    )


def read_indexed(index: Path, engine: IndexedEngine) -> bytes:
    """Returns the content of the manifest of an engine's folder.

    Raises:
        ArtifactError: There is no such folder, or it is another build than the one that was indexed.
    """
    folder = index.parent / engine.folder
    try:
        content = read_content(folder)
    except ValueError as error:  # of a name that no system takes
        raise ArtifactError(f"{index} names the folder {engine.folder!r}: {quote(error)}") from error
    if hashlib.sha256(content).hexdigest() != engine.manifest_sha256:
        raise ArtifactError(
            f"{folder} is another build than the one that {index} names: the SHA-256 of its {NAME} differs; "
            f"run trtq build-all again"
        )
    return content


def explain_other_folder(index: Path, engine: IndexedEngine) -> str:
    """Returns why the folder of an engine is not the one that was indexed; empty if its manifest is."""
    try:
        read_indexed(index, engine)
    except ArtifactError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class IndexIntegrity:
    """Whether an index and its folders are what was built.

    Attributes:
        index: The file.
        signature: "good" by the given key; "unchecked" without a key; "none" where there is none.
        folders: How each folder compares with its manifest, by the path of the folder.
        others: Why a folder is not the one that was indexed, by its path.
    """

    index: str
    signature: str
    folders: dict[str, Integrity]
    others: dict[str, str]

    @property
    def is_intact(self) -> bool:
        """Whether every folder is there, is the one that was indexed, and is as it was built."""
        return not self.others and all(item.is_intact for item in self.folders.values())

    @property
    def problems(self) -> str:
        """What is not as it should be, in one line."""
        changed = [f"{name}: {item.problems}" for name, item in self.folders.items() if not item.is_intact]
        return "; ".join((*self.others.values(), *changed))


def examine_index(path: Path, key: Path | str | None = None) -> IndexIntegrity:
    """Returns how an index and its folders compare with what was built; every file is hashed again.

    The signature of the index vouches for the manifests, so that those of the folders are not asked for.

    Raises:
        ArtifactError, UsageError, MissingDependency: As of `read_index`; or a file cannot be read.
    """
    engines = read_index(path, key).engines
    reasons = {item.folder: explain_other_folder(path, item) for item in engines}
    folders = [path.parent / item.folder for item in engines if not reasons[item.folder]]
    unchecked = "unchecked" if path.with_suffix(".sig").is_file() else "none"
    return IndexIntegrity(
        str(path),
        unchecked if key is None else "good",
        {str(item): examine_folder(item, read_content(item), is_checked=key is not None) for item in folders},
        {name: reason for name, reason in reasons.items() if reason},
    )
