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
from trtq.files import check_outputs, write_atomically
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
            ArtifactError: A file cannot be written, or another one is there.
            UsageError: Both are the same file, or the index would not be known again.
        """
        if self.index.suffix != ".json":
            raise UsageError(f"--index {self.index} must end in .json, by which trtq.load knows an index")
        check_outputs({"--summary": self.summary, "--index": self.index})
        _refuse_foreign(self.summary, FILE, "a summary of trtq", "--summary")
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
        self._everything, self._places = everything, places
        self._outcomes: dict[Path, CommandOutcome] = {}
        self._private = _read_key(everything)
        self._gpus = _read_gpus(places.index)

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
            self._outcomes[entry.output] = outcome
            watcher.advance(1)
            watcher.note(f"{name}: {self.results[row].state} after {seconds}")
            self._write()

        return tell

    def _write(self) -> None:
        self.unwritten.clear()
        try:
            write_atomically(self._places.summary, encode_summary(self.results))
            write_index(self._places.index, self._list_engines(), self._private)
        except ArtifactError as error:
            self.unwritten.append(error)

    def _list_engines(self) -> list[IndexedEngine]:
        """Returns what is built: in this run, or before where this run does not come to it or has not yet."""
        found = (self._index(entry) for entry in self._everything)
        return [item for item in found if item is not None]

    def _index(self, entry: BuildEntry) -> IndexedEngine | None:
        outcome = self._outcomes.get(entry.output)
        if outcome is not None and outcome.exit_code not in _HAS_FOLDER:
            return None
        path, folder = self._places.index, entry.output
        gpu = self._gpus.get(folder.resolve(), "") if outcome is None else outcome.gpu
        known = gpu if entry.job.uses_gpu else ""
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
