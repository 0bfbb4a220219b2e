"""How a stage reports its progress; the command line draws it, a program may ignore it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Watcher(Protocol):
    """Gets the progress of a build; what a subclass does not want to know, it need not define."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Work of this kind begins; `total` samples if it counts samples."""
        return

    def advance(self, num_samples: int) -> None:
        """So many more samples are done."""
        return

    def note(self, text: str) -> None:
        """Something that the user may want to know."""
        return

    def warn(self, text: str) -> None:
        """Something that the user should look at."""
        return


class Silent(Watcher):
    """Says nothing."""


@dataclass(slots=True)
class Log:
    """Keeps notes and warnings for the report and passes everything on; measures the stages.

    Attributes:
        watcher: Gets everything.
        notes: In order.
        warnings: In order.
        reused: The stages whose earlier result was used again.
        seconds: By stage.
    """

    watcher: Watcher
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def stage(self, text: str, total: int | None = None) -> None:
        """Passes it on."""
        self.watcher.stage(text, total)

    def advance(self, num_samples: int) -> None:
        """Passes it on."""
        self.watcher.advance(num_samples)

    def note(self, text: str) -> None:
        """Keeps it and passes it on, once: a stage that is done again says nothing new."""
        if text not in self.notes:
            self.notes.append(text)
            self.watcher.note(text)

    def warn(self, text: str) -> None:
        """Keeps it and passes it on, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.watcher.warn(text)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measures the block as a stage of this name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
