"""How a stage tells what it is doing; the command line draws it, a program may ignore it."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Is told of the progress of a build."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Work of this kind begins; `total` samples if it counts samples."""
        ...

    def advance(self, num_samples: int) -> None:
        """So many more samples are done."""
        ...

    def note(self, text: str) -> None:
        """Something that the user may want to know."""
        ...

    def warn(self, text: str) -> None:
        """Something that the user should look at."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Says nothing."""

    def advance(self, num_samples: int) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def warn(self, text: str) -> None:
        """Says nothing."""
