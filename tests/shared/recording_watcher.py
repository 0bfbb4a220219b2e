"""A watcher that remembers what it hears."""

from __future__ import annotations

from collections import defaultdict

from trtq.progress import Watcher


class RecordingWatcher(Watcher):
    """Keeps each stage with its total, the samples of a stage by its name, the notes and the warnings."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.samples: dict[str, list[int]] = defaultdict(list)
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def stage(self, text: str, total: int | None = None) -> None:
        self.stages.append((text, total))

    def advance(self, num_samples: int) -> None:
        self.samples[self.stages[-1][0]].append(num_samples)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
