"""How a stage reports its progress; the command line and a notebook draw it, a program may ignore it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, Protocol

_REDRAW_S = 0.1


class Watcher(Protocol):
    """Gets the progress of a build; what a subclass does not want to know, it need not define.

    A function that is given none logs to the logger "trtq", and draws a bar in a notebook.
    """

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


class LogWatcher(Watcher):
    """Logs to the logger "trtq": stages and notes at INFO, warnings at WARNING.

    Nothing is printed by a program that has not set logging up.
    """

    def __init__(self) -> None:
        import logging

        self._logger = logging.getLogger("trtq")
        if not self._logger.handlers:
            self._logger.addHandler(logging.NullHandler())

    def stage(self, text: str, total: int | None = None) -> None:
        """Logs it."""
        self._logger.info("%s", text)

    def note(self, text: str) -> None:
        """Logs it."""
        self._logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Logs it."""
        self._logger.warning("%s", text)


class NotebookBar(LogWatcher):
    """Draws a bar below the running cell of a notebook until the cell ends, and warnings, which stay.

    Args:
        shell: The notebook's IPython shell.
    """

    def __init__(self, shell: Any) -> None:
        super().__init__()
        self._shell, self._handle = shell, sys.modules["IPython"].display.DisplayHandle()
        self._text, self._done, self._drawn = "", 0, 0.0
        self._total: int | None = None
        self._warnings: list[str] = []
        shell.events.register("post_run_cell", self._end)

    def stage(self, text: str, total: int | None = None) -> None:
        """Starts a new bar in place of the last."""
        super().stage(text, total)
        self._text, self._total, self._done = text, total, 0
        self._draw()

    def advance(self, num_samples: int) -> None:
        """Moves the bar; between drawings lies a tenth of a second."""
        self._done += num_samples
        if self._done == self._total or time.monotonic() - self._drawn > _REDRAW_S:
            self._draw()

    def warn(self, text: str) -> None:
        """Writes a warning below the bar."""
        super().warn(text)
        self._warnings.append(f"warning: {text}")
        self._draw()

    def _end(self, *_: object) -> None:
        self._shell.events.unregister("post_run_cell", self._end)
        self._text = ""
        if self._drawn:
            self._draw()

    def _draw(self) -> None:
        at = "" if self._total is None else f' value="{self._done}" max="{self._total}"'
        count = "" if self._total is None else f" {self._done} of {self._total}"
        bar = f"<progress{at}></progress> {escape(self._text)}{count}" if self._text else ""
        lines = [f"{self._text}{count}" if self._text else "", *self._warnings]
        html = "".join(f"<div>{line}</div>" for line in (bar, *map(escape, self._warnings)))
        shown = {"text/html": html, "text/plain": "\n".join(lines).strip()}
        draw = self._handle.update if self._drawn else self._handle.display
        self._drawn = time.monotonic()
        draw(shown, raw=True)


def choose_watcher(watcher: Watcher | None) -> Watcher:
    """Returns the watcher that was given; without one a bar in a notebook, and elsewhere who logs alone."""
    if watcher is not None:
        return watcher
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return LogWatcher() if getattr(shell, "kernel", None) is None else NotebookBar(shell)


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
        """Measures the block as a stage of this name, or as more of it where it comes again."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
