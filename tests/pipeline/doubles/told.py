"""A watcher that remembers what it was told."""

from __future__ import annotations

from trtq.progress import Silent


class Told(Silent):
    """Keeps the notes and the warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
