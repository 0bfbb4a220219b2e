"""A run of `trtq build-all`: what it tells, and the files that it keeps up to date after each build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq.cli.build_file import BuildEntry
from trtq.cli.build_jobs import Plan
from trtq.cli.build_summary import FILE, BuildResult, describe_outcome, encode_summary
from trtq.errors import ArtifactError, UsageError
from trtq.files import write_atomically
from trtq.json import FileKind
from trtq.numbers import format_seconds
from trtq.pipeline.build_all import CommandOutcome
from trtq.pipeline.deliver.index import FILE as INDEX_FILE
from trtq.pipeline.deliver.index import IndexedEngine, index_folder, write_index
from trtq.pipeline.deliver.signature import read_private_key
from trtq.progress import Watcher

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HAS_FOLDER = (0, 3)
"""Exit codes of builds that left a folder."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run beside the folders: the summary and the index."""

    summary: Path
    index: Path

    def check(self) -> None:
        """Refuses to write over something else, before any work.

        Raises:
            ArtifactError: Another file is there.
            UsageError: The index would not be known again.
        """
        if self.index.suffix != ".json":
            raise UsageError(f"--index {self.index} must end in .json, by which trtq.load knows an index")
        _refuse_foreign(self.summary, FILE, "a summary of trtq", "--output")
        _refuse_foreign(self.index, INDEX_FILE, "an index of trtq", "--index")


def _refuse_foreign(path: Path, kind: FileKind[Any], noun: str, option: str) -> None:
    try:
        if path.exists():
            kind.read(path)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is not {noun}; choose another file with {option}") from error


class Run:
    """The builds on their way.

    Attributes:
        plan: What is to be done.
        results: How the builds went so far, in the order of the file.
        unwritten: Why the summary or the index could not be written the last time; the builds go on.
    """

    def __init__(self, plan: Plan, everything: Sequence[BuildEntry], places: RunFiles) -> None:
        self.plan = plan
        self.unwritten: list[ArtifactError] = []
        self.results = [
            BuildResult(entry.name, str(entry.model), str(entry.output), kind=entry.kind)
            for entry in plan.entries
        ]
        self._places, self._private = places, _read_key(everything)
        gpus = _read_gpus(places.index)
        self._engines = {
            entry.output: self._index(entry, gpus.get(entry.output.resolve(), "")) for entry in everything
        }

    def begin(self, watcher: Watcher) -> Callable[[int, str], None]:
        """Returns what tells that a job has begun, on which machine."""

        def tell(number: int, machine: str) -> None:
            where = f" on the machine {machine}" if machine else ""
            watcher.note(f"{self.plan.jobs[number].name} has begun{where}")

        return tell

    def end(self, watcher: Watcher) -> Callable[[int, CommandOutcome], None]:
        """Returns what tells that a job has ended, and writes the files."""

        def tell(number: int, outcome: CommandOutcome) -> None:
            name, seconds = self.plan.jobs[number].name, format_seconds(outcome.seconds)
            row = self.plan.rows.get(number)
            if row is None:
                state = "done" if outcome.exit_code == 0 else "failed"
                watcher.note(f"{name}: {state} after {seconds}")
                return
            entry = self.plan.entries[row]
            self.results[row] = describe_outcome(entry, outcome)
            has_folder = outcome.exit_code in _HAS_FOLDER
            self._engines[entry.output] = self._index(entry, outcome.gpu) if has_folder else None
            watcher.advance(1)
            watcher.note(f"{name}: {self.results[row].state} after {seconds}")
            self._write()

        return tell

    def _write(self) -> None:
        self.unwritten.clear()
        try:
            write_atomically(self._places.summary, encode_summary(self.results))
            engines = [item for item in self._engines.values() if item is not None]
            write_index(self._places.index, engines, self._private)
        except ArtifactError as error:
            self.unwritten.append(error)

    def _index(self, entry: BuildEntry, gpu: str) -> IndexedEngine | None:
        """Returns what the index says of a build, of this run or an earlier one; None if it is not there."""
        known = gpu if entry.job.uses_gpu else ""
        path, folder = self._places.index, entry.output
        return index_folder(path, entry.name, entry.kind, folder, gpu=known, private=self._private)


def _read_key(entries: Sequence[BuildEntry]) -> Ed25519PrivateKey | None:
    """Returns the key that signs all folders, and so the index; None if there is no such key."""
    keys = {entry.sign_key for entry in entries}
    key = keys.pop() if len(keys) == 1 else None
    return None if key is None else read_private_key(key)


def _read_gpus(index: Path) -> dict[Path, str]:
    """Returns the GPUs of an earlier index by the folders of the engines."""
    engines: Sequence[IndexedEngine] = ()
    with suppress(ArtifactError):
        engines = INDEX_FILE.read(index).engines
    return {(index.parent / item.folder).resolve(): item.gpu for item in engines}
