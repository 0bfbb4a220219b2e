"""A watcher that remembers notes and warnings."""

from __future__ import annotations

from trtq.progress import Silent


class RecordingWatcher(Silent):
    """Keeps the notes and the warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
